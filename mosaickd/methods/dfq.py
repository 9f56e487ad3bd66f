"""DFQ: data-free distillation with a generator that pleases the teacher and defies the student.

Choi et al., "Data-Free Network Quantization With Adversarial Knowledge Distillation", 2020, as
the authors of MosaicKD run it ("DFQAD").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mosaickd.constraints import Count, LogBase, NonNegative, Positive
from mosaickd.losses import batch_norm_distance, class_balance, kl_divergence, one_hot
from mosaickd.methods.base import (
    Batch,
    BatchNormStatsHook,
    GeneratorMethod,
    Loss,
    SourceName,
    Turn,
    distillation_batches,
    frozen,
)


@dataclass(kw_only=True, eq=False)
class DFQ(GeneratorMethod):
    """One generator turn, then `student_steps` student turns, each on fresh fakes.

    `adv`, `oh`, `ie` and `bn` weigh the generator's four losses: the student's disagreement, the
    teacher's certainty, the balance of classes (its logarithm has base `log_base`), and how far
    the statistics in the teacher lie from those of its training images. A term of weight 0 is
    not computed. `teacher_at_once`: see `distillation_batches`.
    """

    display_name: ClassVar[str] = "DFQ"
    source: ClassVar[SourceName | None] = None

    teacher_bn_stats: BatchNormStatsHook
    gather: Callable[[Tensor], Tensor] = lambda own: own
    adv: NonNegative = 1.0
    oh: NonNegative = 1.0
    ie: NonNegative = 20.0
    bn: NonNegative = 1.0
    log_base: LogBase = 10.0
    temperature: Positive = 1.0
    student_steps: Count = 5
    teacher_at_once: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.adv or self.oh or self.ie or self.bn):
            raise ValueError("method.adv, oh, ie and bn are all 0: nothing guides the generator")

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
        """Return the losses of `fakes` [B, 3, H, W], which teacher and student judge."""
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
