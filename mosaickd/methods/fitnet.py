"""FitNets: the student's middle stage learns to predict the teacher's.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015; regressor and weight as in
RepDistiller (Tian et al., 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mosaickd.constraints import Count, NonNegative
from mosaickd.losses import kl_divergence
from mosaickd.methods.base import Batch, Distillation, FeatureExtractor, Loss, Turn


@dataclass(kw_only=True, eq=False)
class FitNet(Distillation):
    """KD, and `hint` times the squared error between regressed and real features of one stage.

    stage: which of the models' `features`, counted from 1. The regressor learns beside the
    student, with its optimizer, and is not saved with it.
    """

    display_name: ClassVar[str] = "FitNet"

    student_features: FeatureExtractor
    teacher_features: FeatureExtractor
    hint: NonNegative = 100.0
    stage: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        shapes = self.student_features.shapes, self.teacher_features.shapes
        stages = min(len(shapes[0]), len(shapes[1]))
        if self.stage > stages:
            raise ValueError(
                f"method.stage is {self.stage}, but the models name {stages} stages in "
                "student.features and teacher.features"
            )
        self.regressor = Regressor(shapes[0][self.stage - 1], shapes[1][self.stage - 1])
        self.players = {"student": nn.ModuleList([self.student, self.regressor])}

    def turns(self, batch: Batch) -> Iterator[Turn]:
        (images,) = batch["ood"]
        with torch.no_grad():
            teacher, targets = self.teacher_features(images.pixels)
        student, features = self.student_features(images.pixels)
        regressed = self.regressor(features[self.stage - 1])
        hint = F.mse_loss(regressed.float(), targets[self.stage - 1].float())
        kd = kl_divergence(student, teacher, self.temperature)
        yield Turn("student", {"kd": Loss(kd), "hint": Loss(hint, self.hint)})


class Regressor(nn.Module):
    """Convolution, batch norm, ReLU: from the student's features to the teacher's shape.

    Features [B, *student_shape] -> [B, *teacher_shape]; shapes [C, H, W]. The convolution halves,
    keeps or doubles the size; any other ratio is resized bilinearly after it.
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int]) -> None:
        super().__init__()
        channels, size = student_shape[0], tuple(student_shape[1:])
        outer, self.size = teacher_shape[0], tuple(teacher_shape[1:])
        halved = tuple((side + 1) // 2 for side in size)
        self.conv: nn.Module
        if halved == self.size:
            self.conv = nn.Conv2d(channels, outer, 3, stride=2, padding=1)
        elif self.size == tuple(2 * side for side in size):
            self.conv = nn.ConvTranspose2d(channels, outer, 4, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(channels, outer, 1)
        self.norm = nn.BatchNorm2d(outer)

    def forward(self, features: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(features)))
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        return x
