"""SSKD: the teacher's head learns first, then the student learns from both."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from recipes import VANILLA, departures
from tables import BATCH, Table, inputs_of, outputs_of
from torch import Tensor

from mosaickd.losses import kl_divergence
from mosaickd.methods.sskd import filtered_kl, rank_filter


def test_the_recipe() -> None:
    recipe = VANILLA | {
        "method.kd": 1,
        "method.tf": 2.7,
        "method.ss": 10,
        "method.temperature": 4,
        "method.ss_temperature": 0.5,
        "method.head_fraction": 0.230769,
        "train.epochs": 260,  # 60 for the teacher's head, 200 for the student
    }
    assert departures(recipe, "method=sskd") == {}
    assert round(0.230769 * 260, 3) == 60


def table(**settings: Any) -> Table:
    """Three iterations for the head, five for the student."""
    return Table("sskd", **({"steps": 8, "head_fraction": 3 / 8} | settings))


def similarities(projected: Tensor) -> np.ndarray:
    """Cosines of 3B rotated images with B upright ones, which come first."""
    rows = projected.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.array([[one @ other for other in rows[:BATCH]] for one in rows[BATCH:]])


def trusted(scores: np.ndarray, right: list[int], keep: float) -> list[int]:
    """The rows that the authors' code keeps, step by step as it does."""
    ranks = []
    for row, target in zip(scores, right, strict=True):
        order = np.argsort(-row, kind="stable")
        ranks.append(int(np.where(order == target)[0][0]))
    index = np.argsort(ranks, kind="stable")
    wrong = sum(rank > 0 for rank in ranks)
    correct = len(ranks) - wrong
    return sorted(index[: correct + int(wrong * keep)].tolist())


