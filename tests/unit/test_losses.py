"""The equations, against formulas written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mosaickd.losses import (
    class_balance,
    cross_entropy,
    entropy,
    kl_divergence,
    label_alignment,
    patch_gan_loss,
)

BATCH, CLASSES = 6, 10


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """A student's and a teacher's, [B, C]."""
    rng = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(BATCH, CLASSES, generator=rng)
    teacher = 4 * torch.randn(BATCH, CLASSES, generator=rng)
    return student, teacher


def probabilities(logits: Tensor, temperature: float = 1.0) -> list[list[float]]:
    """Softmax, one number at a time."""
    rows = []
    for row in (logits.double() / temperature).tolist():
        powers = [math.exp(value - max(row)) for value in row]
        rows.append([power / sum(powers) for power in powers])
    return rows


def test_cross_entropy_is_the_mean_surprise_at_the_label(logits: tuple[Tensor, Tensor]) -> None:
    student, _ = logits
    labels = torch.tensor([0, 3, 9, 1, 1, 5])
    rows = zip(probabilities(student), labels.tolist(), strict=True)
    expected = sum(-math.log(p[label]) for p, label in rows) / BATCH
    assert cross_entropy(student, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_sums_over_classes_averages_over_the_batch_and_scales_by_temperature_squared(
    logits: tuple[Tensor, Tensor], temperature: float
) -> None:
    student, teacher = logits
    pairs = zip(
        probabilities(teacher, temperature), probabilities(student, temperature), strict=True
    )
    nats = [p * math.log(p / q) for ps, qs in pairs for p, q in zip(ps, qs, strict=True)]
    expected = sum(nats) / BATCH * temperature**2
    actual = kl_divergence(student, teacher, temperature).item()
    assert actual == pytest.approx(expected, rel=1e-5)


def test_kl_takes_the_teacher_as_the_truth(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    assert kl_divergence(student, student).item() == pytest.approx(0, abs=1e-6)
    forward, reverse = kl_divergence(student, teacher), kl_divergence(teacher, student)
    assert abs(float(forward - reverse)) > 0.1, "KL is not symmetric: an exchange would show"


def test_entropy_is_in_nats_and_one_number_an_image(logits: tuple[Tensor, Tensor]) -> None:
    _, teacher = logits
    expected = [-sum(p * math.log(p) for p in row) for row in probabilities(teacher)]
    assert entropy(teacher).tolist() == pytest.approx(expected, rel=1e-5)
    assert entropy(torch.zeros(1, CLASSES)).item() == pytest.approx(math.log(CLASSES))


def test_label_alignment_is_the_soft_mean_entropy(logits: tuple[Tensor, Tensor]) -> None:
    _, teacher = logits
    expected = -sum(p * math.log(p) for row in probabilities(teacher) for p in row) / BATCH
    assert label_alignment(teacher).item() == pytest.approx(expected, rel=1e-5)


def test_class_balance_is_in_bits_of_the_mean_prediction(logits: tuple[Tensor, Tensor]) -> None:
    _, teacher = logits
    rows = probabilities(teacher)
    mean = [sum(row[c] for row in rows) / BATCH for c in range(CLASSES)]
    expected = sum(p * math.log2(p) for p in mean)
    assert class_balance(teacher).item() == pytest.approx(expected, rel=1e-5)
    assert class_balance(torch.zeros(4, 8)).item() == pytest.approx(-3.0)  # 8 classes: 3 bits


@pytest.mark.parametrize("authentic", [True, False])
def test_patches_are_summed_and_divided_by_the_batch_alone(authentic: bool) -> None:
    logits = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    sign = -1 if authentic else 1
    softplus = [math.log1p(math.exp(sign * value)) for value in logits.double().flatten().tolist()]
    expected = sum(softplus) / 5
    assert patch_gan_loss(logits, authentic=authentic).item() == pytest.approx(expected, rel=1e-5)


def test_an_undecided_patch_costs_ln_2() -> None:
    assert patch_gan_loss(torch.zeros(3, 1, 8, 8), True).item() == pytest.approx(64 * math.log(2))


SURE = torch.tensor([[300.0, 0.0, -300.0], [250.0, 0.0, 0.0]])  # probabilities of exactly 0
UNSURE = torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.3, 0.2]])

OF_THE_TEACHER: dict[str, Callable[[Tensor], Tensor]] = {
    "label_alignment": label_alignment,
    "class_balance": class_balance,
    "kl_divergence": lambda teacher: kl_divergence(UNSURE, teacher),
}


@pytest.mark.parametrize("name", OF_THE_TEACHER)
def test_values_and_gradients_are_finite_where_a_probability_is_0(name: str) -> None:
    teacher = SURE.clone().requires_grad_()
    value = OF_THE_TEACHER[name](teacher)
    value.backward()
    assert teacher.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(teacher.grad).all(), teacher.grad


def test_a_student_that_is_surely_wrong_gets_a_finite_gradient() -> None:
    student = SURE.clone().requires_grad_()
    value = kl_divergence(student, SURE.flip(1))
    value.backward()
    assert student.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() > 0.1


@pytest.mark.parametrize("name", OF_THE_TEACHER)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    """In float32, as the functions compute: a coarse step, and a tolerance to match."""
    teacher = UNSURE.clone().requires_grad_()
    OF_THE_TEACHER[name](3 * teacher).backward()
    assert teacher.grad is not None
    numeric = torch.zeros_like(UNSURE)
    for index in range(UNSURE.numel()):
        step = torch.zeros(UNSURE.numel())
        step[index] = 1e-2
        step = step.view_as(UNSURE)
        high, low = (OF_THE_TEACHER[name](3 * (UNSURE + s)).item() for s in (step, -step))
        numeric.view(-1)[index] = (high - low) / 2e-2
    assert torch.allclose(teacher.grad, numeric, atol=5e-3), (teacher.grad, numeric)


def test_bfloat16_logits_are_computed_with_in_float32(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = (t.bfloat16() for t in logits)
    patches = torch.randn(4, 1, 8, 8).bfloat16()
    labels = torch.zeros(BATCH, dtype=torch.int64)
    for half, full in (
        (kl_divergence(student, teacher, 4), kl_divergence(student.float(), teacher.float(), 4)),
        (cross_entropy(student, labels), cross_entropy(student.float(), labels)),
        (entropy(teacher), entropy(teacher.float())),
        (class_balance(teacher), class_balance(teacher.float())),
        (patch_gan_loss(patches, True), patch_gan_loss(patches.float(), True)),
    ):
        assert half.dtype == torch.float32
        assert torch.equal(half, full)


def test_class_balance_of_several_processes_is_that_of_the_whole_batch() -> None:
    """Each has a half; the loop averages what they come to, gradients included."""
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    whole = logits.clone().requires_grad_()
    expected = class_balance(whole)
    expected.backward()
    halves = logits.split(3)
    means = [half.softmax(dim=1).mean(dim=0, keepdim=True) for half in halves]
    for number, half in enumerate(halves):
        others = means[1 - number]
        own = half.clone().requires_grad_()
        found = class_balance(own, gather=lambda mean, others=others: torch.cat([mean, others]))
        found.backward()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(own.grad / 2, whole.grad[3 * number :][:3])
