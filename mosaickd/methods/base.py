"""The contract between a method and the loop.

A method owns its modules, the order of play and its losses. It says nothing about optimizers,
precision, devices or logging: it yields turns, and the loop plays them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

SourceName = Literal["dataset", "ood"]


class Images(NamedTuple):
    """One draw of a stream. pixels: normalised float [B, 3, H, W]; labels: [B] class indices.

    The labels of OOD images are those of their own data set and mean nothing to the teacher,
    unless the stream asks for the teacher's. indices: [B], which images of the set these are.
    """

    pixels: Tensor
    labels: Tensor
    indices: Tensor = torch.empty(0, dtype=torch.int64)


#: At the input of one batch norm, [C] each: the batch's mean and (unbiased) variance, and those
#: that the batch norm remembers of its training.
NormStatistics = tuple[Tensor, Tensor, Tensor, Tensor]

#: What `turns` is given: for each stream of the method, its draws of this iteration.
Batch = Mapping[str, Sequence[Images]]


@dataclass(frozen=True)
class Stream:
    """Images that a method wants at every iteration."""

    source: SourceName
    augment: bool  # random crop and flip
    statistics: SourceName  # whose mean and standard deviation normalise the images
    draws: int = 1  # independent batches an iteration
    balanced: bool = False  # labels are the teacher's argmax, and all classes come equally often


class Loss(NamedTuple):
    """A term of a turn's objective: the raw value is logged, weight * value is minimised."""

    value: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Turn:
    """It is `player`'s turn to take one optimizer step on the weighted sum of `losses`.

    reset_optimizer: what the optimizer remembers of earlier steps is forgotten first, because the method
    has put something new in the module's place.
    """

    player: str
    losses: Mapping[str, Loss]
    reset_optimizer: bool = False

    def objective(self) -> Tensor:
        """The weighted sum, in the order given. -> scalar."""
        terms = [loss.value * loss.weight for loss in self.losses.values()]
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]


class Method(ABC):
    """Base of all methods.

    A subclass takes by keyword what it plays with, and the launcher hands it what its signature
    names:

    - the networks `student`, `teacher` (frozen, in eval mode), `generator`, `discriminator`;
    - a look inside two of them (`FeatureExtractor`): `student_features` and `teacher_features` at the paths
      of the model's YAML, `student_embedding` and `teacher_embedding`, and `teacher_bn_stats`,
      the batch statistics at the input of each of the teacher's batch norms;
    - the functions `normalize` (images in [0, 1] -> as the networks want them), `latents`
      (n -> noise [n, latent_dim]) and `augment` (random crop and flip of a batch);
    - `rng`, a random generator on the device for draws of the method's own;
    - `gather`, which puts the tensors [n, ...] of all processes that play together one after the
      other, without gradients (of one process: what it was given);
    - the numbers `batch_size` (of this process), `num_classes`, `image_size`, `instances` (OOD
      images there are) and `steps` (iterations of the run).

    All other keywords are settings of its YAML.
    """

    #: The images it trains on: those of the teacher's domain, OOD images, or none at all.
    source: ClassVar[SourceName | None] = "ood"
    #: Whether all iterations are alike, so that one can be captured as a CUDA graph.
    graph_capturable: ClassVar[bool] = True
    #: Whether several processes can play it together, each on its part of every batch.
    supports_ddp: ClassVar[bool] = True
    #: Images wanted at every iteration, by name.
    streams: Mapping[str, Stream]
    #: The modules that learn, by the names that turns use.
    players: Mapping[str, nn.Module]

    @abstractmethod
    def turns(self, batch: Batch) -> Iterator[Turn]:
        """Play one iteration. Never yield inside `torch.no_grad()`: the loop's backward pass
        and optimizer step run between two turns."""

    def iterations(self, player: str, steps: int) -> int:
        """In how many of the run's `steps` iterations `player` has a turn.

        A player's schedule runs over these: where a method plays in phases, nobody's learning
        rate falls while others play.
        """
        return steps

    def synthesize(self, latents: Tensor | None) -> Tensor | None:
        """Images for a person to look at, normalised, [n, 3, H, W]; None where there are none.

        latents: [n, latent_dim], the same at each call; None for a method without a generator.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What the method must remember between iterations, beside its players' weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        assert not state, f"{type(self).__name__} remembers nothing, but was given {list(state)}"


class FeatureExtractor(Protocol):
    """Looks inside a network; what it takes is stated where it is built."""

    #: Of each thing that is taken, for one image: [C, H, W] or [D].
    shapes: Sequence[Sequence[int]]

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """images [B, 3, H, W] -> logits [B, classes], and each thing taken [B, ...]."""
        ...


class BatchNormStatsHook(Protocol):
    """Compares a batch with what a network's batch norms remember of their training."""

    def __call__(self, images: Tensor) -> tuple[Tensor, list[NormStatistics]]:
        """images [B, 3, H, W] -> logits [B, classes], and the statistics at each batch norm."""
        ...


class RandomState:
    """A random generator whose state is part of a checkpoint."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.rng = torch.Generator(device).manual_seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])

    def reseed(self, step: int) -> None:
        """Other numbers than the run began with, decided by its seed and `step`."""
        self.rng.manual_seed((self.rng.initial_seed() + 1_000_003 * step) % 2**63)


class Latents(RandomState):
    """Standard normal noise from a generator of its own.

    part, parts: of several processes that play together, which one this is. They draw the same
    numbers for all of them, and each takes its own.
    """

    def __init__(
        self, dim: int, device: torch.device, seed: int, part: int = 0, parts: int = 1
    ) -> None:
        super().__init__(device, seed)
        self.dim = dim
        self.device = device
        self.part, self.parts = part, parts

    def __call__(self, count: int) -> Tensor:
        """-> [count, dim]"""
        shape = (self.parts, count, self.dim)
        return torch.randn(shape, device=self.device, generator=self.rng)[self.part]


def distillation_batches(
    teacher: nn.Module,
    images_of: Callable[[int], Tensor],
    steps: int,
    at_once: bool | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of `steps` student turns its images and what the teacher says of them.

    images_of: step -> images [B, 3, H, W], made by networks that stay as they are through all of
    these turns; each is asked for once, in order. -> pairs of images and logits [B, classes].

    at_once: the teacher sees all batches in one pass. It has no batch statistics of its own, so
    this rounds differently at most: few large kernels keep a GPU busier, while a CPU's caches
    prefer several small ones (wrn40_2 takes a third longer at once, and gives the same bits).
    None: as the device likes it.
    """
    if at_once is None:
        at_once = next(teacher.parameters()).is_cuda
    if at_once:
        with torch.no_grad():
            batches = [images_of(step) for step in range(steps)]
            logits = teacher(torch.cat(batches)).split([len(batch) for batch in batches])
        yield from zip(batches, logits, strict=True)
        return
    for step in range(steps):
        with torch.no_grad():
            images = images_of(step)
            answer = teacher(images)
        yield images, answer


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
