"""Weights survive the disk, and a wrong file is explained."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from mosaickd import teachers
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
        raise OSError(errno.ENOSPC, "No space left on device")

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


# ------------------------------------------------------------------ what does not belong in a model


def linear() -> dict[str, Tensor]:
    return {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_missing_and_surplus_names_are_listed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"teacher{suffix}"
    surplus = [f"extra{i:02}" for i in range(23)]
    write(path, {"weight": torch.ones(2, 3)} | {name: torch.ones(1) for name in surplus})
    with pytest.raises(UserError) as error:
        load_weights(nn.Linear(3, 2), path)
    says = f"1 keys missing (bias), 23 keys unexpected ({', '.join(surplus[:20])}, and 3 more)"
    assert says in str(error.value)


def test_shapes_are_listed(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Conv2d(1, 1, 3, bias=False) for _ in range(22)))
    path = tmp_path / "teacher.pth"
    torch.save({name: tensor[..., :2] for name, tensor in model.state_dict().items()}, path)
    with pytest.raises(UserError) as error:
        load_weights(model, path)
    assert "22 tensors have another shape" in str(error.value)
    assert str(error.value).count("[1, 1, 3, 2] in the file, [1, 1, 3, 3] in the model") == 20
    assert ", and 2 more)" in str(error.value)


def write(path: Path, state: dict[str, Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_weights(state, path, {})
    else:
        torch.save(state, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("bias", torch.tensor([0, math.nan]), "not finite"),
        ("weight", torch.full((2, 3), -math.inf), "not finite"),
        ("bias", torch.tensor([0, 1e300], dtype=torch.float64), "not finite"),
        ("bias", torch.tensor([0, math.inf], dtype=torch.bfloat16), "not finite"),
        (
            "bias",
            torch.zeros(2, dtype=torch.complex64),
            "values of complex64, the .* float32",
        ),
        ("bias", torch.zeros(2, dtype=torch.bool), "values of bool, the .* float32"),
        ("weight", torch.zeros(2, 3, dtype=torch.int8), "values of int8, the .* float32"),
    ],
)
def test_values_that_no_network_computes_with(
    tmp_path: Path, suffix: str, name: str, value: Tensor, says: str
) -> None:
    path, model = tmp_path / f"teacher{suffix}", nn.Linear(3, 2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    write(path, linear() | {name: value})
    with pytest.raises(
        UserError, match=rf"teacher\{suffix}: {name} holds (values that are )?{says}"
    ):
        load_weights(model, path)
    assert equal(before, model.state_dict())


def test_buffers_have_to_be_finite_and_counters_may_be_averages(tmp_path: Path) -> None:
    path, model = tmp_path / "teacher.pth", nn.BatchNorm1d(2)
    averaged = model.state_dict() | {"num_batches_tracked": torch.tensor(3.5)}
    torch.save(averaged, path)
    load_weights(model, path)
    torch.save(averaged | {"running_var": torch.tensor([1, math.nan])}, path)
    with pytest.raises(UserError, match="running_var holds values that are not finite"):
        load_weights(model, path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Linear(3, 2)
    for path in (tmp_path / "a.safetensors", tmp_path / "b.pth"):
        write(path, {name: tensor.to(dtype) for name, tensor in linear().items()})
        load_weights(model, path)
        assert equal(linear(), model.state_dict())
        assert model.weight.dtype == torch.float32


def test_names_that_are_no_names(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    torch.save({0: torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"teacher\.pth holds neither"):
        read_weights(path)
    torch.save({"\x1b[2J" + "x" * 900: torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"1 keys unexpected") as error:
        load_weights(nn.Linear(3, 2), path)
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 600
    torch.save({"module." * 500_000: torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"teacher\.pth holds names of up to 3,500,000 characters"):
        load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize("accuracy", ["76.3 %", math.nan, math.inf, 101, -1, [76.0], {}, True])
def test_an_accuracy_that_is_none_is_ignored(
    tmp_path: Path, accuracy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "teacher.safetensors"
    save_weights(linear(), path, {})
    path.with_suffix(".json").write_text(json.dumps({"accuracy": accuracy, "steps": 7}))
    record = teachers.load(nn.Linear(3, 2), path)
    assert record == {"steps": 7}
    assert "teacher.safetensors" in caplog.text
    assert "not a number of percent" in caplog.text
    teachers.check_accuracy(50.0, record, path)


@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"a": ' * 10**5, '{"a":' * 30 + "1" + "}" * 30, '{"a": "' + "x" * 2**20 + '"}',
     "[1]", '{"accuracy": ' + "9" * 5000 + "}", b"\xff\xfe{}"],
)  # fmt: skip
def test_a_record_that_is_none(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(linear(), path)
    path.with_suffix(".json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"record .*teacher|teacher\.json, the record"):
        load_weights(nn.Linear(3, 2), path)


def test_metadata_without_end_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    whole = {"record": "[" * 10**5, "accuracy": "70.5", "more": '{"a":' * 30 + "1" + "}" * 30}
    safetensors.torch.save_file(linear(), path, metadata=whole)
    with pytest.raises(
        UserError, match=r"the record of .*teacher\.safetensors holds lists in lists"
    ):
        read_weights(path)
    del whole["more"]
    safetensors.torch.save_file(linear(), path, metadata=whole)
    assert read_weights(path)[1] == {"accuracy": 70.5}
