"""Validation against constructors' signatures: what can't be meant is told in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import pytest
from composing import asked, composing
from omegaconf import DictConfig, OmegaConf

from mosaickd.config.validation import check_node, validate, violation
from mosaickd.constraints import Count, Fraction, NonNegative, Positive, Range
from mosaickd.errors import UserError

HERE = __name__

# --------------------------------------------------------------------------------------- one value

LARGE = 3 * 10**9


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, int), (1, float), (1.5, float), (True, bool), ("a", str), (None, int | None),
        (3, int | None), ([1, 2], list[int]), ([0.5, 1], list[float]), ([1], Sequence[int]),
        ([], Iterable[int]), (None, list[int] | None), ("dataset", Literal["dataset", "ood"]),
        (0, NonNegative), (0.1, Positive), (1, Count), (LARGE, Count), (1, Fraction),
        ([[1], [2, 3]], list[list[int]]), ("anything", Any), (3, "not a type"), ([1], list),
    ],
)  # fmt: skip
def test_values_that_fit_their_annotation(value: Any, hint: Any) -> None:
    assert violation(value, hint) is None


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        ("3", int, "a whole number"), (1.5, int, "a whole number"), (True, int, "a whole number"),
        ("1", float, "a number"), (False, float, "a number"), (1, bool, "true or false"),
        ("true", bool, "true or false"), (1, str, "a text"), (None, int, "a whole number"),
        ("x", int | None, "a whole number"), (3, list[int], "a list"),
        ([1, "a"], list[int], "a whole number"), ([1, 2.5], Sequence[int], "a whole number"),
        ("odd", Literal["dataset", "ood"], "one of dataset, ood"),
        (-1, NonNegative, ">= 0"), (0, Positive, "> 0"), (0, Count, ">= 1"),
        (1.1, Fraction, "<= 1"), (1.5, Count, "a whole number"), ("a", Positive, "a number"),
        ([1, [2]], list[list[int]], "a list"), (10**400, int, "2**63"), (10**400, float, "2**63"),
        (10**400, Count, "2**63"), (float("nan"), Positive, "finite"),
        ({}, Callable[..., int], "_target_"), (3, dict, "a section"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_told_in_words(value: Any, hint: Any, words: str) -> None:
    problem = violation(value, hint)
    assert problem is not None
    assert words in problem


def test_ranges_include_their_ends_unless_above() -> None:
    assert Range(low=1, high=2).violation(1) is None
    assert Range(low=1, high=2).violation(2) is None
    assert Range(low=1, above=True).violation(1) == "must be > 1"
    assert Range(low=1).violation(0) == "must be >= 1"
    assert Range(high=2).violation(2.5) == "must be <= 2"


# ------------------------------------------------------------------------------------- one section


class Widget:
    """Something that a config can build."""

    def __init__(
        self,
        *,
        width: Count,
        height: Positive = 1.0,
        colour: str = "red",
        sizes: list[int] | None = None,
    ) -> None: ...


class Anything:
    def __init__(self, **settings: Any) -> None: ...


def widget(**settings: Any) -> DictConfig:
    return OmegaConf.create({"_target_": f"{HERE}.Widget", "width": 3} | settings)


def complaint(node: Any, path: str = "part", kind: str = "part") -> str:
    with pytest.raises(UserError) as caught:
        check_node(node, path, kind)
    return str(caught.value)


def test_a_section_that_can_be_built_passes() -> None:
    check_node(widget(height=2, colour="blue", sizes=[1, 2]), "part", "part")
    anything = OmegaConf.create({"_target_": f"{HERE}.Anything", "whatever": 3})
    check_node(anything, "part", "part")


def test_names_that_annotate_are_not_arguments() -> None:
    check_node(widget(name="mine", checkpoint=None, features=["a"]), "part", "part")


def test_a_misspelt_key_is_told_with_its_place_the_nearest_and_all_that_is_accepted() -> None:
    message = complaint(widget(heigth=2), "teacher")
    assert "teacher.heigth" in message
    assert "did you mean height?" in message
    assert "accepted here: colour, height, sizes, width" in message


def test_a_key_like_no_other_is_told_without_a_guess() -> None:
    message = complaint(widget(zzz=1))
    assert "part.zzz is unknown" in message
    assert "did you mean" not in message


def test_a_value_out_of_range_is_told_with_key_and_value() -> None:
    assert complaint(widget(width=0)) == "part.width must be >= 1, got 0"
    assert complaint(widget(height=-2.0)) == "part.height must be > 0, got -2.0"
    assert "part.colour must be a text, got 3" in complaint(widget(colour=3))
    assert "part.sizes must be a whole number, got [1, 'a']" in complaint(widget(sizes=[1, "a"]))


def test_what_is_missing_is_told() -> None:
    assert "part.width" in complaint(OmegaConf.create({"_target_": f"{HERE}.Widget"}))
    message = complaint(widget(colour="???"))
    assert "part.colour has no value" in message
    assert "part.colour=" in message


def test_interpolations_are_checked_by_their_value() -> None:
    root = OmegaConf.create({"size": 0, "part": {"_target_": f"{HERE}.Widget", "width": "${size}"}})
    assert complaint(root.part) == "part.width must be >= 1, got 0"


def test_a_section_without_a_target_or_with_a_wrong_one() -> None:
    assert "_target_" in complaint(OmegaConf.create({"width": 3}))
    assert "part" in complaint("a text")
    message = complaint(OmegaConf.create({"_target_": f"{HERE}.Gadget"}))
    assert "part._target_" in message
    assert "Gadget" in message


class Holder:
    def __init__(self, *, widget: Any) -> None: ...


def test_nested_sections_are_checked_too() -> None:
    """Whatever their key is called: users' models and methods have parts of their own."""
    node = {"_target_": f"{HERE}.Holder", "widget": {"_target_": f"{HERE}.Widget", "width": 3}}
    check_node(OmegaConf.create(node), "part", "part")
    node["widget"] |= {"heigth": 1}  # type: ignore[operator]
    assert "part.widget.heigth" in complaint(OmegaConf.create(node), kind="part")


