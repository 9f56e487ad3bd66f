"""RKD: distances and angles between images, as the teacher sees them.

Park et al., "Relational Knowledge Distillation", CVPR 2019; weights as in RepDistiller (Tian et
al., 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mosaickd.constraints import NonNegative
from mosaickd.losses import kl_divergence, relational_angle, relational_distance
from mosaickd.methods.base import Batch, Distillation, FeatureExtractor, Loss, Turn


@dataclass(kw_only=True, eq=False)
class RKD(Distillation):
    """KD, and the relations of embeddings within a batch: `distance` weighs those of pairs
    (Eq. 8), `angle` those of triples (Eq. 11). A term of weight 0 is not computed.
    """

    display_name: ClassVar[str] = "RKD"

    student_embedding: FeatureExtractor
    teacher_embedding: FeatureExtractor
    distance: NonNegative = 25.0
    angle: NonNegative = 50.0

    def turns(self, batch: Batch) -> Iterator[Turn]:
        (images,) = batch["ood"]
        with torch.no_grad():
            teacher, (target,) = self.teacher_embedding(images.pixels)
        student, (embedding,) = self.student_embedding(images.pixels)
        losses = {"kd": Loss(kl_divergence(student, teacher, self.temperature))}
        if self.distance:
            losses["distance"] = Loss(relational_distance(embedding, target), self.distance)
        if self.angle:
            losses["angle"] = Loss(relational_angle(embedding, target), self.angle)
        yield Turn("student", losses)
