"""DeepInversion: pixels themselves are optimised until the teacher takes them for its own domain.

Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020;
"adaptive" with the adversarial term. The alternation with the student follows CMI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mosaickd.constraints import Count, NonNegative, Positive
from mosaickd.losses import (
    batch_norm_distance,
    cross_entropy,
    jensen_shannon,
    kl_divergence,
    total_variation,
)
from mosaickd.methods.base import (
    Batch,
    BatchNormStatsHook,
    Loss,
    Method,
    SourceName,
    Turn,
    frozen,
)


@dataclass(kw_only=True, eq=False)
class DeepInversion(Method):
    """Rounds of `inversion_steps` turns that make a batch of images, then `student_steps` turns
    in which the student learns from all images made so far. An iteration is one of these turns.

    `oh`, `bn`, `tv` and `adv` weigh the images' losses: the label that each was given, the
    statistics in the teacher, smoothness, and the student's disagreement. Finished images lie in
    a pool of at most `pool_size` as uint8, 3 KB each at 32x32; the oldest make room.
    """

    display_name: ClassVar[str] = "DeepInv"
    source: ClassVar[SourceName | None] = None
    graph_capturable: ClassVar[bool] = False  # it plays in two phases
    supports_ddp: ClassVar[bool] = False  # the images that it optimises belong to one process

    student: nn.Module
    teacher: nn.Module
    teacher_bn_stats: BatchNormStatsHook
    normalize: Callable[[Tensor], Tensor]
    augment: Callable[[Tensor], Tensor]
    rng: torch.Generator
    batch_size: int
    num_classes: int
    image_size: int
    oh: NonNegative = 1.0
    bn: NonNegative = 10.0
    tv: NonNegative = 1e-3
    adv: NonNegative = 1.0
    adv_temperature: Positive = 3.0
    temperature: Positive = 20.0
    inversion_steps: Count = 1000
    student_steps: Count = 400
    pool_size: Count = 51200

    def __post_init__(self) -> None:
        if not (self.oh or self.bn or self.adv):
            raise ValueError("method.oh, bn and adv are all 0: nothing guides the images")
        if self.pool_size < self.batch_size:
            raise ValueError(
                f"method.pool_size is {self.pool_size}: it must hold a batch of "
                f"{self.batch_size} at least"
            )
        self.round_length = self.inversion_steps + self.student_steps
        self.images = Pixels(self.batch_size, self.image_size)
        self.players = {"images": self.images, "student": self.student}
        self.streams = {}
        self.iteration = 0
        self.labels = torch.zeros(self.batch_size, dtype=torch.int64, device=self.rng.device)
        self.pool = Pool(self.pool_size, self.image_size, self.rng.device)

    def iterations(self, player: str, steps: int) -> int:
        rounds, rest = divmod(steps, self.round_length)
        inversions = rounds * self.inversion_steps + min(rest, self.inversion_steps)
        return inversions if player == "images" else steps - inversions

    def turns(self, batch: Batch) -> Iterator[Turn]:
        position = self.iteration % self.round_length
        if position < self.inversion_steps:
            if position == 0:
                self.begin_images()
            with frozen(self.student):
                losses = self.image_losses(self.images())
            yield Turn("images", losses, reset_optimizer=position == 0)
            with torch.no_grad():  # only colours that a pixel can have
                pixels = self.images.pixels
                pixels.copy_(pixels.clamp(*self.limits()))
            if position == self.inversion_steps - 1:
                self.pool.add(self.as_uint8(self.images.pixels.detach()))
        else:
            with torch.no_grad():
                images = self.augment(self.pool.sample(self.batch_size, self.rng))
                images = self.normalize(images.float() / 255)
                teacher = self.teacher(images)
            student = self.student(images)
            yield Turn("student", {"kd": Loss(kl_divergence(student, teacher, self.temperature))})
        self.iteration += 1

    @torch.no_grad()
    def begin_images(self) -> None:
        """Draw noise, and a class that each image shall become."""
        device = self.rng.device
        self.images.pixels.normal_(generator=self.rng)
        self.labels = torch.randint(
            self.num_classes, (self.batch_size,), generator=self.rng, device=device
        )

    def image_losses(self, images: Tensor) -> dict[str, Loss]:
        """Return the losses of normalised `images` [B, 3, H, W]."""
        shifted = shift_and_flip(images, images.shape[-1] // 8, self.rng)
        losses = {}
        teacher, statistics = self.teacher_bn_stats(shifted)
        if self.oh:
            losses["oh"] = Loss(cross_entropy(teacher, self.labels), self.oh)
        if self.bn:
            losses["bn"] = Loss(batch_norm_distance(statistics, by_layer=True), self.bn)
        if self.tv:
            losses["tv"] = Loss(total_variation(images), self.tv)
        if self.adv:
            # Half-made images must not move the statistics that the student is tested with.
            self.student.eval()
            disagreement = jensen_shannon(self.student(shifted), teacher, self.adv_temperature)
            self.student.train()
            losses["adv"] = Loss(-disagreement, self.adv)
        return losses

    def limits(self) -> tuple[Tensor, Tensor]:
        """Return black and white as they are after normalisation, [1, 3, 1, 1] each."""
        black = torch.zeros(1, 3, 1, 1, device=self.rng.device)
        return self.normalize(black), self.normalize(black + 1)

    def as_uint8(self, images: Tensor) -> Tensor:
        """Convert normalised images to uint8, [B, 3, H, W]."""
        black, white = self.limits()
        return ((images - black) / (white - black) * 255).round().clamp(0, 255).byte()

    def synthesize(self, latents: Tensor | None) -> Tensor | None:
        """Return the last finished images, normalised; None before there are any."""
        images = self.pool.latest(100)
        return self.normalize(images.float() / 255) if len(images) else None

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "labels": self.labels, "pool": self.pool.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
        self.labels = state["labels"].to(self.rng.device)
        self.pool.load_state_dict(state["pool"])


class Pixels(nn.Module):
    """A batch of images that learns: normalised, [B, 3, H, W]."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.pixels = nn.Parameter(torch.zeros(count, 3, size, size))

    def forward(self) -> Tensor:
        return self.pixels