# ------------------------------------------------------------------------------------ whole config


@pytest.fixture(autouse=True, scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=-1", "seed must be"),
        ("train.batch_size=0", "train.batch_size must be >= 1, got 0"),
        ("train.steps=0", "train.steps must be >= 1"),
        ("train.clip=0", "train.clip must be > 0"),
        ("train.epochs=null", "train.steps and train.epochs"),
        ("method.adv=-1", "method.adv must be >= 0, got -1"),
        ("method.student_steps=2.5", "method.student_steps must be a whole number"),
        ("method.ood_statistics=odd", "method.ood_statistics must be one of dataset, ood"),
        ("+method.advv=1", "did you mean adv?"),
        ("dataset.classes=5", "dataset.classes must be a list"),
        ("+ood.reader.downlaod=true", "did you mean download?"),
        ("generator.latent_dim=a", "generator.latent_dim must be a whole number"),
        ("+players.student.optimizer.momentun=1", "did you mean momentum"),
        ("+players.student.scheduel=1", "did you mean schedule?"),
        ("~generator", "generator "),
        ("tracker.project=3", "tracker.project must be a text"),
        ("players.student.optimizer.lr=abc", "players.student.optimizer.lr"),
        ("players.student=3", "players.student"),
        ("players=3", "players must have a section"),
        ("dataset.recipe=3", "dataset.recipe must be a section"),
        ("dataset.recipe.lr=-1", "dataset.recipe.lr must be >= 0, got -1"),
        ("+dataset.recipe.epoch=3", "did you mean epochs?"),
        ("student.name=3", "student.name must be a text, got 3"),
        ("teacher.checkpoint=0.5", "teacher.checkpoint must be a text"),
        ("student.features=3", "student.features must be a list"),
        ("~ood.reader._target_", "ood.reader must be a section with a _target_"),
        ("ood.reader._partial_=3", "ood.reader._partial_ must be true or false"),
        ("seed=${nowhere}", "nowhere"),
        ("student._target_=torch.optim.SGD", "no model"),
        ("players.student.schedule._target_=torchvision.models.resnet18", "no schedule"),
        ("players.student.optimizer._target_=torchvision.models.resnet18", "no optimizer"),
        ("~generator.latent_dim", "generator.latent_dim must be a whole number"),
        ("tracker._target_=torch.nn.Identity", "no tracker"),
        ("players.student.schedule._target_=torch.nn.Identity", "no schedule"),
        ("tracker._target_=torchvision.models.resnet18", "no tracker"),
        ("~method.name", "method.name is missing"),
        ("~device", "device is missing"),
        ("method._target_=torch.nn.Linear", "no method"),
        ("ood.reader._target_=torchvision.models.resnet18", "no reader"),
    ],
)
def test_settings_that_cannot_be_meant(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(asked(override))
    assert words in str(caught.value)


def test_sources_that_lack_a_root_say_how_to_give_one() -> None:
    with pytest.raises(UserError, match=r"ood\.root has no value.*ood\.root="):
        validate(asked("ood=folder"))
