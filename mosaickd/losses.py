"""The equations: pure functions of tensors.

Equation numbers without a name are those of Fang et al., "Mosaicking to Distill: Knowledge
Distillation from Out-of-Domain Data", NeurIPS 2021. Logits may come in bfloat16 from autocast;
every function computes in float32, because differences of log-probabilities lose their meaning in
8 bits.

Where one formula can be rounded in several ways, it stands here as the reference rounds it: a few
steps at rate 0.1 amplify the last bit of a loss until 0.2 % of the student's weights differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: A probability that underflows to 0 has a finite p log p, but its gradient is NaN.
TINY = torch.finfo(torch.float32).tiny


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean cross-entropy. logits: [B, C]; labels: class indices [B] -> scalar."""
    return F.cross_entropy(logits.float(), labels)


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute KL(teacher || student) of softened probabilities, times T² (Hinton et al., 2015).

    student, teacher: logits [B, C] -> scalar, summed over classes and averaged over the batch.
    """
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    p = F.softmax(teacher.float() / temperature, dim=1).clamp_min(TINY)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def entropy(logits: Tensor) -> Tensor:
    """Compute the entropy of each prediction in nats, finite where p = 0. logits: [B, C] -> [B]."""
    logits = logits.float()
    return -(F.softmax(logits, dim=1) * F.log_softmax(logits, dim=1)).sum(dim=1)


def label_alignment(teacher: Tensor) -> Tensor:
    """Make images ones the teacher is sure about (Eq. 4): mean entropy in nats.

    teacher: logits [B, C] -> scalar. The soft form, no argmax, as the authors' code has it.
    """
    return entropy(teacher).mean()


def one_hot(teacher: Tensor) -> Tensor:
    """Make images ones the teacher is sure about, the hard way: CE(t, argmax t) (DAFL, Eq. 2).

    teacher: logits [B, C] -> scalar.
    """
    return cross_entropy(teacher, teacher.argmax(dim=1))


def class_balance(
    teacher: Tensor, base: float = 2.0, gather: Callable[[Tensor], Tensor] = lambda own: own
) -> Tensor:
    """Keep the generator from collapsing to few classes (appendix): Σ p̄ log p̄.

    teacher: logits [B, C] -> scalar, the negative entropy of the mean prediction p̄. Base 2 here
    and e in `label_alignment` is the authors' choice; the weights of the paper assume it. Their
    DFQ has base 10, DAFL has e.

    gather: [n, C] -> [world * n, C], of all processes whose gradients are averaged. p̄ is then the
    mean over all their images, and its gradient what makes that average right.
    """
    mean = F.softmax(teacher.float(), dim=1).mean(dim=0)
    mean_of_all = gather(mean.detach()[None]).mean(dim=0)
    mean = (mean + (mean_of_all - mean.detach())).clamp_min(TINY)
    return torch.special.xlogy(mean, mean).sum() / math.log(base)


def patch_gan_loss(logits: Tensor, authentic: bool) -> Tensor:
    """Compute the cross-entropy of the patch discriminator (Eqs. 2 and 3).

    logits: [B, 1, h, w]; authentic: the target of all patches -> scalar. Summed over the h x w
    patches and divided by the batch alone, as the authors' code does: with 8 x 8 patches it is 64
    times a mean.
    """
    logits = logits.float()
    target = torch.full_like(logits, float(authentic))
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)


# ------------------------------------------------------------------------ data-free distillation


def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the symmetric disagreement, 0 to ln 2 (Yin et al., DeepInversion, 2020, Eq. 9).

    student, teacher: logits [B, C] -> scalar, averaged over the batch.
    """
    p = F.softmax(student.float() / temperature, dim=1).clamp_min(TINY)
    q = F.softmax(teacher.float() / temperature, dim=1).clamp_min(TINY)
    log_mean = ((p + q) / 2).log()
    from_p, from_q = (F.kl_div(log_mean, one, reduction="batchmean") for one in (p, q))
    return (from_p + from_q) / 2


def total_variation(images: Tensor) -> Tensor:
    """Add up the mean absolute difference of neighbouring pixels in four directions.

    images: [B, C, H, W] -> scalar.
    """
    right = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    down_left = images[..., 1:, :-1] - images[..., :-1, 1:]
    down_right = images[..., 1:, 1:] - images[..., :-1, :-1]
    return sum((d.abs().mean() for d in (right, down, down_left, down_right)), images.new_zeros(()))


