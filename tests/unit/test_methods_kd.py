"""Scratch, KD and Balanced: one loss, on whose images."""

from __future__ import annotations

import pytest
from recipes import COSINE, SGD, VANILLA, departures
from tables import Table, outputs_of

from mosaickd.losses import cross_entropy, kl_divergence


@pytest.mark.parametrize("name", ["kd", "balanced"])
def test_the_recipe(name: str) -> None:
    assert departures(VANILLA, f"method={name}") == {}


def test_the_recipe_of_training_from_scratch() -> None:
    recipe = {
        "players.student.optimizer": SGD | {"weight_decay": 5e-4},  # CIFAR's
        "players.student.schedule": {"_target_": COSINE},
        "train.epochs": 200,
        "train.batch_size": 256,
    }
    assert departures(recipe, "method=scratch") == {}


@pytest.mark.parametrize("name", ["kd", "balanced"])
def test_the_student_imitates_the_teachers_softened_predictions(name: str) -> None:
    at = Table(name, temperature=4.0)
    student, teacher = outputs_of(at.student), outputs_of(at.teacher)
    (turn,) = at.play(1)
    expected = kl_divergence(student[0], teacher[0], 4.0).item()
    assert {k: v.item() for k, v in turn.losses.items()} == {"kd": pytest.approx(expected)}
    stream = at.method.streams["ood"]
    assert (stream.source, stream.augment, stream.draws) == ("ood", True, 1)
    assert stream.balanced == (name == "balanced")


def test_scratch_learns_the_labels_of_the_domains_images() -> None:
    at = Table("scratch")
    student = outputs_of(at.student)
    (images,) = at.batch()["labelled"]
    (turn,) = at.play(1)
    assert turn.losses["cross_entropy"] == cross_entropy(student[0], images.labels)
    stream = at.method.streams["labelled"]
    assert (stream.source, stream.augment, stream.normalization) == ("dataset", True, "dataset")
