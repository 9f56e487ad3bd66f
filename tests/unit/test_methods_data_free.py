"""DFQ, DAFL and ZSKT: who is asked about which fakes, and what comes of it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recipes import ADAM, COSINE, GAN_ADAM, SGD, departures
from tables import BATCH, CPU, Classifier, Table, inputs_of, outputs_of
from torch import Tensor, nn

from mosaickd.methods.base import Latents
from mosaickd.methods.zskt import ZSKT
from mosaickd.models.generator import Generator

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


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> float:
    """Of the student's from the teacher's probabilities, in float64."""
    p = (teacher.double() / temperature).softmax(1)
    q = (student.double() / temperature).softmax(1)
    return float((p * (p / q).log()).sum() / len(p) * temperature**2)


def certainty(teacher: Tensor) -> float:
    return -float(teacher.double().softmax(1).amax(1).log().mean())


def imbalance(teacher: Tensor, base: float) -> float:
    mean = teacher.double().softmax(1).mean(0)
    return sum(p * math.log(p, base) for p in mean.tolist())


def batch_norm_inputs(network: nn.Module) -> list[list[Tensor]]:
    """For each batch norm, what it is given from now on."""
    return [inputs_of(m) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


def remembered(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    return [(n.running_mean.double(), n.running_var.double()) for n in norms]  # type: ignore[union-attr]


# -------------------------------------------------------------------------------------------- DFQ


@pytest.mark.parametrize("log_base", [10.0, math.e])
def test_dfqs_losses_are_the_formulas_of_what_the_networks_said(log_base: float) -> None:
    table = Table(
        "dfq", adv=2.0, oh=3.0, ie=5.0, bn=0.5, student_steps=1, temperature=4.0, log_base=log_base
    )
    teacher, student = outputs_of(table.teacher), outputs_of(table.student)
    given = batch_norm_inputs(table.teacher)
    generator, distilled = table.trainer.play_turns({})
    means, variances = [], []
    for (x, *_), (mean, var) in zip(given, remembered(table.teacher), strict=True):
        x = x.double().transpose(0, 1).flatten(1)
        means.append(x.mean(1) - mean)
        variances.append(x.var(1, unbiased=True) - var)
    expected = {
        "adv": -kl(student[0], teacher[0]),
        "oh": certainty(teacher[0]),
        "ie": imbalance(teacher[0], log_base),
        "bn": float(torch.cat(means).norm() + torch.cat(variances).norm()),
    }
    assert {k: v.item() for k, v in generator.losses.items()} == pytest.approx(expected, rel=1e-4)
    assert generator.weights == {"adv": 2.0, "oh": 3.0, "ie": 5.0, "bn": 0.5}
    assert distilled.losses["kd"].item() == pytest.approx(kl(student[1], teacher[1], 4.0), rel=1e-4)


def test_dfqs_student_sees_fresh_fakes_at_each_step_and_gradients_end_there() -> None:
    table = Table("dfq", student_steps=3)
    painted, seen = outputs_of(table.generator), inputs_of(table.student)
    table.trainer.play_turns({})
    assert len(painted) == len(seen) == 4
    assert all(not torch.equal(a, b) for a, b in pairwise(painted))
    for image, network_input in zip(painted, seen, strict=True):
        assert torch.equal(table.normalize(image), network_input), "in-domain statistics"


# ------------------------------------------------------------------------------------------- DAFL


def test_dafls_losses_are_the_formulas_of_what_the_teacher_said() -> None:
    table = Table("dafl", oh=2.0, balance=3.0, act=0.5, student_steps=1, temperature=4.0)
    teacher, embedding = outputs_of(table.teacher), inputs_of(table.teacher.fc)
    student = outputs_of(table.student)
    generator, distilled = table.trainer.play_turns({})
    expected = {
        "oh": certainty(teacher[0]),
        "balance": imbalance(teacher[0], math.e),
        "act": -float(embedding[0].double().abs().mean()),
    }
    assert {k: v.item() for k, v in generator.losses.items()} == pytest.approx(expected, rel=1e-4)
    assert generator.weights == {"oh": 2.0, "balance": 3.0, "act": 0.5}
    assert len(student) == 1, "the generator doesn't ask the student"
    assert distilled.losses["kd"].item() == pytest.approx(kl(student[0], teacher[1], 4.0), rel=1e-4)


# ------------------------------------------------------------------------------------------- ZSKT


def test_zskts_student_learns_on_the_same_images_after_the_generator_moved() -> None:
    table = Table("zskt", student_steps=3)
    seen, painted = inputs_of(table.student), outputs_of(table.generator)
    noise = inputs_of(table.generator)
    outputs = table.trainer.play_turns({})
    assert [turn.player for turn in outputs] == ["generator", "student", "student", "student"]
    of_generator, *of_student = seen
    assert len(painted) == 2, "painted before and after the generator's step"
    assert torch.equal(noise[0], noise[1]), "the same latents"
    assert not torch.equal(painted[0], painted[1]), "other images: the generator has moved"
    assert len(of_student) == 3
    for images in of_student:
        assert torch.equal(images, of_student[0])
        assert not torch.equal(images, of_generator)


def test_with_fresh_each_of_zskts_student_steps_has_images_of_its_own() -> None:
    table = Table("zskt", student_steps=3, fresh=True)
    seen, noise = inputs_of(table.student), inputs_of(table.generator)
    table.trainer.play_turns({})
    assert len(noise) == 4
    for values in (seen, noise):
        assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[i + 1 :])


def test_zskts_losses_are_the_formulas_of_what_the_networks_said() -> None:
    table = Table("zskt", student_steps=1, temperature=3.0, attention=7.0)
    teacher, student = outputs_of(table.teacher), outputs_of(table.student)
    stages = [
        (
            outputs_of(table.student.get_submodule(path)),
            outputs_of(table.teacher.get_submodule(path)),
        )
        for path in ("stage1", "stage2")
    ]
    generator, distilled = table.trainer.play_turns({})
    assert generator.losses.keys() == {"adv"}
    assert generator.losses["adv"].item() == pytest.approx(-kl(student[0], teacher[0]), rel=1e-4)
    attention = 0.0
    for ours, theirs in stages:
        maps = [
            F.normalize(f[1].double().square().mean(1).flatten(1), dim=1) for f in (ours, theirs)
        ]
        attention += float((maps[0] - maps[1]).square().mean())
    expected = {"kd": kl(student[1], teacher[1], 3.0), "attention": attention}
    assert {k: v.item() for k, v in distilled.losses.items()} == pytest.approx(expected, rel=1e-4)
    assert distilled.weights == {"kd": 1.0, "attention": 7.0}


class WithStages:
    """A probe of so many stages."""

    def __init__(self, count: int) -> None:
        self.shapes = [(8, 4, 4)] * count


def zskt(**changes: Any) -> ZSKT:
    settings: dict[str, Any] = {
        "student": Classifier(), "teacher": Classifier(), "student_features": WithStages(3),
        "teacher_features": WithStages(4), "generator": Generator(image_size=8, width=4),
        "normalize": nn.Identity(), "latents": Latents(100, CPU, 0), "batch_size": BATCH,
    }  # fmt: skip
    return ZSKT(**(settings | changes))


def test_zskt_compares_as_many_stages_of_student_and_teacher() -> None:
    with pytest.raises(ValueError, match=r"student has 3 and the teacher 4.*method\.attention=0"):
        zskt()
    assert zskt(student_features=WithStages(4)).attention == 250.0


def test_without_attention_zskt_takes_no_features_and_any_pair_will_do() -> None:
    method = zskt(attention=0.0)  # its probes cannot even be called
    turns = method.turns({})
    assert next(turns).losses.keys() == {"adv"}
    assert next(turns).losses.keys() == {"kd"}
