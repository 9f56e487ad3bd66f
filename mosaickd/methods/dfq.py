"""DFQ: data-free distillation with a generator that pleases the teacher and defies the student.

Choi et al., "Data-Free Network Quantization With Adversarial Knowledge Distillation", 2020, as
the authors of MosaicKD run it ("DFQAD").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from torch import Tensor, nn

from mosaickd.constraints import Count, LogBase, NonNegative, Positive
from mosaickd.losses import batch_norm_distance, class_balance, kl_divergence, one_hot
from mosaickd.methods.base import (
    Batch,
    BatchNormStatsHook,
    Loss,
    Method,
    SourceName,
    Turn,
    distillation_batches,
    frozen,
)


class DFQ(Method):
    """One generator turn, then `student_steps` student turns, each on fresh fakes.

    `adv`, `oh`, `ie` and `bn` weigh the generator's four losses: the student's disagreement, the
    teacher's certainty, the balance of classes (its logarithm has base `log_base`), and how far
    the statistics in the teacher lie from those of its training images. A term of weight 0 is
    not computed. `teacher_at_once`: see `distillation_batches`.
    """

    source: ClassVar[SourceName | None] = None

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module,
        teacher_bn_stats: BatchNormStatsHook,
        generator: nn.Module,
        normalize: Callable[[Tensor], Tensor],
        latents: Callable[[int], Tensor],
        batch_size: int,
        gather: Callable[[Tensor], Tensor] = lambda own: own,
        adv: NonNegative = 1.0,
        oh: NonNegative = 1.0,
        ie: NonNegative = 20.0,
        bn: NonNegative = 1.0,
        log_base: LogBase = 10.0,
        temperature: Positive = 1.0,
        student_steps: Count = 5,
        teacher_at_once: bool | None = None,
    ) -> None:
        if not (adv or oh or ie or bn):
            raise ValueError("method.adv, oh, ie and bn are all 0: nothing guides the generator")
        self.student = student
        self.teacher = teacher
        self.teacher_bn_stats = teacher_bn_stats
        self.generator = generator
        self.normalize = normalize
        self.latents = latents
        self.batch_size = batch_size
        self.gather = gather
        self.adv, self.oh, self.ie, self.bn = adv, oh, ie, bn
        self.log_base = log_base
        self.temperature = temperature
        self.student_steps = student_steps
        self.teacher_at_once = teacher_at_once
        self.players = {"generator": generator, "student": student}
        self.streams = {}

    def generate(self) -> Tensor:
        """-> a fresh batch of fakes [B, 3, H, W], normalised as in-domain images."""
        return self.normalize(self.generator(self.latents(self.batch_size)))

    def turns(self, batch: Batch) -> Iterator[Turn]:
        with frozen(self.student):
            losses = self.generator_losses(self.generate())
        yield Turn("generator", losses)

        pairs = distillation_batches(
            self.teacher, lambda _: self.generate(), self.student_steps, self.teacher_at_once
        )
        for images, teacher in pairs:
            student = self.student(images)
            yield Turn("student", {"kd": Loss(kl_divergence(student, teacher, self.temperature))})

    def generator_losses(self, fakes: Tensor) -> dict[str, Loss]:
        """What teacher and student say of `fakes` [B, 3, H, W]."""
        losses = {}
        teacher, statistics = self.teacher_bn_stats(fakes)
        if self.adv:
            losses["adv"] = Loss(-kl_divergence(self.student(fakes), teacher), self.adv)
        if self.oh:
            losses["oh"] = Loss(one_hot(teacher), self.oh)
        if self.ie:
            losses["ie"] = Loss(class_balance(teacher, self.log_base, self.gather), self.ie)
        if self.bn:
            losses["bn"] = Loss(batch_norm_distance(statistics, by_layer=False), self.bn)
        return losses

    def synthesize(self, latents: Tensor | None) -> Tensor:
        return self.normalize(self.generator(latents))
