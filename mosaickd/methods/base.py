"""The contract between a method and the loop, and what several methods have in common.

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

from mosaickd.constraints import Positive
from mosaickd.losses import kl_divergence

SourceName = Literal["dataset", "ood"]


class Images(NamedTuple):
    """One batch of a stream. pixels: normalised float [B, 3, H, W]; labels: [B] class indices.

    The labels of OOD images are those of their own data set and mean nothing to the teacher,
    unless the stream is balanced. indices: [B], the images' places in their set.
    """

    pixels: Tensor
    labels: Tensor
    indices: Tensor = torch.empty(0, dtype=torch.int64)


#: At the input of one batch norm, [C] each: the batch's mean and (unbiased) variance, and the
#: running mean and variance of its training.
NormStatistics = tuple[Tensor, Tensor, Tensor, Tensor]

#: Argument of `turns`: for each stream of the method, its batches of this iteration.
Batch = Mapping[str, Sequence[Images]]


@dataclass(frozen=True)
class Stream:
    """Images that a method wants at every iteration."""

    source: SourceName
    augment: bool  # random crop and flip
    normalization: SourceName  # whose mean and standard deviation normalise the images
    draws: int = 1  # independent batches an iteration
    balanced: bool = False  # labels are the teacher's argmax, and all classes come equally often


class Loss(NamedTuple):
    """A term of a turn's objective: the raw value is logged, weight * value is minimised."""

    value: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Turn:
    """It is `player`'s turn to take one optimizer step on the weighted sum of `losses`.

    reset_optimizer: clear the optimizer's state before the step, because the method has put
    something new in the module's place.
    """

    player: str
    losses: Mapping[str, Loss]
    reset_optimizer: bool = False

    def objective(self) -> Tensor:
        """Return the weighted sum, in the order given. -> scalar."""
        terms = [loss.value * loss.weight for loss in self.losses.values()]
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]


class Method(ABC):
    """Base of all methods.

    A subclass is a dataclass (`kw_only=True, eq=False`): of its fields the launcher fills in those
    that `mosaickd.methods.inputs.INPUTS` names, and the method's YAML all others. `__post_init__`
    checks settings (ValueError) and sets `players` and `streams`.
    """

    #: What tables and plots call it; its YAML's name where this is missing.
    display_name: ClassVar[str]
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
        """Play one iteration.

        Never yield inside `torch.no_grad()`: the loop's backward pass and optimizer step run
        between two turns.
        """

    def iterations(self, player: str, steps: int) -> int:
        """Return in how many of the run's `steps` iterations `player` has a turn.

        A player's schedule runs over these: where a method plays in phases, nobody's learning
        rate falls while others play.
        """
        return steps

    def synthesize(self, latents: Tensor | None) -> Tensor | None:
        """Return images for a person to look at, normalised, [n, 3, H, W]; None without any.

        latents: [n, latent_dim], the same at each call; None for a method without a generator.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what lasts between iterations, beside the players' weights and buffers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        assert not state, f"{type(self).__name__} has no state, but was given {list(state)}"


# --------------------------------------------------------------------- what several methods share


@dataclass(kw_only=True, eq=False)
class Distillation(Method):
    """Distil on one stream of augmented OOD images; base of the methods that add losses to KD.

    The student imitates the teacher's predictions softened by `temperature` (Hinton et al., 2015):
    the loss `kd`. ood_statistics: whose mean and standard deviation normalise the images.
    """

    balanced: ClassVar[bool] = False  # whether all of the teacher's classes come equally often

    student: nn.Module
    teacher: nn.Module
    temperature: Positive = 5.0
    ood_statistics: SourceName = "dataset"

    def __post_init__(self) -> None:
        self.players = {"student": self.student}
        self.streams = {
            "ood": Stream(
                "ood", augment=True, normalization=self.ood_statistics, balanced=self.balanced
            )
        }

    def turns(self, batch: Batch) -> Iterator[Turn]:
        (images,) = batch["ood"]
        with torch.no_grad():
            teacher = self.teacher(images.pixels)
        student = self.student(images.pixels)
        yield Turn("student", {"kd": Loss(kl_divergence(student, teacher, self.temperature))})


@dataclass(kw_only=True, eq=False)
class GeneratorMethod(Method):
    """Base of the methods whose images a generator paints, to teach the student with."""

    student: nn.Module
    teacher: nn.Module
    generator: nn.Module
    normalize: Callable[[Tensor], Tensor]
    latents: Callable[[int], Tensor]
    batch_size: int

    def __post_init__(self) -> None:
        self.players = {"generator": self.generator, "student": self.student}
        self.streams = {}

    def generate(self) -> Tensor:
        """Return a fresh batch of fakes [B, 3, H, W], normalised as in-domain images."""
        return self.normalize(self.generator(self.latents(self.batch_size)))

    def synthesize(self, latents: Tensor | None) -> Tensor:
        return self.normalize(self.generator(latents))


def distillation_batches(
    teacher: nn.Module,
    make_images: Callable[[int], Tensor],
    steps: int,
    at_once: bool | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images [B, 3, H, W] and the teacher's logits [B, C] for each of `steps` student turns.

    make_images: step -> images, by networks that stay as they are through all of these turns;
    called once a step, in order.

    at_once: the teacher sees all batches in one pass. It has no batch statistics of its own, so
    this rounds differently at most: few large kernels keep a GPU busier, while a CPU's caches
    prefer several small ones (wrn40_2 takes a third longer at once, and gives the same bits).
    None: at once on CUDA.
    """
    if at_once is None:
        at_once = next(teacher.parameters()).is_cuda
    if at_once:
        with torch.no_grad():
            batches = [make_images(step) for step in range(steps)]
            logits = teacher(torch.cat(batches)).split([len(batch) for batch in batches])
        yield from zip(batches, logits, strict=True)
        return
    for step in range(steps):
        with torch.no_grad():
            images = make_images(step)
            logits_of_step = teacher(images)
        yield images, logits_of_step


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


# ------------------------------------------------------- inputs that are more than a plain value


class FeatureExtractor(Protocol):
    """A network that also gives out features, at the module paths of its model's YAML."""

    #: Of each feature, for one image: [C, H, W], or [D] of an embedding.
    shapes: Sequence[Sequence[int]]

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits [B, classes] and each feature [B, ...]. images: [B, 3, H, W]."""
        ...


class BatchNormStatsHook(Protocol):
    """A network that also gives out statistics at the input of each of its batch norms."""

    def __call__(self, images: Tensor) -> tuple[Tensor, list[NormStatistics]]:
        """Return logits [B, classes] and the statistics, layer by layer. images: [B, 3, H, W]."""
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
        """Start another sequence of numbers, decided by the first seed and `step`."""
        self.rng.manual_seed((self.rng.initial_seed() + 1_000_003 * step) % 2**63)


class Latents(RandomState):
    """Standard normal noise from a generator of its own.

    part, parts: which of several processes this is. Each draws the numbers of all and returns its
    own, so that their noise differs and one state restores all.
    """

    def __init__(
        self, dim: int, device: torch.device, seed: int, part: int = 0, parts: int = 1
    ) -> None:
        super().__init__(device, seed)
        self.dim = dim
        self.device = device
        self.part, self.parts = part, parts

    def __call__(self, count: int) -> Tensor:
        """Draw noise. -> [count, dim]"""
        shape = (self.parts, count, self.dim)
        return torch.randn(shape, device=self.device, generator=self.rng)[self.part]
