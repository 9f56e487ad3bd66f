"""ZSKT: a generator seeks where student and teacher disagree; the student closes the gap.

Micaelli & Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mosaickd.constraints import Count, NonNegative, Positive
from mosaickd.losses import attention_transfer, kl_divergence
from mosaickd.methods.base import (
    Batch,
    FeatureExtractor,
    GeneratorMethod,
    Loss,
    SourceName,
    Turn,
    frozen,
)


@dataclass(kw_only=True, eq=False)
class ZSKT(GeneratorMethod):
    """One generator turn, then `student_steps` student turns on the same latents.

    The student also imitates where the teacher looks: `attention` weighs the difference of their
    attention maps, stage by stage, so both need the same number of `features`. At 0 the features
    are not taken. `fresh`: each student turn gets fakes of its own (as CMI's version does).
    """

    display_name: ClassVar[str] = "ZSKT"
    source: ClassVar[SourceName | None] = None

    student_features: FeatureExtractor
    teacher_features: FeatureExtractor
    attention: NonNegative = 250.0
    temperature: Positive = 1.0
    student_steps: Count = 10
    fresh: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        stages = len(self.student_features.shapes), len(self.teacher_features.shapes)
        if self.attention and stages[0] != stages[1]:
            raise ValueError(
                f"method.attention compares features stage by stage, but the student has "
                f"{stages[0]} and the teacher {stages[1]}: name as many in student.features as in "
                "teacher.features, or set method.attention=0"
            )

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
        """Return how far the student is from the teacher on `images` [B, 3, H, W]."""
        if not self.attention:
            with torch.no_grad():
                teacher = self.teacher(images)
            kd = kl_divergence(self.student(images), teacher, self.temperature)
            return {"kd": Loss(kd)}
        with torch.no_grad():
            teacher, teacher_features = self.teacher_features(images)
        student, student_features = self.student_features(images)
        return {
            "kd": Loss(kl_divergence(student, teacher, self.temperature)),
            "attention": Loss(
                attention_transfer(student_features, teacher_features), self.attention
            ),
        }