def softmax(row: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(row / temperature)
    return powers / powers.sum()


def kl_of_rows(
    student: np.ndarray, teacher: np.ndarray, rows: list[int], temperature: float
) -> float:
    total = 0.0
    for row in rows:
        p, q = softmax(teacher[row], temperature), softmax(student[row], temperature)
        total += float((p * np.log(p / q)).sum())
    return total / len(rows) * temperature**2


# ----------------------------------------------------------------------------------------- phases


def test_the_head_learns_alone_then_the_student() -> None:
    at = table()
    asked = outputs_of(at.student)
    assert [turn.player for turn in at.play(3)] == 3 * ["head"]
    assert asked == []
    assert [turn.player for turn in at.play(5)] == 5 * ["student"]


@pytest.mark.parametrize(
    ("fraction", "steps", "head"), [(60 / 260, 260, 60), (0.5, 9, 4), (0.3, 10, 3)]
)
def test_iterations_are_shared_out_by_the_fraction(fraction: float, steps: int, head: int) -> None:
    method = table(head_fraction=fraction, steps=steps).method
    assert method.iterations("head", steps) == head
    assert method.iterations("student", steps) == steps - head


def test_the_head_learns_to_find_upright_images_by_rotated_ones() -> None:
    at = table(head_fraction=0.9, steps=200)
    at.pixels = 2 * at.pixels[:, :, :2, :2].repeat_interleave(4, 2).repeat_interleave(4, 3)
    losses = [turn.losses["contrast"].item() for turn in at.play(150)]
    assert sum(losses[-20:]) < 0.95 * sum(losses[:20])


# ----------------------------------------------------------------------------------------- losses


def test_upright_images_come_first_then_those_turned_by_90_180_and_270_degrees() -> None:
    at = table()
    seen = inputs_of(at.teacher)
    (images,) = at.batch(0)["ood"]
    at.play(1)
    pixels = images.pixels.numpy()
    for quarter in range(4):
        for i, image in enumerate(pixels):
            turned = np.stack([np.rot90(channel, quarter) for channel in image])
            assert np.array_equal(seen[0][quarter * BATCH + i].numpy(), turned)


def test_the_heads_loss_is_the_surprise_at_the_upright_image() -> None:
    at = table()
    projected = outputs_of(at.method.head)
    (turn,) = at.play(1)
    rows = similarities(projected[0])
    expected = [-math.log(softmax(row, 1.0)[i % BATCH]) for i, row in enumerate(rows)]
    assert {k: v.item() for k, v in turn.losses.items()} == {
        "contrast": pytest.approx(np.mean(expected), rel=1e-5)
    }


@pytest.mark.parametrize(("keep_tf", "keep_ss"), [(1.0, 0.75), (0.5, 0.0), (0.25, 1.0)])
def test_the_students_losses_are_those_of_the_authors_code(keep_tf: float, keep_ss: float) -> None:
    at = table(kd=2.0, tf=3.0, ss=5.0, temperature=4.0, tf_temperature=3.0, ss_temperature=0.5,
               keep_tf=keep_tf, keep_ss=keep_ss)  # fmt: skip
    with torch.no_grad():
        at.teacher.fc.weight.mul_(50)  # so that rotated images are predicted otherwise
    at.play(3)
    teacher, student = outputs_of(at.teacher), outputs_of(at.student)
    theirs, ours = outputs_of(at.method.head), outputs_of(at.method.student_head)
    (turn,) = at.play(1, start=3)
    t, s = teacher[0].double().numpy(), student[0].double().numpy()
    predicted = 3 * t[:BATCH].argmax(axis=1).tolist()
    rows_tf = trusted(t[BATCH:], predicted, keep_tf)
    similar_t, similar_s = similarities(theirs[0]), similarities(ours[0])
    rows_ss = trusted(similar_t, 3 * list(range(BATCH)), keep_ss)
    assert len(rows_ss) > 0
    assert len(rows_tf) < 3 * BATCH or keep_tf == 1
    expected = {
        "kd": kl_divergence(student[0][:BATCH], teacher[0][:BATCH], 4.0).item(),
        "tf": kl_of_rows(s[BATCH:], t[BATCH:], rows_tf, 3.0),
        "ss": kl_of_rows(similar_s, similar_t, rows_ss, 0.5),
    }
    assert {k: v.item() for k, v in turn.losses.items()} == pytest.approx(
        expected, rel=1e-3, abs=1e-7
    )
    assert turn.weights == {"kd": 2.0, "tf": 3.0, "ss": 5.0}


# ----------------------------------------------------------------------------------------- ranking


@pytest.mark.parametrize("keep", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_filter_keeps_the_rows_that_the_authors_code_keeps(keep: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(27, 6))
    right = rng.integers(6, size=27).tolist()
    mask = rank_filter(torch.tensor(scores), torch.tensor(right), keep)
    assert mask.dtype == torch.bool
    assert mask.nonzero().flatten().tolist() == trusted(scores, right, keep)


def test_the_filter_keeps_all_that_are_right_and_the_nearly_right_before_the_wrong() -> None:
    scores = torch.tensor([[9.0, 5, 1], [5, 9, 1], [1, 5, 9], [9.0, 5, 1], [4, 9, 5]])
    right = torch.tensor([0, 0, 0, 0, 0])  # ranked first, second, last, first, last
    expected = {0.0: [0, 3], 0.4: [0, 1, 3], 0.7: [0, 1, 2, 3], 1.0: [0, 1, 2, 3, 4]}
    for keep, rows in expected.items():
        assert rank_filter(scores, right, keep).nonzero().flatten().tolist() == rows


def test_where_nothing_is_kept_the_loss_is_0_and_not_nan() -> None:
    student = torch.randn(5, 3, requires_grad=True)
    value = filtered_kl(student, torch.randn(5, 3), torch.zeros(5, dtype=torch.bool), 2.0)
    (slope,) = torch.autograd.grad(value, student)
    assert value.item() == 0
    assert slope.abs().max() == 0


def test_rows_that_are_left_out_have_no_say() -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    mask = torch.tensor([True, False, True, True, False])
    value = filtered_kl(student, teacher, mask, 2.0)
    torch.testing.assert_close(value, kl_divergence(student[mask], teacher[mask], 2.0))
