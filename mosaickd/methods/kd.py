"""Vanilla knowledge distillation on unlabelled images ("Blind KD" on OOD data)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from mosaickd.constraints import Positive
from mosaickd.losses import kl_divergence
from mosaickd.methods.base import Batch, Loss, Method, SourceName, Stream, Turn


class KD(Method):
    """The student imitates the teacher's softened predictions (Hinton et al., 2015).

    The reference gives OOD images the in-domain augmentation and statistics. `ood=` may name the
    teacher's own data set: that is the paper's "KD on original data".
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
        self.streams = {"ood": Stream("ood", augment=True, statistics=ood_statistics)}

    def turns(self, batch: Batch) -> Iterator[Turn]:
        (images,) = batch["ood"]
        with torch.no_grad():
            teacher = self.teacher(images.pixels)
        student = self.student(images.pixels)
        yield Turn("student", {"kd": Loss(kl_divergence(student, teacher, self.temperature))})
