"""MosaicKD: the paper's numbers, and who sees which images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recipes import COSINE, GAN_ADAM, SGD, departures
from tables import BATCH, Table, inputs_of, outputs_of

from mosaickd.losses import class_balance, kl_divergence, label_alignment, patch_gan_loss

RECIPE: dict[str, Any] = {
    "method.adv": 1,
    "method.align": 1,
    "method.local": 1,
    "method.balance": 10,
    "method.temperature": 1,
    "method.student_steps": 5,
    "method.ood_in_student_batch": True,
    "method.ood_statistics": "ood",
    "generator.latent_dim": 100,
    "generator.width": 64,
    "generator.output": "sigmoid",
    "discriminator.width": 128,
    "discriminator.patch_size": 10,
    "players.generator.optimizer": GAN_ADAM,
    "players.discriminator.optimizer": GAN_ADAM,
    "players.student.optimizer": SGD,
    **{f"players.{player}.schedule": {"_target_": COSINE}
       for player in ("generator", "discriminator", "student")},
    "train.epochs": 200,
    "train.batch_size": 256,
    "train.steps": None,
}  # fmt: skip


@pytest.mark.parametrize("overrides", [["method=mosaic"], []], ids=["chosen", "by default"])
def test_the_recipe(overrides: list[str]) -> None:
    assert departures(RECIPE, *overrides) == {}


def test_losses_are_the_equations_of_what_the_networks_gave_out() -> None:
    weights = {"adv": 2.0, "align": 3.0, "local": 0.5, "balance": 7.0}
    at = Table("mosaic", student_steps=1, temperature=4.0, **weights)
    networks = (at.student, at.teacher, at.discriminator)
    student, teacher, patches = (outputs_of(network) for network in networks)
    discriminator, generator, distilled = at.play(1)
    expected = {
        "fake": patch_gan_loss(patches[0], authentic=False),
        "real": patch_gan_loss(patches[1], authentic=True),
        "local": patch_gan_loss(patches[2], authentic=True),
        "align": label_alignment(teacher[0]),
        "adv": -kl_divergence(student[0], teacher[0]),
        "balance": class_balance(teacher[0]),
        "kd": kl_divergence(student[1], teacher[1], 4.0),
    }
    actual = discriminator.losses | generator.losses | distilled.losses
    assert {k: v.item() for k, v in actual.items()} == pytest.approx(
        {k: v.item() for k, v in expected.items()}, rel=1e-5
    )
    assert discriminator.weights == {"fake": 0.25, "real": 0.25}
    assert (generator.weights, distilled.weights) == (weights, {"kd": 1.0})


def test_the_discriminator_and_the_generators_turn_see_the_same_fakes() -> None:
    at = Table("mosaic", student_steps=2)
    judged, distilled = inputs_of(at.discriminator), inputs_of(at.student)
    (real,) = at.batch()["real"]
    at.play(1)
    fakes, reals, again = judged
    assert torch.equal(fakes, again)
    assert torch.equal(reals, real.pixels)
    assert torch.equal(fakes, distilled[0]), "the student's disagreement, too, is of these"
    assert not torch.equal(distilled[1][:BATCH], distilled[2][:BATCH]), "fresh ones to learn from"


@pytest.mark.parametrize("joined", [True, False])
def test_ood_images_join_the_students_batch_or_not(joined: bool) -> None:
    at = Table("mosaic", ood_in_student_batch=joined, student_steps=3)
    inputs = inputs_of(at.student)
    draws = at.batch().get("student", [])
    at.play(1)
    assert [len(images) for images in inputs] == [BATCH, *3 * [2 * BATCH if joined else BATCH]]
    assert len(draws) == (3 if joined else 0)
    for draw, images in zip(draws, inputs[1:], strict=False):
        assert torch.equal(images[BATCH:], draw.pixels), "each turn has a draw of its own"


def test_real_patches_are_in_domain_normalized_and_not_augmented() -> None:
    real = Table("mosaic").method.streams["real"]
    assert (real.source, real.augment, real.normalization, real.draws) == (
        "ood",
        False,
        "dataset",
        1,
    )


def test_ood_images_must_have_some_effect() -> None:
    with pytest.raises(ValueError, match="the ood images would have no effect"):
        Table("mosaic", local=0.0, ood_in_student_batch=False)
