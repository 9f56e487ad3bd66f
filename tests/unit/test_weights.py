"""Weights survive the disk, and a wrong file is explained."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mosaickd.errors import UserError
from mosaickd.models.resnet import ResNet
from mosaickd.models.weights import load_weights, read_weights, save_weights
from mosaickd.models.wresnet import WideResNet


def small(classes: int = 10, widen: int = 1, depth: int = 10) -> WideResNet:
    return WideResNet(depth=depth, widen_factor=widen, num_classes=classes)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class RunsCode:
    """A pickle of this touches a file when it is read carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_round_trip_with_record(tmp_path: Path) -> None:
    model, other = small(), small()
    model.get_buffer("bn1.running_mean").fill_(0.5)
    path = tmp_path / "deep" / "teacher.safetensors"
    metadata = {"accuracy": 71.5, "recipe": {"epochs": 8}, "name": "wrn", "best": torch.tensor(2.5)}
    save_weights(model, path, metadata)

    assert load_weights(other, path) == metadata | {"best": 2.5}
    assert equal(other.state_dict(), model.state_dict())
    assert os.listdir(path.parent) == ["teacher.safetensors"]


def test_saves_channels_last_shared_and_viewed_tensors(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    conv = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    state = {"a": flat[:6].view(2, 3), "b": flat[6:], "c": flat, "tied": flat, "conv": conv}
    save_weights(state, tmp_path / "w.safetensors", {})
    weights, _ = read_weights(tmp_path / "w.safetensors")
    assert equal(weights, state)
    assert weights["conv"].is_contiguous()


def test_saving_fails_without_harm_to_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights({"a": torch.zeros(3)}, path, {"step": 1})

    def full_disk(_descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_weights({"a": torch.ones(3)}, path, {"step": 2})
    assert read_weights(path)[1] == {"step": 1}
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("best", [75.83, torch.tensor(75.83)])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "student", "s_state_dict"])
def test_training_checkpoints(tmp_path: Path, wrapper: str, best: float | Tensor) -> None:
    model, other = small(), small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    checkpoint = {wrapper: model.state_dict(), "best_acc1": best, "epoch": 3, "arch": "wrn"}
    torch.save(checkpoint | {"optimizer": optimizer.state_dict()}, tmp_path / "c.pth")
    assert load_weights(other, tmp_path / "c.pth") == {"accuracy": pytest.approx(75.83)}
    assert equal(other.state_dict(), model.state_dict())


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_bare_state_dict_of_a_wrapped_model(tmp_path: Path, suffix: str) -> None:
    model, other = small(), small()
    path = tmp_path / f"wrapped{suffix}"
    torch.save({f"module.{key}": t for key, t in model.state_dict().items()}, path)
    assert load_weights(other, path) == {}
    assert equal(other.state_dict(), model.state_dict())


def test_a_model_whose_only_child_is_called_module(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = small()

    model, other = Wrapper(), Wrapper()
    save_weights(model, tmp_path / "w.safetensors", {})
    load_weights(other, tmp_path / "w.safetensors")
    assert equal(other.state_dict(), model.state_dict())
    load_weights(other.module, tmp_path / "w.safetensors")


def test_json_beside_the_file_joins_the_record(tmp_path: Path) -> None:
    save_weights(small(), tmp_path / "a.safetensors", {"accuracy": 1.0, "kept": True})
    torch.save(small().state_dict(), tmp_path / "b.pth")
    for stem, expected in {"a": {"accuracy": 76.0, "kept": True}, "b": {"accuracy": 76.0}}.items():
        (tmp_path / f"{stem}.json").write_text(json.dumps({"accuracy": 76.0}))
        assert read_weights(next(p for p in tmp_path.glob(f"{stem}.[sp]*")))[1] == expected
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(UserError, match=r"b\.json"):
        read_weights(tmp_path / "b.pth")


def test_checkpoints_without_batch_counters(tmp_path: Path) -> None:
    model, other = small(), small()
    state = {k: t for k, t in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    load_weights(other, tmp_path / "old.pth")
    assert torch.equal(other.fc.weight, model.fc.weight)


def test_missing_file(tmp_path: Path) -> None:
    save_weights(small(), tmp_path / "wrn16_1.safetensors", {})
    with pytest.raises(UserError, match=r"wrn40_2\.pth.*has wrn16_1\.safetensors"):
        load_weights(small(), tmp_path / "wrn40_2.pth")
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_weights(small(), tmp_path / "nowhere" / "wrn40_2.pth")
    with pytest.raises(UserError, match="is a folder"):
        load_weights(small(), tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", ["half", "tail", "empty", "text"])
def test_damaged_file(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"teacher{suffix}"
    if suffix == ".pth":
        torch.save(small().state_dict(), path)
    else:
        save_weights(small(), path, {})
    whole = path.read_bytes()
    path.write_bytes(
        {
            "half": whole[: len(whole) // 2],
            "tail": whole[:-1],
            "empty": b"",
            "text": b"<!DOCTYPE html><p>404",
        }[damage]
    )
    with pytest.raises(UserError, match=rf"teacher\{suffix} .*(damaged|cut short)"):
        load_weights(small(), path)


def test_truncated_legacy_pickle(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=False)
    load_weights(small(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"teacher\.pth .*damaged"):
        load_weights(small(), path)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"state_dict": small().state_dict(), "x": RunsCode(trap)}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth .*running code"):
        read_weights(tmp_path / "evil.pth")
    assert not trap.exists()
    torch.save(small(), tmp_path / "whole.pth")
    with pytest.raises(UserError, match=r"whole\.pth .*state_dict\(\)"):
        read_weights(tmp_path / "whole.pth")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}])
def test_file_without_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "notes.pth")
    with pytest.raises(UserError, match=r"notes\.pth holds"):
        read_weights(tmp_path / "notes.pth")


def test_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "teacher.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"teacher\.onnx is not a \.safetensors"):
        read_weights(tmp_path / "teacher.onnx")


def test_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_weights(ResNet(blocks=[1, 1, 1, 1], num_classes=10), path, {})
    model = small()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    says = r"teacher\.safetensors.*student.* \d+ keys missing \(.* \d+ keys unexpected"
    with pytest.raises(UserError, match=says) as caught:
        load_weights(model, path, role="student")
    assert re.search(r"(?s)missing \((\S+, ){20}and \d+ more\)", str(caught.value))
    assert str(caught.value).count(", and ") == 2, "twenty of each, and how many more"
    assert equal(before, model.state_dict())


def test_another_number_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_weights(small(classes=10), path, {})
    says = r"teacher\.safetensors has 10 classes, the data set has 100"
    with pytest.raises(UserError, match=says):
        load_weights(small(classes=100), path)


def test_another_width(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_weights(small(widen=2), path, {})
    says = r"another shape \(block1\S+ \[32, 16, 3, 3\] in the file, \[64, 16, 3, 3\] in the model"
    with pytest.raises(UserError, match=says):
        load_weights(small(widen=4), path)
    says = r"another shape"
    with pytest.raises(UserError, match=says):
        load_weights(small(widen=4, classes=7), path)
