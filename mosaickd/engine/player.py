"""A player: a module that learns, with its optimizer and its schedule."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mosaickd.engine import distributed

OptimizerFactory = Callable[..., Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]


class Player:
    """Take the optimizer steps of one module; other players' weights are never touched.

    optimizer: called with the parameters; schedule: called with the optimizer and the number of
    iterations in which this player has a turn; clip: largest norm of a step's gradient, or None.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        *,
        steps: int,
        clip: float | None = None,
        capturable: bool = False,
    ) -> None:
        self.module = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = optimizer(self.parameters, **_fast_options(optimizer, capturable))
        if capturable:  # a CUDA graph reads the learning rate from memory, not from a constant
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=self.parameters[0].device)
        self.schedule = schedule(self.optimizer, steps)
        self.clip = clip

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, objective: Tensor, reset_optimizer: bool = False) -> None:
        """Minimise `objective` (scalar) by one step; reset_optimizer: as if it were the first."""
        if reset_optimizer:
            self.optimizer.state.clear()
        self.optimizer.zero_grad(set_to_none=True)
        objective.backward(inputs=self.parameters)
        distributed.all_reduce_mean([p.grad for p in self.parameters if p.grad is not None])
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:  # checkpoints are read to the CPU
            if isinstance(group["lr"], Tensor):
                group["lr"] = group["lr"].to(self.parameters[0].device)
        self.schedule.load_state_dict(state["schedule"])


def _fast_options(optimizer: OptimizerFactory, capturable: bool) -> dict[str, bool]:
    """Ask for one fused kernel instead of a loop over tensors, unless the config says otherwise."""
    accepted = inspect.signature(optimizer).parameters
    keywords = getattr(optimizer, "keywords", {})
    options = {}
    fusable = getattr(optimizer, "func", optimizer) in (SGD, Adam, AdamW)
    if fusable and "fused" not in keywords and "foreach" not in keywords:
        options["fused"] = True
    if capturable and "capturable" in accepted:
        options["capturable"] = True
    return options
