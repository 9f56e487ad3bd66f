"""The equations: pure functions of tensors.

Equation numbers are those of Fang et al., "Mosaicking to Distill: Knowledge Distillation from
Out-of-Domain Data", NeurIPS 2021. Logits may come in bfloat16 from autocast; every function
computes in float32, because differences of log-probabilities lose their meaning in 8 bits.

Where one formula can be rounded in several ways, it stands here as the reference rounds it: a few
steps at rate 0.1 amplify the last bit of a loss until 0.2 % of the student's weights differ.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: A probability that underflows to 0 has a finite p log p, but its gradient is NaN.
TINY = torch.finfo(torch.float32).tiny


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy. logits: [B, C], labels: [B] class indices -> scalar."""
    return F.cross_entropy(logits.float(), labels)


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of softened probabilities, times T² (Hinton et al., 2015).

    student, teacher: logits [B, C] -> scalar, summed over classes and averaged over the batch.
    """
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    p = F.softmax(teacher.float() / temperature, dim=1).clamp_min(TINY)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each prediction in nats. logits: [B, C] -> [B]; finite where p = 0."""
    logits = logits.float()
    return -(F.softmax(logits, dim=1) * F.log_softmax(logits, dim=1)).sum(dim=1)


def label_alignment(teacher: Tensor) -> Tensor:
    """Make images ones the teacher is sure about (Eq. 4): mean entropy in nats.

    teacher: logits [B, C] -> scalar. The soft form, no argmax, as the authors' code has it.
    """
    return entropy(teacher).mean()


def class_balance(teacher: Tensor) -> Tensor:
    """Keep the generator from collapsing to few classes (appendix): Σ p̄ log2 p̄ in bits.

    teacher: logits [B, C] -> scalar, the negative entropy of the mean prediction p̄. Base 2 here
    and e in `label_alignment` is the authors' choice; the weights of the paper assume it.
    """
    mean = F.softmax(teacher.float(), dim=1).mean(dim=0).clamp_min(TINY)
    return torch.special.xlogy(mean, mean).sum() / math.log(2)


def patches_judged(logits: Tensor, authentic: bool) -> Tensor:
    """Cross-entropy of the patch discriminator's verdicts (Eqs. 2 and 3).

    logits: [B, 1, h, w] -> scalar. Summed over the h x w patches and divided by the batch alone,
    as the authors' code does: with 8 x 8 patches it is 64 times a mean.
    """
    logits = logits.float()
    target = torch.full_like(logits, float(authentic))
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)
