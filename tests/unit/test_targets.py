"""What a `_target_` may name, and what is said about those that it may not."""

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
def test_parts_of_a_run(name: str) -> None:
    check_targets({"part": {"_target_": name}}, [])


@pytest.mark.parametrize(
    "name",
    [
        "torch.load", "torch.hub.load", "torch.jit.load", "torch.utils.cpp_extension.load",
        "torch.nn.functional.relu", "torch.nn.Module.load_state_dict",
        "torch.nn.parallel.DataParallel", "torch.nn.Linear.__init__",
        "torch.optim.Optimizer.load_state_dict",
        "torchvision.models.get_weight", "torchvision.models.list_models",
        "mosaickd.run_dir.clear", "mosaickd.data.prepare.prepare", "mosaickd.data.cache.cached",
        "mosaickd.models.weights.save_weights", "mosaickd.methods.base.Stream",
    ],
)  # fmt: skip
def test_what_else_the_same_packages_hold(name: str) -> None:
    package = name.partition(".")[0]
    message = complaint(name)
    assert message.startswith(f"a.0.b._target_: {name} is nothing that a config may build")
    assert f"allow_targets=[{package}]" in message
    check_targets({"part": {"_target_": name}}, [package])


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("torch.nn.modules.module.functools.reduce", "_functools"),
        ("torchvision.models.resnet.partial", "functools"),
        ("mosaickd.data.pictures.os.system", "posix"),
        ("mosaickd.methods.mosaic.torch.hub.load", "torch"),
    ],
)
def test_what_their_modules_import(name: str, owner: str) -> None:
    assert f"allow_targets=[{owner}]" in complaint(name)


def test_packages_are_trusted_whole_and_only_these() -> None:
    assert complaint("fractions.Fraction") == (
        "a.0.b._target_: fractions.Fraction is not from mosaickd, torch or torchvision; if you "
        "trust the package: allow_targets=[fractions]"
    )
    check_targets({"_target_": "fractions.Fraction"}, ["fractions"])
    message = complaint("fractions.operator.add", "fractions")
    assert (
        "is from _operator, and that is not from mosaickd, torch, torchvision or fractions"
        in message
    )
    assert "allow_targets=[fractions,_operator]" in message


def test_names_of_nothing() -> None:
    assert "did you mean torch?" in complaint("troch.nn.Linear")
    assert "torch.nn.Linaer can't be imported" in complaint("torch.nn.Linaer")
    assert "did you mean Linear" in complaint("torch.nn.Linaer")
    assert "nowhere.at.all can't be imported" in complaint("nowhere.at.all", "nowhere")
    assert "is a module, which can't be called" in complaint("torch.nn.modules")
    assert "must be a dotted name, got 3" in complaint(3)
