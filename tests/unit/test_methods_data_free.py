"""DFQ, DAFL and ZSKT: who is asked about which fakes, and what comes of it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from recipes import ADAM, COSINE, GAN_ADAM, SGD, departures
from tables import Table, inputs_of, outputs_of
from torch import nn

from mosaickd.losses import (
    attention_transfer,
    class_balance,
    kl_divergence,
    one_hot,
    statistics_distance,
)

DATA_FREE: dict[str, Any] = {"train.epochs": 200, "train.steps": None}
ONCE_AN_EPOCH = {"_target_": COSINE, "stairs": 200}  # the rate falls once an epoch
RECIPES: dict[str, dict[str, Any]] = {
    "dfq": DATA_FREE
    | {
        "method.adv": 1,
        "method.oh": 1,
        "method.ie": 20,
        "method.bn": 1,
        "method.log_base": 10,
        "method.student_steps": 5,
        "generator.latent_dim": 100,
        "players.generator": {"optimizer": ADAM, "schedule": ONCE_AN_EPOCH},
        "players.student": {"optimizer": ADAM | {"weight_decay": 1e-4}, "schedule": ONCE_AN_EPOCH},
        "train.epoch_steps": 200,
        "train.batch_size": 128,
    },
    "dafl": DATA_FREE
    | {
        "method.oh": 1,
        "method.balance": 20,
        "method.act": 1e-3,
        "method.student_steps": 5,
        "generator.latent_dim": 512,
        "players.generator.optimizer": GAN_ADAM,
        "players.student": {"optimizer": SGD, "schedule": ONCE_AN_EPOCH},
        "train.epoch_steps": 400,
        "train.batch_size": 256,
    },
    "zskt": DATA_FREE
    | {
        "method.attention": 250,
        "method.student_steps": 10,
        "method.fresh": False,  # on the same batch
        "generator.latent_dim": 100,
        "generator.output": "batch_norm",
        "players.generator": {"optimizer": ADAM, "schedule": {"_target_": COSINE}},
        "players.student": {"optimizer": ADAM | {"lr": 2e-3}, "schedule": {"_target_": COSINE}},
        "train.epoch_steps": 400,  # 80,000 in all
        "train.batch_size": 128,
        "train.clip": 5,
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe(name: str) -> None:
    assert departures(RECIPES[name], f"method={name}") == {}


def test_cmis_dfq_is_an_option() -> None:
    recipe = {
        "method.name": "dfq",
        "method.log_base": math.e,
        "method.student_steps": 10,
        "players.student.optimizer._target_": "torch.optim.SGD",
        "players.student.optimizer.lr": 0.1,
        "train.batch_size": 256,
    }
    assert departures(recipe, "experiment=dfq_cmi") == {}


def values(turn: Any) -> dict[str, float]:
    return {name: value.item() for name, value in turn.losses.items()}


def test_dfqs_losses_are_the_equations_of_what_the_networks_gave_out() -> None:
    weights = {"adv": 2.0, "oh": 3.0, "ie": 5.0, "bn": 0.5}
    at = Table("dfq", **weights, student_steps=1, temperature=4.0, log_base=7.0)
    teacher, student = outputs_of(at.teacher), outputs_of(at.student)
    norms: list[Any] = [m for m in at.teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    inputs = [inputs_of(norm) for norm in norms]
    generator, distilled = at.play(1)
    channels = [x[0].transpose(0, 1).flatten(1) for x in inputs]
    means = [x.mean(1) for x in channels], [norm.running_mean for norm in norms]
    variances = [x.var(1, unbiased=True) for x in channels], [norm.running_var for norm in norms]
    expected = {
        "adv": -kl_divergence(student[0], teacher[0]).item(),
        "oh": one_hot(teacher[0]).item(),
        "ie": class_balance(teacher[0], 7.0).item(),
        "bn": sum(statistics_distance(*pair, by_layer=False).item() for pair in (means, variances)),
    }
    assert values(generator) == pytest.approx(expected, rel=1e-4)
    assert (generator.weights, distilled.weights) == (weights, {"kd": 1.0})
    assert values(distilled)["kd"] == pytest.approx(
        kl_divergence(student[1], teacher[1], 4.0).item()
    )


def test_dafls_losses_are_the_equations_of_what_the_teacher_gave_out() -> None:
    weights = {"oh": 2.0, "balance": 3.0, "act": 0.5}
    at = Table("dafl", **weights, student_steps=1, temperature=4.0)
    teacher, embedding = outputs_of(at.teacher), inputs_of(at.teacher.fc)
    student = outputs_of(at.student)
    generator, distilled = at.play(1)
    expected = {
        "oh": one_hot(teacher[0]).item(),
        "balance": class_balance(teacher[0], math.e).item(),
        "act": -embedding[0].abs().mean().item(),
    }
    assert values(generator) == pytest.approx(expected, rel=1e-4)
    assert generator.weights == weights
    assert len(student) == 1, "the generator doesn't ask the student"
    assert values(distilled)["kd"] == pytest.approx(
        kl_divergence(student[0], teacher[1], 4.0).item()
    )


def test_zskts_losses_are_the_equations_of_what_the_networks_gave_out() -> None:
    at = Table("zskt", student_steps=1, temperature=3.0, attention=7.0)
    networks = (at.student, at.teacher)
    student, teacher = (outputs_of(network) for network in networks)
    stages = [[outputs_of(n.stage1), outputs_of(n.stage2)] for n in networks]
    generator, distilled = at.play(1)
    attention = attention_transfer(*[[stage[1] for stage in network] for network in stages])
    assert values(generator) == {
        "adv": pytest.approx(-kl_divergence(student[0], teacher[0]).item())
    }
    kd = kl_divergence(student[1], teacher[1], 3.0).item()
    assert values(distilled) == pytest.approx({"kd": kd, "attention": attention.item()}, rel=1e-4)
    assert distilled.weights == {"kd": 1.0, "attention": 7.0}


@pytest.mark.parametrize("name", ["dfq", "dafl"])
def test_the_student_sees_fresh_fakes_at_each_step(name: str) -> None:
    at = Table(name, student_steps=3)
    fakes, inputs = outputs_of(at.generator), inputs_of(at.student)
    at.play(1)
    assert len(fakes) == 4
    assert all(not torch.equal(a, b) for a, b in pairwise(fakes))
    for images, network_input in zip(fakes[1:], inputs[-3:], strict=True):
        assert torch.equal(at.normalize(images), network_input), "in-domain statistics"


@pytest.mark.parametrize("fresh", [False, True])
def test_zskts_student_learns_on_the_same_latents_after_the_generator_moved(fresh: bool) -> None:
    at = Table("zskt", student_steps=3, fresh=fresh)
    fakes, noise = outputs_of(at.generator), inputs_of(at.generator)
    inputs = inputs_of(at.student)
    at.play(1)
    first, *others = inputs
    assert len(others) == 3
    assert not torch.equal(fakes[0], fakes[1]), "other images: the generator has moved"
    assert torch.equal(noise[0], noise[1]) is not fresh
    assert len(fakes) == (4 if fresh else 2)
    assert torch.equal(others[0], others[1]) is not fresh
    assert not torch.equal(first, others[0])


class Stages:
    """Features of so many stages, which can't be taken."""

    def __init__(self, count: int) -> None:
        self.shapes = [(8, 4, 4)] * count


def test_zskt_compares_as_many_stages_of_student_and_teacher() -> None:
    stages: dict[str, Any] = {"student_features": Stages(3), "teacher_features": Stages(4)}
    with pytest.raises(ValueError, match=r"student has 3 and the teacher 4.*method\.attention=0"):
        Table("zskt", **stages)
    _, *students = Table("zskt", **stages, attention=0.0, student_steps=1).play(1)
    assert [turn.losses.keys() for turn in students] == [{"kd"}], "features are not taken"
