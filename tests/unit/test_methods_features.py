"""FitNet and RKD: what they take from the networks, and what they keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from recipes import SGD, VANILLA, departures
from tables import Classifier, Table, changed, inputs_of, outputs_of, state_of
from torch import nn

from mosaickd.losses import kl_divergence, relational_angle, relational_distance
from mosaickd.methods.fitnet import FitNet, Regressor
from mosaickd.models.features import FeatureExtractor

CONF = Path(__file__).parents[2] / "conf/model"

RECIPES = {
    "fitnet": VANILLA | {"method.hint": 100, "method.stage": 2},
    "rkd": VANILLA | {"method.distance": 25, "method.angle": 50},
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe(name: str) -> None:
    assert departures(RECIPES[name], f"method={name}") == {}


@pytest.mark.parametrize("name", ["fitnet", "rkd", "crd"])
def test_repdistillers_schedule_is_an_option(name: str) -> None:
    recipe = {
        "players.student.optimizer": SGD | {"lr": 0.05, "weight_decay": 5e-4},
        "players.student.schedule.milestones": [150 / 240, 180 / 240, 210 / 240],
        "train.epochs": 240,
        "train.batch_size": 64,
    }
    assert departures(recipe, "experiment=rd_schedule", f"method={name}") == {}


# ----------------------------------------------------------------------------------------- FitNet


def test_fitnets_hint_is_the_squared_error_of_one_stage() -> None:
    at = Table("fitnet", stage=2, hint=7.0, temperature=4.0)
    student, teacher = outputs_of(at.student), outputs_of(at.teacher)
    regressed, target = outputs_of(at.method.regressor), outputs_of(at.teacher.stage2)
    (turn,) = at.play(1)
    expected = {
        "kd": kl_divergence(student[0], teacher[0], 4.0).item(),
        "hint": (regressed[0] - target[0]).double().square().mean().item(),
    }
    assert {k: v.item() for k, v in turn.losses.items()} == pytest.approx(expected, rel=1e-5)
    assert turn.weights == {"kd": 1.0, "hint": 7.0}


def test_the_regressor_learns_beside_the_student_and_is_not_part_of_it() -> None:
    at = Table("fitnet")
    before = state_of(at.method.regressor)
    at.play(2)
    assert changed(before, state_of(at.method.regressor)) >= {"conv.weight", "norm.running_mean"}
    names = set(Classifier().state_dict())
    assert set(at.student.state_dict()) == names, "what is saved is a plain student"
    saved = at.trainer.state_dict()["players"]["student"]["module"]
    assert len(saved) == len(names) + len(before), "a checkpoint holds both"


def test_a_hint_reaches_the_student_up_to_its_stage_only() -> None:
    at = Table("fitnet", stage=1)
    (turn,) = at.method.turns(at.batch())
    turn.losses["hint"].value.backward()
    assert all(p.grad is not None for p in at.student.stage1.parameters())
    assert all(p.grad is None for p in at.student.stage2.parameters())


def features_of(name: str, size: int) -> FeatureExtractor:
    """The features that a model of conf/model names; shapes only, no weights."""
    config: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    features = config.pop("features")
    for key in ("name", "checkpoint", "embedding"):
        del config[key]
    with torch.device("meta"):
        network = instantiate(config, num_classes=4, _convert_="all")
        return FeatureExtractor(
            network, features, example=torch.zeros(1, 3, size, size), setting="features"
        )


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("resnet18", "vgg11"), ("wrn16_1", "resnet34"), ("wrn16_2", "wrn40_2"), ("vgg11", "wrn40_2")],
)
def test_any_students_stage_can_predict_any_teachers(student: str, teacher: str) -> None:
    shapes = [features_of(name, 32).shapes for name in (student, teacher)]
    for own, other in zip(*shapes, strict=False):
        assert Regressor(own, other)(torch.randn(2, *own)).shape == (2, *other)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((4, 8, 8), (6, 2, 2)), ((4, 2, 2), (6, 8, 8)), ((4, 3, 3), (6, 2, 2)), ((4, 1, 1), (6, 1, 1)),
     ((4, 7, 5), (6, 4, 3)), ((4, 6, 8), (6, 8, 6))],
)  # fmt: skip
def test_a_regressor_bridges_any_sizes(student: Any, teacher: Any) -> None:
    out = Regressor(student, teacher)(torch.randn(2, *student))
    assert out.shape == (2, *teacher)
    assert (out >= 0).all(), "a ReLU is last: resizing keeps the sign"


@pytest.mark.parametrize(
    ("side", "kind", "kernel", "stride"),
    [(8, nn.Conv2d, 1, 1), (4, nn.Conv2d, 3, 2), (16, nn.ConvTranspose2d, 4, 2)],
)
def test_the_regressor_is_repdistillers(side: int, kind: Any, kernel: int, stride: int) -> None:
    regressor = Regressor((4, 8, 8), (6, side, side))
    conv: Any = regressor.conv
    assert isinstance(conv, kind)
    assert (conv.kernel_size, conv.stride) == (2 * (kernel,), 2 * (stride,))
    x = torch.randn(3, 4, 8, 8)
    expected = F.relu(F.batch_norm(conv(x), None, None, training=True))
    torch.testing.assert_close(regressor(x), expected)


def test_a_stage_that_one_of_the_models_lacks_is_refused() -> None:
    features: dict[str, Any] = {"student_features": features_of("wrn16_1", 16),
                "teacher_features": features_of("resnet18", 16)}  # fmt: skip
    networks: dict[str, Any] = {"student": nn.Identity(), "teacher": nn.Identity()}
    FitNet(**networks, **features, stage=3)
    with pytest.raises(ValueError, match=r"method\.stage is 4, but the models name 3"):
        FitNet(**networks, **features, stage=4)


# -------------------------------------------------------------------------------------------- RKD


def test_rkds_losses_are_relations_of_embeddings() -> None:
    at = Table("rkd", distance=3.0, angle=4.0, temperature=2.0)
    student, teacher = outputs_of(at.student), outputs_of(at.teacher)
    own, other = inputs_of(at.student.fc), inputs_of(at.teacher.fc)
    (turn,) = at.play(1)
    assert own[0].shape[1] != other[0].shape[1], "of different lengths"
    expected = {
        "kd": kl_divergence(student[0], teacher[0], 2.0).item(),
        "distance": relational_distance(own[0], other[0]).item(),
        "angle": relational_angle(own[0], other[0]).item(),
    }
    assert {k: v.item() for k, v in turn.losses.items()} == pytest.approx(expected, rel=1e-5)
    assert turn.weights == {"kd": 1.0, "distance": 3.0, "angle": 4.0}


def test_relations_fall_as_the_student_learns_them() -> None:
    at = Table("rkd", steps=60)
    outputs = [turn for _ in range(60) for turn in at.trainer.train_step(at.batch(0))]
    for term in ("distance", "angle"):
        assert outputs[-1].losses[term] < outputs[0].losses[term] / 2, term