class Pool:
    """The images made so far: uint8, at most `size`; the oldest make room."""

    def __init__(self, size: int, image_size: int, device: torch.device) -> None:
        self.size = size
        self.images = torch.empty(0, 3, image_size, image_size, dtype=torch.uint8, device=device)

    def add(self, images: Tensor) -> None:
        """Append `images`, uint8 [N, 3, H, W]."""
        self.images = torch.cat([self.images, images])[-self.size :].contiguous()

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw uint8 [count, 3, H, W], with replacement."""
        device = self.images.device
        return self.images[torch.randint(len(self.images), (count,), generator=rng, device=device)]

    def latest(self, count: int) -> Tensor:
        """Return the youngest, uint8 [at most count, 3, H, W]."""
        return self.images[-count:]

    def state_dict(self) -> dict[str, Tensor]:
        return {"images": self.images}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.images = state["images"].to(self.images.device)


def shift_and_flip(images: Tensor, limit: int, rng: torch.Generator) -> Tensor:
    """Shift all images circularly by the same random 0 to `limit` pixels, and perhaps flip them.

    images: [B, C, H, W] -> the same shape, without a host round trip.
    """
    height, width = images.shape[2:]
    device = images.device
    down, right = torch.randint(-limit, limit + 1, (2,), generator=rng, device=device).unbind()
    flip = torch.rand((), generator=rng, device=device) < 0.5
    rows = (torch.arange(height, device=device) - down) % height
    columns = (torch.arange(width, device=device) - right) % width
    columns = torch.where(flip, columns.flip(0), columns)
    return images.index_select(2, rows).index_select(3, columns)
