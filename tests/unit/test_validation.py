"""Validation against types and constructors' signatures: each kind of mistake, and its message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
from composing import compose_config, composing
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from mosaickd.config.validation import check_section, validate
from mosaickd.config.values import check_value
from mosaickd.constraints import Count, Fraction, NonNegative, Positive
from mosaickd.errors import UserError


class Judge(Protocol):
    def __call__(self, images: Tensor) -> Tensor: ...


# --------------------------------------------------------------------------------------- one value


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, int), (1, float), (1.5, float), (True, bool), ("a", str), (None, int | None),
        ([1, 2], list[int]), ([0.5, 1], tuple[float, float]), ([1], Sequence[int]),
        ("dataset", Literal["dataset", "ood"]), (0, NonNegative), (0.1, Positive), (1, Fraction),
        (3 * 10**9, Count), ([[1], [2, 3]], list[list[int]]), ("anything", Any), (3, "no type"),
        (0.1, float | Tensor), (3, Tensor), (3, nn.Module), (3, Judge), ({"a": 1}, dict),
        (3, "Forward"),
    ],
)  # fmt: skip
def test_values_that_fit_their_annotation_or_cannot_be_judged(value: Any, hint: Any) -> None:
    check_value(value, hint, "here")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("3", int, "an integer"), (1.5, int, "an integer"), (True, int, "an integer"),
        (False, float, "a number"), ("true", bool, "true or false"), (1, str, "a string"),
        (None, int, "an integer"), ("x", int | None, "an integer"), (3, list[int], "a list"),
        ([1, "a"], Sequence[int], "an integer"), (3, dict, "a section"),
        ("odd", Literal["dataset", "ood"], "'dataset' or 'ood'"),
        (-1, NonNegative, ">= 0"), (0, Positive, "> 0"), (0, Count, ">= 1"),
        (1.1, Fraction, "<= 1"),
        (2**63, Count, "< 9223372036854775808"), (float("nan"), Positive, "a finite number"),
        ("a", float | Tensor, "a number"), ({}, Callable[..., int], "a section with a _target_"),
        ([1.0], tuple[float, float], "a longer list"), ([1, 2], tuple[int], "a shorter list"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit(value: Any, hint: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        check_value(value, hint, "here")
    assert str(caught.value) == f"here must be {expected}, got {value!r}"


# ------------------------------------------------------------------------------------- one section


class Widget:
    """Something that a config can build."""

    def __init__(
        self, *, width: Count, height: Positive = 1.0, sizes: list[int] | None = None
    ) -> None: ...


class Anything:
    def __init__(self, **settings: Any) -> None: ...


def widget(**settings: Any) -> DictConfig:
    return OmegaConf.create({"_target_": f"{__name__}.Widget", "width": 3} | settings)


@pytest.mark.parametrize(
    "node",
    [
        widget(height=2, sizes=[1, 2]),
        widget(name="mine", checkpoint=None, features=["a"]),  # these annotate
        widget(_target_=f"{__name__}.Anything", whatever=3),
        widget(_target_=f"{__name__}.Anything", part=widget()),
        OmegaConf.create({"_target_": f"{__name__}.Widget", "_partial_": True}),
    ],
)
def test_sections_that_can_be_built(node: DictConfig) -> None:
    check_section(node, "part", "part")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            widget(heigth=2),
            "part.heigth is unknown, did you mean height?; accepted here: height, sizes, width",
        ),
        (widget(zzz=1), "part.zzz is unknown; accepted here: height, sizes, width"),
        (
            OmegaConf.create({"size": 0, "part": widget(width="${size}")}).part,
            "part.width must be >= 1, got 0",
        ),
        (widget(sizes="???"), "part.sizes has no value: give one, part.sizes=..."),
        (widget(name=3), "part.name must be a string, got 3"),
        (
            widget(_target_=f"{__name__}.Anything", part=widget(heigth=1)),
            "part.part.heigth is unknown",
        ),
        (OmegaConf.create({"_target_": f"{__name__}.Widget"}), "part.width is missing"),
        (OmegaConf.create({"width": 3}), "part must be a section with a _target_"),
        ("a text", "part must be a section with a _target_, got 'a text'"),
        (widget(_target_=f"{__name__}.Gadget"), f"part._target_: {__name__}.Gadget can't be"),
    ],
)
def test_sections_that_cannot_be_built(node: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_section(node, "part", "part")
    assert str(caught.value).startswith(message)


# ------------------------------------------------------------------------------------ whole config


@pytest.fixture(autouse=True, scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=-1", "seed must be >= 0, got -1"),
        ("seed=${nowhere}", "nowhere"),
        ("+sede=1", "sede is unknown, did you mean seed?"),
        ("~device", "device is missing"),
        ("train.batch_size=0", "train.batch_size must be >= 1, got 0"),
        ("train.clip=0.0", "train.clip must be > 0, got 0.0"),
        ("train.epochs=null", "train.steps and train.epochs"),
        ("train.sync_batch_norm=[teacher]", "train.sync_batch_norm names 'teacher'"),
        ("ood_subset_size=0", "ood_subset_size must be >= 1"),
        ("method.adv=-1", "method.adv must be >= 0, got -1"),
        ("+method.advv=1", "did you mean adv?"),
        ("~method.name", "method.name is missing"),
        ("method._target_=torch.nn.Linear", "no method"),
        ("~ood", "choose some with ood=NAME"),
        ("ood=folder", "ood.root has no value: give one, ood.root="),
        ("ood.reader._target_=torchvision.models.resnet18", "no reader"),
        ("+ood.reader.downlaod=true", "did you mean download?"),
        ("~ood.reader._target_", "ood.reader must be a section with a _target_"),
        ("ood.reader._partial_=3", "ood.reader._partial_ must be true or false"),
        ("dataset.classes=5", "dataset.classes must be a list"),
        ("dataset.recipe=3", "dataset.recipe must be a section"),
        ("dataset.recipe.lr=-1", "dataset.recipe.lr must be >= 0, got -1"),
        ("+dataset.recipe.epoch=3", "did you mean epochs?"),
        ("student._target_=torch.optim.SGD", "no model"),
        ("student.features=3", "student.features must be a"),
        ("student.checkpoint=x.pth", "student.checkpoint has no effect"),
        ("teacher.checkpoint=0.5", "teacher.checkpoint must be a string"),
        ("teacher.checkpoint=typo.pth", "teacher.checkpoint: there is no file typo.pth"),
        ("~generator", "generator must be a section"),
        ("~generator.latent_dim", "generator.latent_dim must be an integer"),
        ("tracker.project=3", "tracker.project must be a string"),
        ("tracker._target_=torchvision.models.resnet18", "no tracker"),
        ("players=3", "players must have a section"),
        ("players.student=3", "players.student"),
        ("+players.student.scheduel=1", "did you mean schedule?"),
        ("+players.student.optimizer.momentun=1", "did you mean momentum"),
        ("players.student.optimizer.lr=abc", "players.student.optimizer.lr must be a number"),
        ("players.student.schedule._target_=torch.nn.Identity", "no schedule"),
    ],
)
def test_configs_with_a_mistake(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(compose_config(override))
    assert words in str(caught.value)


def test_a_methods_yaml_without_its_first_line_is_named() -> None:
    node = OmegaConf.create({"cell": "x", "method": {"_target_": "mosaickd.methods.kd.KD"}})
    with pytest.raises(UserError, match=r"first line of the method's YAML.*@package _global_"):
        check_section(node, "method", "method")


def test_a_teacher_that_is_there_or_not_used_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "teacher.pth").touch()
    validate(compose_config(f"teacher.checkpoint={tmp_path}/teacher.pth"))
    validate(compose_config("method=scratch", "teacher.checkpoint=typo.pth"))