def statistics_distance(
    batch: Sequence[Tensor], running: Sequence[Tensor], by_layer: bool
) -> Tensor:
    """Compute how far a batch's statistics lie from a network's running ones: ‖μ - μ̂‖.

    Pairs of [C_l] -> scalar. by_layer: the sum of the layers' norms (DeepInversion, Eq. 4);
    otherwise the norm of all layers' concatenated differences (DFQ, as the authors have it).
    """
    differences = [b.float() - r.float() for b, r in zip(batch, running, strict=True)]
    if by_layer:
        return torch.stack([torch.linalg.vector_norm(d) for d in differences]).sum()
    return torch.linalg.vector_norm(torch.cat(differences))


def batch_norm_distance(
    statistics: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], by_layer: bool
) -> Tensor:
    """Add up the distances of a batch's means and variances from those of each batch norm.

    statistics: (mean, var, running_mean, running_var), [C_l] each -> scalar.
    """
    mean, var, running_mean, running_var = zip(*statistics, strict=True)
    return statistics_distance(mean, running_mean, by_layer) + statistics_distance(
        var, running_var, by_layer
    )


def attention_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum the mean squared differences of attention maps over stages (Zagoruyko & Komodakis, 2017).

    Pairs of features [B, C, H, W], channels and sizes may differ -> scalar. A map is the mean
    square over channels, normalised to length 1 as one vector an image; the larger features of
    two are averaged down to the smaller first, as RepDistiller does.
    """
    total = []
    for one, other in zip(student, teacher, strict=True):
        height, width = (min(a, b) for a, b in zip(one.shape[2:], other.shape[2:], strict=True))
        maps = []
        for features in (one, other):
            features = features.float()
            if features.shape[2:] != (height, width):
                features = F.adaptive_avg_pool2d(features, (height, width))
            maps.append(F.normalize(features.pow(2).mean(dim=1).flatten(1), dim=1))
        total.append((maps[0] - maps[1]).pow(2).mean())
    return torch.stack(total).sum()


# --------------------------------------------------------------- features and relations of images


def pairwise_distances(embedding: Tensor) -> Tensor:
    """Compute Euclidean distances over their mean over distinct images. [B, D] -> [B, B]."""
    embedding = embedding.float()
    square = embedding.pow(2).sum(dim=1)
    squared = square[:, None] + square[None, :] - 2 * dot_products(embedding, embedding)
    # The root has no gradient at 0, where the diagonal lies.
    off = ~torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
    distances = torch.where(off, squared.clamp_min(1e-12), 1.0).sqrt() * off
    return distances / (distances.sum() / off.sum()).clamp_min(1e-12)


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Keep the distances between images (Park et al., RKD, 2019, Eq. 8).

    student, teacher: embeddings [B, D_s], [B, D_t] -> scalar.
    """
    return F.smooth_l1_loss(pairwise_distances(student), pairwise_distances(teacher))


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Keep the angles that triples of images form (Park et al., RKD, 2019, Eq. 11).

    student, teacher: embeddings [B, D_s], [B, D_t] -> scalar. Holds two tensors [B, B, B].
    """

    def cosines(embedding: Tensor) -> Tensor:
        embedding = embedding.float()
        lines = embedding[None, :] - embedding[:, None]
        # Images that coincide have no direction; its gradient would be 1e12 times that of others.
        apart = lines.pow(2).sum(dim=2, keepdim=True) > 1e-6
        directions = F.normalize(torch.where(apart, lines, 0.0), dim=2)
        return dot_products(directions, directions)

    return F.smooth_l1_loss(cosines(student), cosines(teacher))


def cosine_similarities(one: Tensor, other: Tensor) -> Tensor:
    """Compute the cosine of every row with every row. [N, D], [M, D] -> [N, M]."""
    return dot_products(F.normalize(one.float(), dim=1), F.normalize(other.float(), dim=1))


def dot_products(one: Tensor, other: Tensor) -> Tensor:
    """Multiply every row with every row, in float32 where autocast would take 8 bits.

    [..., N, D], [..., M, D] -> [..., N, M].
    """
    with torch.autocast(one.device.type, enabled=False):
        return one.float() @ other.float().transpose(-2, -1)


def noise_contrast(positive: Tensor, negatives: Tensor, instances: int) -> Tensor:
    """Tell an image's own partner from `K` random ones (Tian et al., CRD, 2020, Eq. 18).

    positive: [B], negatives: [B, K], both normalised scores; instances: how many images there
    are -> scalar, averaged over the batch.
    """
    noise = negatives.shape[1] / instances
    log_positive = (positive / (positive + noise + 1e-7)).log()
    log_negatives = (noise / (negatives + noise + 1e-7)).log().sum(dim=1)
    return -(log_positive + log_negatives).mean()
