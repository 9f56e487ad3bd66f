"""DAFL: data-free distillation from a generator that the teacher alone guides.

Chen et al., "Data-Free Learning of Student Networks", ICCV 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mosaickd.constraints import Count, NonNegative, Positive
from mosaickd.losses import class_balance, kl_divergence, one_hot
from mosaickd.methods.base import (
    Batch,
    FeatureExtractor,
    GeneratorMethod,
    Loss,
    SourceName,
    Turn,
    distillation_batches,
)


@dataclass(kw_only=True, eq=False)
class DAFL(GeneratorMethod):
    """One generator turn, then `student_steps` student turns, each on fresh fakes.

    `oh`, `balance` and `act` weigh the generator's losses: the teacher's certainty (Eq. 2), the
    balance of classes (Eq. 4), and the mean size of the teacher's embedding (Eq. 3), which real
    images make large. A term of weight 0 is not computed.
    `teacher_at_once`: see `distillation_batches`.
    """

    display_name: ClassVar[str] = "DAFL"
    source: ClassVar[SourceName | None] = None

    teacher_embedding: FeatureExtractor
    gather: Callable[[Tensor], Tensor] = lambda own: own
    oh: NonNegative = 1.0
    balance: NonNegative = 20.0
    act: NonNegative = 0.001
    temperature: Positive = 20.0
    student_steps: Count = 5
    teacher_at_once: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.oh or self.balance or self.act):
            raise ValueError("method.oh, balance and act are all 0: nothing guides the generator")

    def turns(self, batch: Batch) -> Iterator[Turn]:
        yield Turn("generator", self.generator_losses(self.generate()))

        pairs = distillation_batches(
            self.teacher, lambda _: self.generate(), self.student_steps, self.teacher_at_once
        )
        for images, teacher in pairs:
            student = self.student(images)
            yield Turn("student", {"kd": Loss(kl_divergence(student, teacher, self.temperature))})

    def generator_losses(self, fakes: Tensor) -> dict[str, Loss]:
        """Return the losses of `fakes` [B, 3, H, W], which the teacher judges."""
        losses = {}
        teacher, (embedding,) = self.teacher_embedding(fakes)
        if self.oh:
            losses["oh"] = Loss(one_hot(teacher), self.oh)
        if self.balance:
            losses["balance"] = Loss(class_balance(teacher, math.e, self.gather), self.balance)
        if self.act:
            losses["act"] = Loss(-embedding.float().abs().mean(), self.act)
        return losses
