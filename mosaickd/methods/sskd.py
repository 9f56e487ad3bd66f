"""SSKD: the student also learns how the teacher relates rotated images to upright ones.

Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mosaickd.constraints import Fraction, NonNegative, Positive
from mosaickd.losses import cosine_similarities, cross_entropy, kl_divergence
from mosaickd.methods.base import Batch, Distillation, FeatureExtractor, Loss, Turn


@dataclass(kw_only=True, eq=False)
class SSKD(Distillation):
    """First the teacher's self-supervision head learns, for `head_fraction` of the iterations:
    to find an upright image by a rotated copy. Then the student learns from the teacher's
    predictions on upright (`kd`) and rotated images (`tf`), and from the head's similarities
    between them (`ss`).

    Where the teacher errs it is followed less: of the rotated images that it predicts otherwise
    than upright ones the share `keep_tf` is used, of those that its head assigns to a wrong image
    `keep_ss`, best ranked first. Without labels, the teacher's prediction for the upright image
    counts as right.
    """

    display_name: ClassVar[str] = "SSKD"
    graph_capturable: ClassVar[bool] = False  # it plays in two phases

    student_embedding: FeatureExtractor
    teacher_embedding: FeatureExtractor
    steps: int
    kd: NonNegative = 1.0
    tf: NonNegative = 2.7
    ss: NonNegative = 10.0
    temperature: Positive = 4.0
    tf_temperature: Positive = 4.0
    ss_temperature: Positive = 0.5
    keep_tf: Fraction = 1.0
    keep_ss: Fraction = 0.75
    head_fraction: Fraction = 60 / 260

    def __post_init__(self) -> None:
        super().__post_init__()
        self.head_steps = round(self.head_fraction * self.steps)
        self.head = projection(self.teacher_embedding.shapes[0][0])
        self.student_head = projection(self.student_embedding.shapes[0][0])
        self.players = {
            "head": self.head,
            "student": nn.ModuleList([self.student, self.student_head]),
        }
        self.iteration = 0

    def iterations(self, player: str, steps: int) -> int:
        return self.head_steps if player == "head" else steps - self.head_steps

    def turns(self, batch: Batch) -> Iterator[Turn]:
        (images,) = batch["ood"]
        rotated = torch.cat([images.pixels.rot90(k, (2, 3)) for k in range(4)])
        with torch.no_grad():
            teacher, (embedding,) = self.teacher_embedding(rotated)
        count = len(images.pixels)
        if self.iteration < self.head_steps:
            similarity = similarities(self.head(embedding), count)
            loss = cross_entropy(similarity, upright(count, similarity.device))
            yield Turn("head", {"contrast": Loss(loss)})
        else:
            with torch.no_grad():
                similarity = similarities(self.head(embedding), count)
            yield Turn("student", self.student_losses(rotated, teacher, similarity))
        self.iteration += 1

    def student_losses(
        self, rotated: Tensor, teacher: Tensor, similarity: Tensor
    ) -> dict[str, Loss]:
        """Return the student's three losses.

        rotated: images [4B, 3, H, W], the upright ones first; teacher: their logits [4B, C];
        similarity: of the teacher's head, [3B, B].
        """
        count = len(rotated) // 4
        student, (embedding,) = self.student_embedding(rotated)
        losses = {
            "kd": Loss(kl_divergence(student[:count], teacher[:count], self.temperature), self.kd)
        }
        if self.tf:
            predicted = teacher[:count].argmax(dim=1).repeat(3)
            mask = rank_filter(teacher[count:], predicted, self.keep_tf)
            loss = filtered_kl(student[count:], teacher[count:], mask, self.tf_temperature)
            losses["tf"] = Loss(loss, self.tf)
        if self.ss:
            own = similarities(self.student_head(embedding), count)
            mask = rank_filter(similarity, upright(count, similarity.device), self.keep_ss)
            loss = filtered_kl(own, similarity, mask, self.ss_temperature)
            losses["ss"] = Loss(loss, self.ss)
        return losses

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]


def projection(dim: int) -> nn.Module:
    """Build a self-supervision head, [B, dim] -> [B, dim]."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, dim))


def similarities(projected: Tensor, count: int) -> Tensor:
    """Compute the cosine of each rotated image with each upright one.

    projected: [4B, D], the `count` = B upright ones first -> [3B, B].
    """
    return cosine_similarities(projected[count:], projected[:count])


def upright(count: int, device: torch.device) -> Tensor:
    """Return the upright image of each rotated one. -> indices [3 * count]."""
    return torch.arange(count, device=device).repeat(3)


def rank_filter(scores: Tensor, right: Tensor, keep: float) -> Tensor:
    """Select the rows to trust: all whose highest score is the right one, and of the others the
    share `keep` in which it ranks best. scores: [N, K]; right: indices [N] -> bool [N].

    Counts stay on the device: no number is read here.
    """
    own = scores.gather(1, right[:, None])
    rank = (scores > own).sum(dim=1)
    order = rank.argsort(stable=True)
    place = order.argsort()  # of a permutation: its inverse
    wrong = (rank > 0).sum()
    return place < len(rank) - wrong + (wrong * keep).floor()


def filtered_kl(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Compute KL(teacher || student) over the rows in `mask`, times T².

    student, teacher: logits [N, K]; mask: bool [N] -> scalar, 0 where no row is selected.
    """
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    each = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)
    return (each * mask).sum() / mask.sum().clamp_min(1) * temperature**2
