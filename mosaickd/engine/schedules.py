"""Learning rates over a run. Each takes an optimizer and the run's number of iterations.

Schedules advance once an iteration, whatever number of turns a player has in it: the reference
does so, and its cosine reaches zero at the last iteration.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, MultiStepLR


def cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    """From the initial rate to zero along half a cosine (Loshchilov & Hutter, 2017)."""
    return CosineAnnealingLR(optimizer, T_max=steps)


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The initial rate throughout."""
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def multistep(
    optimizer: Optimizer, steps: int, *, milestones: Sequence[float], gamma: float = 0.1
) -> LRScheduler:
    """Times `gamma` at each milestone, a fraction of the run (150 of 240 epochs: 0.625)."""
    return MultiStepLR(optimizer, [round(m * steps) for m in milestones], gamma=gamma)
