"""What a `_target_` may name, and the message for those that it may not."""

from __future__ import annotations

from typing import Any

import pytest

from mosaickd.config.targets import check_targets
from mosaickd.errors import UserError


def complaint(name: Any, *allowed: str) -> str:
    with pytest.raises(UserError) as caught:
        check_targets({"a": [{"b": {"_target_": name}}]}, allowed)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.Linear", "torch.nn.modules.conv.Conv2d", "torch.optim.AdamW",
        "torch.optim.lr_scheduler.OneCycleLR", "torchvision.models.resnet18",
        "torchvision.models.VisionTransformer", "torchvision.ops.MLP", "mosaickd.data.folder.read",
        "mosaickd.data.source.Source", "mosaickd.methods.kd.KD", "mosaickd.models.vgg.VGG",
        "mosaickd.engine.schedules.cosine", "mosaickd.engine.trackers.WandbTracker", "???",
    ],
)  # fmt: skip
def test_parts_of_a_run_are_accepted(name: str) -> None:
    check_targets({"part": {"_target_": name}}, [])


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("fractions.Fraction", "fractions"),
        ("torch.load", "torch"),
        ("torch.hub.load", "torch"),
        ("mosaickd.launch.launch", "mosaickd"),
        # What their modules import:
        ("torch.nn.modules.module.functools.reduce", "_functools"),
        ("torchvision.models.resnet.partial", "functools"),
        ("mosaickd.methods.mosaic.torch.hub.load", "torch"),
        ("torch.nn.Linear.__subclasses__", "builtins"),
    ],
)
def test_everything_else_is_refused(name: str, package: str) -> None:
    message = complaint(name)
    assert message.startswith(f"a.0.b._target_: a config may not build {name}")
    assert f"allow_targets=[{package}]" in message


def test_packages_are_trusted_whole_and_only_these() -> None:
    check_targets({"_target_": "fractions.Fraction"}, ["fractions"])
    message = complaint("fractions.operator.add", "fractions")
    assert "(it belongs to _operator)" in message
    assert "allow_targets=[fractions,_operator]" in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("troch.nn.Linear", "did you mean torch?"),
        ("torch.nn.Linaer", "torch.nn.Linaer can't be imported"),
        ("torch.nn.Linaer", "did you mean Linear"),
        ("torch.nn.modules", "is a module, which can't be called"),
        (3, "must be a dotted name, got 3"),
    ],
)
def test_names_of_nothing(name: Any, words: str) -> None:
    assert words in complaint(name)


def test_names_below_an_allowed_package_that_is_not_there() -> None:
    assert "nowhere.at.all can't be imported" in complaint("nowhere.at.all", "nowhere")


def test_a_text_that_would_be_resolved_once_more_is_refused() -> None:
    with pytest.raises(UserError, match=r"a\.depth must not hold"):
        check_targets({"a": {"depth": "${oc.create:'{_target_: os.getcwd}'}"}}, [])
