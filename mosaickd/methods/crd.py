"""CRD: the student's embedding of an image should tell which image the teacher saw.

Tian, Krishnan & Isola, "Contrastive Representation Distillation", ICLR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mosaickd.constraints import Count, Fraction, NonNegative, Positive
from mosaickd.losses import dot_products, kl_divergence, noise_contrast
from mosaickd.methods.base import Batch, Distillation, FeatureExtractor, Loss, Turn


@dataclass(kw_only=True, eq=False)
class CRD(Distillation):
    """KD, and `contrast` times the contrastive loss on projected embeddings, in both directions.

    Every OOD image is its own class: without labels, negatives are `negatives` other images, any.
    Their projections come from a memory of all images, refreshed with `momentum` at each use.
    The projections learn beside the student, with its optimizer.
    """

    display_name: ClassVar[str] = "CRD"

    student_embedding: FeatureExtractor
    teacher_embedding: FeatureExtractor
    rng: torch.Generator
    gather: Callable[[Tensor], Tensor]
    instances: int
    contrast: NonNegative = 0.8
    dim: Count = 128
    negatives: Count = 16384
    contrast_temperature: Positive = 0.07
    momentum: Fraction = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.instances < 2:
            raise ValueError("method=crd contrasts each OOD image with others: one is too few")
        self.project_student = nn.Linear(self.student_embedding.shapes[0][0], self.dim)
        self.project_teacher = nn.Linear(self.teacher_embedding.shapes[0][0], self.dim)
        memory = (self.instances, self.dim, self.contrast_temperature, self.momentum, self.gather)
        self.student_memory = Memory(*memory)
        self.teacher_memory = Memory(*memory)
        self.players = {
            "student": nn.ModuleList(
                [self.student, self.project_student, self.project_teacher,
                 self.student_memory, self.teacher_memory]
            )
        }  # fmt: skip

    def turns(self, batch: Batch) -> Iterator[Turn]:
        (images,) = batch["ood"]
        with torch.no_grad():
            teacher, (teacher_embedding,) = self.teacher_embedding(images.pixels)
        student, (student_embedding,) = self.student_embedding(images.pixels)
        kd = kl_divergence(student, teacher, self.temperature)
        contrast = self.contrastive_loss(student_embedding, teacher_embedding, images.indices)
        yield Turn("student", {"kd": Loss(kd), "contrast": Loss(contrast, self.contrast)})

    def contrastive_loss(self, student: Tensor, teacher: Tensor, indices: Tensor) -> Tensor:
        """Compute the loss in both directions (Eqs. 17 and 18).

        student, teacher: embeddings [B, D_s], [B, D_t] of the images `indices` [B] -> scalar.
        """
        student = F.normalize(self.project_student(student).float(), dim=1)
        teacher = F.normalize(self.project_teacher(teacher).float(), dim=1)
        # Any image but itself: a step of 1 to instances - 1 around the circle of all.
        shape = (len(indices), self.negatives)
        device = indices.device
        step = torch.randint(1, self.instances, shape, generator=self.rng, device=device)
        others = (indices[:, None] + step) % self.instances
        # Each anchor is compared with the memory of the other network's embeddings.
        student_anchors = self.teacher_memory.scores(student, indices, others)
        teacher_anchors = self.student_memory.scores(teacher, indices, others)
        indices = self.gather(indices)  # every process updates with the images of all
        self.student_memory.update(self.gather(student), indices)
        self.teacher_memory.update(self.gather(teacher), indices)
        return noise_contrast(*student_anchors, self.instances) + noise_contrast(
            *teacher_anchors, self.instances
        )


class Memory(nn.Module):
    """One unit vector for each image, and the constant that makes scores probabilities."""

    vectors: Tensor
    total: Tensor

    def __init__(
        self,
        instances: int,
        dim: int,
        temperature: float,
        momentum: float,
        gather: Callable[[Tensor], Tensor] = lambda own: own,
    ) -> None:
        super().__init__()
        bound = math.sqrt(3 / dim)  # entries as if uniform vectors had length 1
        self.register_buffer("vectors", torch.empty(instances, dim).uniform_(-bound, bound))
        self.register_buffer("total", torch.tensor(-1.0))
        self.temperature = temperature
        self.momentum = momentum
        self.gather = gather

    def scores(self, anchors: Tensor, own: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Compute exp(similarity / temperature) / total of each anchor with images of the memory.

        anchors: [B, D]; own: indices [B]; others: indices [B, K] -> [B], [B, K]. The first call
        sets the total, as NCE's authors propose.
        """
        chosen = torch.cat([own[:, None], others], dim=1)
        if len(self.vectors) <= 8 * chosen.shape[1]:
            # Comparing with all is cheaper than gathering K vectors for each of B anchors.
            similarity = dot_products(anchors, self.vectors.clone()).gather(1, chosen)
        else:
            similarity = dot_products(anchors[:, None], self.vectors[chosen])[:, 0]
        scores = (similarity / self.temperature).exp()
        with torch.no_grad():
            estimate = self.gather(scores.mean()[None]).mean() * len(self.vectors)
            self.total.copy_(torch.where(self.total < 0, estimate, self.total))
        scores = scores / self.total.clone()
        return scores[:, 0], scores[:, 1:]

    @torch.no_grad()
    def update(self, vectors: Tensor, indices: Tensor) -> None:
        """Move the memory of the images `indices` [B] towards `vectors` [B, D]."""
        old = self.vectors[indices]
        new = F.normalize(torch.lerp(vectors, old, self.momentum), dim=1)
        self.vectors.index_copy_(0, indices, new)
