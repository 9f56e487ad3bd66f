"""RKD: distances and angles between images, as the teacher sees them.

Park et al., "Relational Knowledge Distillation", CVPR 2019; weights as in RepDistiller (Tian et
al., 2020).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from mosaickd.constraints import NonNegative, Positive
from mosaickd.losses import kl_divergence, relational_angle, relational_distance
from mosaickd.methods.base import Batch, FeatureExtractor, Loss, Method, SourceName, Stream, Turn


class RKD(Method):
    """KD, and the relations of embeddings within a batch, weighed by `distance` and `angle`."""

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module,
        student_embedding: FeatureExtractor,
        teacher_embedding: FeatureExtractor,
        distance: NonNegative = 25.0,
        angle: NonNegative = 50.0,
        temperature: Positive = 5.0,
        ood_statistics: SourceName = "dataset",
    ) -> None:
        self.student_embedding = student_embedding
        self.teacher_embedding = teacher_embedding
        self.distance, self.angle = distance, angle
        self.temperature = temperature
        self.players = {"student": student}
        self.streams = {"ood": Stream("ood", augment=True, statistics=ood_statistics)}

    def turns(self, batch: Batch) -> Iterator[Turn]:
        (images,) = batch["ood"]
        with torch.no_grad():
            teacher, (theirs,) = self.teacher_embedding(images.pixels)
        student, (ours,) = self.student_embedding(images.pixels)
        losses = {"kd": Loss(kl_divergence(student, teacher, self.temperature))}
        if self.distance:
            losses["distance"] = Loss(relational_distance(ours, theirs), self.distance)
        if self.angle:
            losses["angle"] = Loss(relational_angle(ours, theirs), self.angle)
        yield Turn("student", losses)
