"""Distillation on class-balanced OOD images.

Nayak et al., "Effectiveness of Arbitrary Transfer Sets for Data-free Knowledge Distillation",
WACV 2021.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from mosaickd.constraints import Positive
from mosaickd.losses import kl_divergence
from mosaickd.methods.base import Batch, Loss, Method, SourceName, Stream, Turn


class Balanced(Method):
    """Vanilla KD, on batches in which all classes that the teacher sees come equally often.

    Each OOD image belongs to the class that the teacher takes it for; a class is drawn first,
    then one of its images: those of rare classes are drawn more often.
    """

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module,
        temperature: Positive = 5.0,
        ood_statistics: SourceName = "dataset",
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.temperature = temperature
        self.players = {"student": student}
        self.streams = {
            "ood": Stream("ood", augment=True, statistics=ood_statistics, balanced=True)
        }

    def turns(self, batch: Batch) -> Iterator[Turn]:
        (images,) = batch["ood"]
        with torch.no_grad():
            teacher = self.teacher(images.pixels)
        student = self.student(images.pixels)
        yield Turn("student", {"kd": Loss(kl_divergence(student, teacher, self.temperature))})
