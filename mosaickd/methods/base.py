"""The contract between a method and the loop.

A method owns its modules, the order of play and its losses. It says nothing about optimizers,
precision, devices or logging: it yields turns, and the loop plays them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

SourceName = Literal["dataset", "ood"]


class Images(NamedTuple):
    """One draw of a stream. pixels: normalised float [B, 3, H, W]; labels: [B] class indices.

    The labels of OOD images are those of their own data set and mean nothing to the teacher.
    """

    pixels: Tensor
    labels: Tensor


#: What `turns` is given: for each stream of the method, its draws of this iteration.
Batch = Mapping[str, Sequence[Images]]


@dataclass(frozen=True)
class Stream:
    """Images that a method wants at every iteration."""

    source: SourceName
    augment: bool  # random crop and flip
    statistics: SourceName  # whose mean and standard deviation normalise the images
    draws: int = 1  # independent batches an iteration


class Loss(NamedTuple):
    """A term of a turn's objective: the raw value is logged, weight * value is minimised."""

    value: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Turn:
    """It is `player`'s turn to take one optimizer step on the weighted sum of `losses`."""

    player: str
    losses: Mapping[str, Loss]

    def objective(self) -> Tensor:
        """The weighted sum, in the order given. -> scalar."""
        terms = [loss.value * loss.weight for loss in self.losses.values()]
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]


class Method(ABC):
    """Base of all methods.

    A subclass takes by keyword what it plays with, and the launcher hands it what its signature
    names: `student`, `teacher` (frozen, in eval mode), `generator`, `discriminator`, `normalize`
    ([0, 1] images -> normalised with the in-domain statistics), `latents` (n -> noise
    [n, latent_dim]) and `batch_size`. All other keywords are settings of its YAML.
    """

    #: Images wanted at every iteration, by name.
    streams: Mapping[str, Stream]
    #: The modules that learn, by the names that turns use.
    players: Mapping[str, nn.Module]
    #: Random generators of the method's own, on the run's device: a CUDA graph must know them.
    #: (That of `latents` is known already.) Their states belong in `state_dict`.
    generators: Sequence[torch.Generator] = ()

    @abstractmethod
    def turns(self, batch: Batch) -> Iterator[Turn]:
        """Play one iteration. Never yield inside `torch.no_grad()`: the loop's backward pass
        and optimizer step run between two turns."""

    def synthesize(self, latents: Tensor) -> Tensor | None:
        """Images in [0, 1] [n, 3, H, W] for a person to look at; None if nothing is generated."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What the method must remember between iterations, beside its players' weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        assert not state, f"{type(self).__name__} remembers nothing, but was given {list(state)}"


class Latents:
    """Standard normal noise from a generator of its own, whose state is part of a checkpoint."""

    def __init__(self, dim: int, device: torch.device, seed: int) -> None:
        self.dim = dim
        self.device = device
        self.rng = torch.Generator(device).manual_seed(seed)

    def __call__(self, count: int) -> Tensor:
        """-> [count, dim]"""
        return torch.randn(count, self.dim, device=self.device, generator=self.rng)

    def state_dict(self) -> dict[str, Tensor]:
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Let gradients flow through `modules`, not into their weights.

    The numbers are the same as without; the weight gradients that the reference computes in
    another player's turn and throws away are not computed.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
