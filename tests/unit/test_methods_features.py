"""Balanced, FitNet and RKD: what they take from the networks, and what they keep."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tables import Classifier, Table, changed, inputs_of, outputs_of, state_of
from torch import Tensor, nn

from mosaickd.losses import kl_divergence, relational_angle, relational_distance
from mosaickd.methods.fitnet import FitNet, Regressor
from mosaickd.models.features import FeatureExtractor

CONF = Path(__file__).parents[2] / "conf/model"


def features_of(name: str, size: int) -> FeatureExtractor:
    """A look at the features that a model of conf/model names; shapes only, no weights."""
    config: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    features = config.pop("features")
    for key in ("name", "checkpoint", "embedding"):
        del config[key]
    with torch.device("meta"):
        network = instantiate(config, num_classes=4, _convert_="all")
        return FeatureExtractor(
            network, features, example=torch.zeros(1, 3, size, size), setting="features"
        )


# --------------------------------------------------------------------------------------- Balanced


def test_balanced_is_kd_on_a_balanced_stream() -> None:
    table = Table("balanced", temperature=4.0)
    stream = table.method.streams["ood"]
    assert (stream.source, stream.augment, stream.balanced) == ("ood", True, True)
    assert (stream.normalization, stream.draws) == ("dataset", 1)
    student, teacher = outputs_of(table.student), outputs_of(table.teacher)
    (turn,) = table.play(1)
    expected = kl_divergence(student[0], teacher[0], 4.0)
    assert {k: v.item() for k, v in turn.losses.items()} == {"kd": pytest.approx(expected.item())}


# ----------------------------------------------------------------------------------------- FitNet


def test_fitnets_hint_is_the_squared_error_of_one_stage() -> None:
    table = Table("fitnet", stage=2, hint=7.0, temperature=4.0)
    student, teacher = outputs_of(table.student), outputs_of(table.teacher)
    regressed, wanted = outputs_of(table.method.regressor), outputs_of(table.teacher.stage2)
    given, from_student = inputs_of(table.method.regressor), outputs_of(table.student.stage2)
    (turn,) = table.play(1)
    assert torch.equal(given[0], from_student[0])
    expected = {
        "kd": kl_divergence(student[0], teacher[0], 4.0).item(),
        "hint": (regressed[0] - wanted[0]).double().square().mean().item(),
    }
    assert {k: v.item() for k, v in turn.losses.items()} == pytest.approx(expected, rel=1e-5)
    assert turn.weights == {"kd": 1.0, "hint": 7.0}


def test_the_regressor_learns_beside_the_student_and_is_not_part_of_it() -> None:
    table = Table("fitnet")
    names = set(Classifier().state_dict())
    before, students = state_of(table.method.regressor), state_of(table.student)
    table.play(2)
    assert {"conv.weight", "norm.weight", "norm.running_mean"} <= changed(
        before, state_of(table.method.regressor)
    )
    assert changed(students, state_of(table.student))
    assert set(table.student.state_dict()) == names, "what is kept is a plain student"
    saved = table.trainer.state_dict()["players"]["student"]["module"]
    assert len(saved) == len(names) + len(before), "a checkpoint holds both"


def test_a_hint_reaches_the_student_up_to_its_stage_only() -> None:
    table = Table("fitnet", stage=1)
    (turn,) = table.method.turns(table.batch())
    turn.losses["hint"].value.backward()
    assert all(p.grad is not None for p in table.student.stage1.parameters())
    assert all(p.grad is None for p in table.student.stage2.parameters())
    assert all(p.grad is None for p in table.teacher.parameters())


@pytest.mark.parametrize("size", [16, 32])
def test_any_students_stage_can_predict_any_teachers(size: int) -> None:
    pairs = [("resnet18", "vgg11"), ("wrn16_1", "resnet34"), ("wrn16_2", "wrn40_2"),
             ("vgg11", "wrn40_2")]  # fmt: skip
    for student, teacher in pairs:
        ours, theirs = features_of(student, size), features_of(teacher, size)
        for stage in range(1, min(len(ours.shapes), len(theirs.shapes)) + 1):
            shapes = ours.shapes[stage - 1], theirs.shapes[stage - 1]
            regressed = Regressor(*shapes)(torch.randn(2, *shapes[0]))
            assert regressed.shape == (2, *shapes[1]), (student, teacher, stage)


def test_the_regressor_is_repdistillers() -> None:
    """3x3 with stride 2 to halve, 4x4 transposed to double, 1x1 to keep; BN; ReLU."""
    same, halved = Regressor((4, 8, 8), (6, 8, 8)), Regressor((4, 8, 8), (6, 4, 4))
    doubled = Regressor((4, 8, 8), (6, 16, 16))
    assert isinstance(same.conv, nn.Conv2d)
    assert same.conv.kernel_size == (1, 1)
    assert isinstance(halved.conv, nn.Conv2d)
    assert (halved.conv.kernel_size, halved.conv.stride) == ((3, 3), (2, 2))
    assert isinstance(doubled.conv, nn.ConvTranspose2d)
    assert (doubled.conv.kernel_size, doubled.conv.stride) == ((4, 4), (2, 2))
    x = torch.randn(3, 4, 8, 8)
    expected = F.relu(F.batch_norm(same.conv(x), None, None, training=True))
    torch.testing.assert_close(same(x), expected)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((4, 8, 8), (6, 2, 2)), ((4, 2, 2), (6, 8, 8)), ((4, 3, 3), (6, 2, 2)), ((4, 1, 1), (6, 1, 1)),
     ((4, 7, 5), (6, 4, 3)), ((4, 6, 8), (6, 8, 6))],
)  # fmt: skip
def test_a_regressor_bridges_any_sizes(student: Any, teacher: Any) -> None:
    out = Regressor(student, teacher)(torch.randn(2, *student))
    assert out.shape == (2, *teacher)
    assert (out >= 0).all(), "a ReLU is last: resizing keeps the sign"


def test_a_stage_that_one_of_the_models_lacks_is_refused() -> None:
    features: dict[str, Any] = {"student_features": features_of("wrn16_1", 16),
                "teacher_features": features_of("resnet18", 16)}  # fmt: skip
    networks: dict[str, Any] = {"student": nn.Identity(), "teacher": nn.Identity()}
    FitNet(**networks, **features, stage=3)
    with pytest.raises(ValueError, match=r"method\.stage is 4, but the models name 3"):
        FitNet(**networks, **features, stage=4)


# -------------------------------------------------------------------------------------------- RKD


def test_rkds_losses_are_relations_of_embeddings() -> None:
    table = Table("rkd", distance=3.0, angle=4.0, temperature=2.0)
    student, teacher = outputs_of(table.student), outputs_of(table.teacher)
    ours, theirs = inputs_of(table.student.fc), inputs_of(table.teacher.fc)
    (turn,) = table.play(1)
    assert ours[0].shape[1] != theirs[0].shape[1], "of different lengths"
    expected = {
        "kd": kl_divergence(student[0], teacher[0], 2.0).item(),
        "distance": relational_distance(ours[0], theirs[0]).item(),
        "angle": relational_angle(ours[0], theirs[0]).item(),
    }
    assert {k: v.item() for k, v in turn.losses.items()} == pytest.approx(expected, rel=1e-5)
    assert turn.weights == {"kd": 1.0, "distance": 3.0, "angle": 4.0}


@pytest.mark.parametrize("term", ["distance", "angle"])
def test_a_relation_of_weight_0_is_not_computed(term: str) -> None:
    (turn,) = Table("rkd", **{term: 0.0}).play(1)
    assert turn.losses.keys() == {"kd", "distance", "angle"} - {term}


def test_relations_fall_as_the_student_learns_them() -> None:
    table = Table("rkd", steps=60)
    outputs = [turn for _ in range(60) for turn in table.trainer.train_step(table.batch(0))]
    for term in ("distance", "angle"):
        assert outputs[-1].losses[term] < outputs[0].losses[term] / 2, term


# ------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize(
    ("name", "whose"),
    list(product(["balanced", "fitnet", "rkd", "crd", "sskd"], ["dataset", "ood"])),
)
def test_ood_images_are_augmented_and_carry_the_statistics_that_are_set(
    name: str, whose: str
) -> None:
    (stream,) = Table(name, ood_statistics=whose).method.streams.values()
    assert (stream.source, stream.augment, stream.draws) == ("ood", True, 1)
    assert stream.normalization == whose


@pytest.mark.parametrize("name", ["balanced", "fitnet", "rkd", "crd", "sskd"])
def test_the_teacher_stays_as_it_is(name: str) -> None:
    settings = {"head_fraction": 0.5, "steps": 4} if name == "sskd" else {}
    table = Table(name, **settings)
    before: dict[str, Tensor] = state_of(table.teacher)
    table.play(4)
    assert not changed(before, state_of(table.teacher))
    assert all(p.grad is None for p in table.teacher.parameters())
    assert not table.teacher.training
