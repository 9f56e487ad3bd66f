"""CRD: the student's embedding of an image should tell which image the teacher saw.

Tian, Krishnan & Isola, "Contrastive Representation Distillation", ICLR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mosaickd.constraints import Count, Fraction, NonNegative, Positive
from mosaickd.losses import dot_products, kl_divergence, noise_contrast
from mosaickd.methods.base import Batch, FeatureExtractor, Loss, Method, SourceName, Stream, Turn


class CRD(Method):
    """KD, and `contrast` times the contrastive loss on projected embeddings, in both directions.

    Every OOD image is its own class: without labels, negatives are `negatives` other images, any.
    Their projections come from a memory of all images, refreshed with `momentum` as each is seen.
    The projections learn beside the student, with its optimizer.
    """

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module,
        student_embedding: FeatureExtractor,
        teacher_embedding: FeatureExtractor,
        rng: torch.Generator,
        gather: Callable[[Tensor], Tensor],
        instances: int,
        contrast: NonNegative = 0.8,
        dim: Count = 128,
        negatives: Count = 16384,
        contrast_temperature: Positive = 0.07,
        momentum: Fraction = 0.5,
        temperature: Positive = 5.0,
        ood_statistics: SourceName = "dataset",
    ) -> None:
        if instances < 2:
            raise ValueError("method=crd contrasts each OOD image with others: one is too few")
        self.student_embedding = student_embedding
        self.teacher_embedding = teacher_embedding
        self.rng = rng
        self.gather = gather
        self.instances = instances
        self.contrast = contrast
        self.negatives = negatives
        self.temperature = temperature
        self.project_student = nn.Linear(student_embedding.shapes[0][0], dim)
        self.project_teacher = nn.Linear(teacher_embedding.shapes[0][0], dim)
        self.of_student = Memory(instances, dim, contrast_temperature, momentum, gather)
        self.of_teacher = Memory(instances, dim, contrast_temperature, momentum, gather)
        self.players = {
            "student": nn.ModuleList(
                [student, self.project_student, self.project_teacher,
                 self.of_student, self.of_teacher]
            )
        }  # fmt: skip
        self.streams = {"ood": Stream("ood", augment=True, statistics=ood_statistics)}

    def turns(self, batch: Batch) -> Iterator[Turn]:
        (images,) = batch["ood"]
        with torch.no_grad():
            teacher, (theirs,) = self.teacher_embedding(images.pixels)
        student, (ours,) = self.student_embedding(images.pixels)
        kd = kl_divergence(student, teacher, self.temperature)
        contrast = self.contrastive_loss(ours, theirs, images.indices)
        yield Turn("student", {"kd": Loss(kd), "contrast": Loss(contrast, self.contrast)})

    def contrastive_loss(self, student: Tensor, teacher: Tensor, indices: Tensor) -> Tensor:
        """student, teacher: embeddings [B, D_s], [B, D_t] of the images `indices` [B] -> scalar."""
        ours = F.normalize(self.project_student(student).float(), dim=1)
        theirs = F.normalize(self.project_teacher(teacher).float(), dim=1)
        # Any image but itself: a step of 1 to instances - 1 around the circle of all.
        shape = (len(indices), self.negatives)
        device = indices.device
        step = torch.randint(1, self.instances, shape, generator=self.rng, device=device)
        others = (indices[:, None] + step) % self.instances
        # Each anchor is compared with what is remembered of the other network's embeddings.
        student_anchors = self.of_teacher.scores(ours, indices, others)
        teacher_anchors = self.of_student.scores(theirs, indices, others)
        indices = self.gather(indices)  # every process remembers what all have seen
        self.of_student.remember(self.gather(ours), indices)
        self.of_teacher.remember(self.gather(theirs), indices)
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
        """exp(similarity / temperature) / total. anchors: [B, D]; own: [B] and others: [B, K]
        indices -> [B], [B, K]. The first call sets the total, as NCE's authors propose."""
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
    def remember(self, vectors: Tensor, indices: Tensor) -> None:
        """Move the memory of these images towards `vectors` [B, D]."""
        old = self.vectors[indices]
        new = F.normalize(torch.lerp(vectors, old, self.momentum), dim=1)
        self.vectors.index_copy_(0, indices, new)
