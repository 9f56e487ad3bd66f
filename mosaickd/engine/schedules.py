"""Learning rates over a run. Each takes an optimizer and the run's number of iterations.

Schedules advance once an iteration in which their player has a turn, whatever number of turns it
has there: the reference does so, and its cosine reaches zero at the last iteration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    MultiStepLR,
)

from mosaickd.constraints import Count


def cosine(optimizer: Optimizer, steps: int, *, stairs: Count | None = None) -> LRScheduler:
    """Fall from the initial rate to zero along half a cosine (Loshchilov & Hutter, 2017).

    stairs: the rate stays the same for a `stairs`-th of the run at a time (of 200 epochs: 200).
    """
    if stairs is None:
        return CosineAnnealingLR(optimizer, T_max=steps)
    return LambdaLR(optimizer, partial(_stair, steps=steps, stairs=stairs))


def _stair(step: int, *, steps: int, stairs: int) -> float:
    return (1 + math.cos(math.pi * (step * stairs // max(steps, 1)) / stairs)) / 2


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Keep the initial rate throughout."""
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def multistep(
    optimizer: Optimizer, steps: int, *, milestones: Sequence[float], gamma: float = 0.1
) -> LRScheduler:
    """Multiply by `gamma` at each milestone, a fraction of the run (150 of 240 epochs: 0.625)."""
    return MultiStepLR(optimizer, [round(m * steps) for m in milestones], gamma=gamma)
