"""Weights survive the disk, no file runs code, and a wrong file is explained."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from mosaickd.errors import UserError
from mosaickd.models.resnet import ResNet
from mosaickd.models.weights import load_weights, read_weights, save_weights, weights_digest
from mosaickd.models.wresnet import WideResNet

formats = pytest.mark.parametrize("suffix", [".safetensors", ".pth"])


def small(classes: int = 10, widen: int = 1) -> WideResNet:
    return WideResNet(depth=10, widen_factor=widen, num_classes=classes)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def write(path: Path, state: dict[str, Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_weights(state, path, {})
    else:
        torch.save(state, path)


# ---------------------------------------------------------------------------- what people bring


def test_round_trip_with_record(tmp_path: Path) -> None:
    model, other = small(), small()
    model.get_buffer("bn1.running_mean").fill_(0.5)
    path = tmp_path / "deep" / "teacher.safetensors"
    metadata = {"accuracy": 71.5, "recipe": {"epochs": 8}, "name": "wrn", "best": torch.tensor(2.5)}
    save_weights(model, path, metadata)
    assert weights_digest(other) != weights_digest(model)
    assert load_weights(other, path) == metadata | {"best": 2.5}
    assert equal(other.state_dict(), model.state_dict())
    assert weights_digest(other) == weights_digest(model)
    assert os.listdir(path.parent) == ["teacher.safetensors"]


def test_saves_channels_last_shared_and_viewed_tensors(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    conv = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    state = {"a": flat[:6].view(2, 3), "b": flat[6:], "c": flat, "tied": flat, "conv": conv}
    save_weights(state, tmp_path / "w.safetensors", {})
    weights, _ = read_weights(tmp_path / "w.safetensors")
    assert equal(weights, state)
    assert weights["conv"].is_contiguous()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("best", [75.83, torch.tensor(75.83)])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "student", "s_state_dict"])
def test_training_checkpoints(
    tmp_path: Path, wrapper: str, best: float | Tensor, zipped: bool
) -> None:
    model, other = small(), small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    checkpoint = {
        wrapper: model.state_dict(), "best_acc1": best, "epoch": 3, "arch": "wrn",
        "optimizer": optimizer.state_dict(),
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    assert load_weights(other, tmp_path / "c.pth") == {"accuracy": pytest.approx(75.83)}
    assert equal(other.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", ["wrapped.pt", "model.bin", "teacher.safetensors"])
def test_the_content_decides_how_a_file_is_read_and_prefixes_are_dropped(
    tmp_path: Path, name: str
) -> None:
    model, other = small(), small()
    state = {f"module._orig_mod.{key}": t for key, t in model.state_dict().items()}
    torch.save(state, tmp_path / name)
    assert load_weights(other, tmp_path / name) == {}
    assert equal(other.state_dict(), model.state_dict())


def test_a_model_whose_own_names_have_a_prefix(tmp_path: Path) -> None:
    model, other = (nn.Sequential() for _ in range(2))
    for wrapper in (model, other):
        wrapper.add_module("module", small())
    save_weights(model, tmp_path / "w.safetensors", {})
    load_weights(other, tmp_path / "w.safetensors")
    assert equal(other.state_dict(), model.state_dict())
    load_weights(small(), tmp_path / "w.safetensors")


def test_batch_counters_may_be_missing_or_averages(tmp_path: Path) -> None:
    model, path = nn.BatchNorm1d(2), tmp_path / "old.pth"
    state = model.state_dict() | {"weight": torch.tensor([2.0, 3.0])}
    torch.save(state | {"num_batches_tracked": torch.tensor(3.5)}, path)
    load_weights(model, path)
    del state["num_batches_tracked"]
    torch.save(state, path)
    load_weights(model, path)
    assert model.weight.tolist() == [2, 3]


@formats
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    model, state = nn.Linear(3, 2), {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    path = tmp_path / f"w{suffix}"
    write(path, {name: tensor.to(dtype) for name, tensor in state.items()})
    load_weights(model, path)
    assert equal(state, model.state_dict())
    assert model.weight.dtype == torch.float32


# ---------------------------------------------------------------------------------------- records


def test_json_beside_the_file_joins_the_record(tmp_path: Path) -> None:
    save_weights(small(), tmp_path / "a.safetensors", {"accuracy": 1.0, "seed": 3})
    torch.save(small().state_dict(), tmp_path / "b.pth")
    for name, expected in {
        "a.safetensors": {"accuracy": 76.0, "seed": 3},
        "b.pth": {"accuracy": 76.0},
    }.items():
        (tmp_path / name).with_suffix(".json").write_text(json.dumps({"accuracy": 76.0}))
        assert read_weights(tmp_path / name)[1] == expected
    for text in ("{", "[1]"):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(UserError, match=r"b\.json"):
            read_weights(tmp_path / "b.pth")


@pytest.mark.parametrize("accuracy", ["76.3 %", math.nan, 101, -1, [76.0]])
def test_an_accuracy_that_is_none_is_ignored(
    tmp_path: Path, accuracy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "teacher.safetensors"
    save_weights(small(), path, {})
    path.with_suffix(".json").write_text(json.dumps({"accuracy": accuracy, "steps": 7}))
    assert load_weights(small(), path) == {"steps": 7}
    assert "teacher.safetensors" in caplog.text
    assert "not a number of percent" in caplog.text


# ------------------------------------------------------------------------------------ wrong files


class RunsCode:
    """Make a folder where a pickle of this is read carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"mkdir {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    proof, path = tmp_path / "proof", tmp_path / "evil.pth"
    content = {"state_dict": small().state_dict(), "x": RunsCode(proof)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil\.pth .*running code .*\.system"):
        read_weights(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists(), "the file would run code"


def test_a_whole_network_is_not_read(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "whole.pth")
    with pytest.raises(UserError, match=r"whole\.pth .*running code .*WideResNet.*state_dict\(\)"):
        read_weights(tmp_path / "whole.pth")


@formats
@pytest.mark.parametrize("damage", ["half", "tail", "empty", "text"])
def test_damaged_file(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"teacher{suffix}"
    write(path, small().state_dict())
    content = path.read_bytes()
    path.write_bytes(
        {
            "half": content[: len(content) // 2],
            "tail": content[:-1],
            "empty": b"",
            "text": b"<!DOCTYPE html><p>404",
        }[damage]
    )
    with pytest.raises(UserError, match=rf"teacher\{suffix} .*is damaged, .*fetch it again"):
        read_weights(path)


def test_a_changed_byte_or_the_end_of_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    torch.save({"weight": torch.ones(100, 100)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in a value: torch.load would return it
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"teacher\.pth .*checksum"):
        read_weights(path)
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"teacher\.pth .*damaged"):
        read_weights(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}, {0: torch.ones(1)}])
def test_file_without_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "notes.pth")
    with pytest.raises(UserError, match=r"notes\.pth .*holds"):
        read_weights(tmp_path / "notes.pth")


def test_missing_file(tmp_path: Path) -> None:
    save_weights(small(), tmp_path / "wrn16_1.safetensors", {})
    with pytest.raises(UserError, match=r"at .*wrn40_2\.pth; its folder has wrn16_1\.safetensors"):
        read_weights(tmp_path / "wrn40_2.pth")
    with pytest.raises(UserError, match=r"wrn40_2\.pth; its folder has none"):
        read_weights(tmp_path / "nowhere" / "wrn40_2.pth")


# --------------------------------------------------------------------- weights of something else


def refusal(model: nn.Module, path: Path) -> str:
    """Return why `path` is refused, which leaves the model as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(model, path, role="student")
    assert equal(before, model.state_dict())
    assert str(error.value).startswith(f"{path} does not fit the student ({type(model).__name__})")
    return str(error.value)


@formats
def test_missing_and_unexpected_names_are_listed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"teacher{suffix}"
    names = [f"extra{i}" for i in range(8)]
    write(path, {"weight": torch.ones(2, 3)} | {name: torch.ones(1) for name in names})
    wrong = f"1 keys missing (bias), 8 keys unexpected ({', '.join(names[:5])}, and 3 more)"
    assert wrong in refusal(nn.Linear(3, 2), path)
    write(path, ResNet(blocks=[1, 1, 1, 1], num_classes=10).state_dict())
    assert len(refusal(small(), path)) < 1000


def test_shapes_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_weights(small(widen=2), path, {})
    message = refusal(small(widen=4, classes=7), path)
    assert "tensors of another shape (block1" in message
    assert "[32, 16, 3, 3] in the file, [64, 16, 3, 3] in the model" in message
    assert message.count("in the model") == 5


def test_another_number_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_weights(small(classes=10), path, {})
    assert "it has 10 classes, the data set has 100" in refusal(small(classes=100), path)


@pytest.mark.parametrize(
    ("bias", "reason"),
    [
        (torch.tensor([0, math.nan]), "not finite"),
        (torch.tensor([0, 1e300], dtype=torch.float64), "not finite"),
        (torch.zeros(2, dtype=torch.complex64), "torch.complex64, the model's are torch.float32"),
        (torch.zeros(2, dtype=torch.int8), "torch.int8, the model's are torch.float32"),
    ],
)
def test_values_that_no_network_computes_with(tmp_path: Path, bias: Tensor, reason: str) -> None:
    path = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(2, 3), "bias": bias}, path)
    message = refusal(nn.Linear(3, 2), path)
    assert "bias holds values" in message
    assert reason in message
