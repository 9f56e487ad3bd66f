"""DAFL: data-free distillation from a generator that the teacher alone guides.

Chen et al., "Data-Free Learning of Student Networks", ICCV 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import ClassVar

from torch import Tensor, nn

from mosaickd.constraints import Count, NonNegative, Positive
from mosaickd.losses import class_balance, kl_divergence, one_hot
from mosaickd.methods.base import (
    Batch,
    FeatureExtractor,
    Loss,
    Method,
    SourceName,
    Turn,
    distillation_batches,
)


class DAFL(Method):
    """One generator turn, then `student_steps` student turns, each on fresh fakes.

    `oh`, `balance` and `act` weigh the generator's losses: the teacher's certainty (Eq. 2), the
    balance of classes (Eq. 4), and the mean size of the teacher's embedding (Eq. 3), which real
    images make large. A term of weight 0 is not computed.
    `teacher_at_once`: see `distillation_batches`.
    """

    source: ClassVar[SourceName | None] = None

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module,
        teacher_embedding: FeatureExtractor,
        generator: nn.Module,
        normalize: Callable[[Tensor], Tensor],
        latents: Callable[[int], Tensor],
        batch_size: int,
        gather: Callable[[Tensor], Tensor] = lambda own: own,
        oh: NonNegative = 1.0,
        balance: NonNegative = 20.0,
        act: NonNegative = 0.001,
        temperature: Positive = 20.0,
        student_steps: Count = 5,
        teacher_at_once: bool | None = None,
    ) -> None:
        if not (oh or balance or act):
            raise ValueError("method.oh, balance and act are all 0: nothing guides the generator")
        self.student = student
        self.teacher = teacher
        self.teacher_embedding = teacher_embedding
        self.generator = generator
        self.normalize = normalize
        self.latents = latents
        self.batch_size = batch_size
        self.gather = gather
        self.oh, self.balance, self.act = oh, balance, act
        self.temperature = temperature
        self.student_steps = student_steps
        self.teacher_at_once = teacher_at_once
        self.players = {"generator": generator, "student": student}
        self.streams = {}

    def generate(self) -> Tensor:
        """-> a fresh batch of fakes [B, 3, H, W], normalised as in-domain images."""
        return self.normalize(self.generator(self.latents(self.batch_size)))

    def turns(self, batch: Batch) -> Iterator[Turn]:
        yield Turn("generator", self.generator_losses(self.generate()))

        pairs = distillation_batches(
            self.teacher, lambda _: self.generate(), self.student_steps, self.teacher_at_once
        )
        for images, teacher in pairs:
            student = self.student(images)
            yield Turn("student", {"kd": Loss(kl_divergence(student, teacher, self.temperature))})

    def generator_losses(self, fakes: Tensor) -> dict[str, Loss]:
        """What the teacher says of `fakes` [B, 3, H, W]."""
        losses = {}
        teacher, (embedding,) = self.teacher_embedding(fakes)
        if self.oh:
            losses["oh"] = Loss(one_hot(teacher), self.oh)
        if self.balance:
            losses["balance"] = Loss(class_balance(teacher, math.e, self.gather), self.balance)
        if self.act:
            losses["act"] = Loss(-embedding.float().abs().mean(), self.act)
        return losses

    def synthesize(self, latents: Tensor | None) -> Tensor:
        return self.normalize(self.generator(latents))
