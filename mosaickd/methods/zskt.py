"""ZSKT: a generator seeks where student and teacher disagree; the student closes the gap.

Micaelli & Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from mosaickd.constraints import Count, NonNegative, Positive
from mosaickd.losses import attention_transfer, kl_divergence
from mosaickd.methods.base import Batch, FeatureExtractor, Loss, Method, SourceName, Turn, frozen


class ZSKT(Method):
    """One generator turn, then `student_steps` student turns on the same latents.

    The student also imitates where the teacher looks: `attention` weighs the difference of their
    attention maps, stage by stage, so both need the same number of `features`. At 0 the features
    are not taken. `fresh`: each student turn gets fakes of its own (as CMI's version does).
    """

    source: ClassVar[SourceName | None] = None

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module,
        student_features: FeatureExtractor,
        teacher_features: FeatureExtractor,
        generator: nn.Module,
        normalize: Callable[[Tensor], Tensor],
        latents: Callable[[int], Tensor],
        batch_size: int,
        attention: NonNegative = 250.0,
        temperature: Positive = 1.0,
        student_steps: Count = 10,
        fresh: bool = False,
    ) -> None:
        stages = len(student_features.shapes), len(teacher_features.shapes)
        if attention and stages[0] != stages[1]:
            raise ValueError(
                f"method.attention compares features stage by stage, but the student has "
                f"{stages[0]} and the teacher {stages[1]}: name as many in student.features as in "
                "teacher.features, or set method.attention=0"
            )
        self.student = student
        self.teacher = teacher
        self.student_features = student_features
        self.teacher_features = teacher_features
        self.generator = generator
        self.normalize = normalize
        self.latents = latents
        self.batch_size = batch_size
        self.attention = attention
        self.temperature = temperature
        self.student_steps = student_steps
        self.fresh = fresh
        self.players = {"generator": generator, "student": student}
        self.streams = {}

    def turns(self, batch: Batch) -> Iterator[Turn]:
        latents = self.latents(self.batch_size)
        with frozen(self.student):
            images = self.normalize(self.generator(latents))
            disagreement = kl_divergence(self.student(images), self.teacher(images))
        yield Turn("generator", {"adv": Loss(-disagreement)})

        # The generator has moved: the same latents are new images now, the same for all steps.
        for step in range(self.student_steps):
            with torch.no_grad():
                if self.fresh:
                    latents = self.latents(self.batch_size)
                if self.fresh or step == 0:
                    images = self.normalize(self.generator(latents))
            yield Turn("student", self.student_losses(images))

    def student_losses(self, images: Tensor) -> dict[str, Loss]:
        """How far the student is from the teacher on `images` [B, 3, H, W]."""
        if not self.attention:
            with torch.no_grad():
                teacher = self.teacher(images)
            kd = kl_divergence(self.student(images), teacher, self.temperature)
            return {"kd": Loss(kd)}
        with torch.no_grad():
            teacher, teachers = self.teacher_features(images)
        student, students = self.student_features(images)
        return {
            "kd": Loss(kl_divergence(student, teacher, self.temperature)),
            "attention": Loss(attention_transfer(students, teachers), self.attention),
        }

    def synthesize(self, latents: Tensor | None) -> Tensor:
        return self.normalize(self.generator(latents))
