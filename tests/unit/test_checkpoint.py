"""Checkpoints come back as they were, survive damage, and never run code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mosaickd.engine.checkpoint import (
    CheckpointWriter,
    TorchRNG,
    exist,
    load_checkpoint,
    newest_readable,
    save_checkpoint,
    snapshot,
)
from mosaickd.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "last.pt"


def make_state(step: int = 7) -> dict[str, Any]:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    trainer = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
    return {"trainer": trainer, "rng": torch.get_rng_state(), "step": step}


def alter(content: bytes) -> bytes:
    """Change a name in it: only the checksum tells."""
    return content.replace(b"optimizer", b"optimizes")


def test_a_checkpoint_comes_back_as_it_was(path: Path) -> None:
    state = make_state()
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    torch.testing.assert_close(loaded, state, rtol=0, atol=0)
    assert loaded["trainer"]["module"]._metadata == state["trainer"]["module"]._metadata


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda content, size=size: content[:size] for size in (0, 1, 100, 3000, -1)),
        alter,
        lambda content: b"text",
    ],
)
def test_a_damaged_checkpoint_names_the_file(path: Path, damage: Callable[[bytes], bytes]) -> None:
    save_checkpoint(path, make_state())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"last\.pt can't be read as a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, torch.zeros(3)])
def test_another_torch_file_is_no_checkpoint(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt .*not a checkpoint"):
        load_checkpoint(tmp_path / "model.pt")


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"mkdir {self.path}",)


def test_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    torch.save({"trainer": RunsCode(tmp_path / "proof")}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt .*running code .*\.system"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "proof").exists()


def test_the_previous_one_is_kept_and_used_where_the_newest_is_damaged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert newest_readable(path) is None
    assert not exist(path)
    for step in (1, 2, 3):
        save_checkpoint(path, make_state(step))
    assert newest_readable(path) == path
    path.write_bytes(alter(path.read_bytes()))
    previous = path.with_name("previous.pt")
    assert newest_readable(path, read_only=True) == previous
    assert path.exists()
    assert newest_readable(path) == previous
    assert load_checkpoint(previous)["step"] == 2
    assert sorted(os.listdir(path.parent)) == ["damaged.pt", "previous.pt"]
    assert str(path) in caplog.text
    assert "goes on from the checkpoint before it" in caplog.text
    assert exist(path)

    previous.write_bytes(alter(previous.read_bytes()))
    with pytest.raises(UserError, match=r"previous\.pt.*nothing was deleted.*force=true"):
        newest_readable(path)
    assert previous.exists()


# ----------------------------------------------------------------------------------------- writer


def test_the_writer_writes_what_was_there_when_it_was_called(path: Path) -> None:
    written: list[int] = []
    writer = CheckpointWriter(path, lambda state: written.append(state["step"]))
    weight = torch.zeros(2)
    for step in (1, 2):
        writer.save({"trainer": [weight, (weight,)], "step": step})
        weight += 1
    writer.close()
    assert written == [1, 2]
    assert load_checkpoint(path)["trainer"][0].tolist() == [1, 1]
    assert load_checkpoint(path.with_name("previous.pt"))["trainer"][1][0].tolist() == [0, 0]


def test_what_the_writer_could_not_write_is_raised_later(path: Path) -> None:
    path.parent.write_text("a file where the folder should be")
    writer = CheckpointWriter(path)
    writer.save({"trainer": {}})
    with pytest.raises(OSError, match="checkpoints"):
        writer.close()


def test_a_state_that_cannot_be_read_back_stops_the_run(path: Path) -> None:
    writer = CheckpointWriter(path)
    writer.save({"trainer": Path("an object that only code can make")})
    with pytest.raises(UserError, match=r"last\.pt .*running code .*pathlib"):
        writer.wait()


def test_a_snapshot_keeps_kinds_and_versions() -> None:
    state = {"module": nn.BatchNorm2d(2).state_dict(), "rest": [1, ("a", None)]}
    copied = snapshot(state)
    torch.testing.assert_close(copied["module"], state["module"])
    assert copied["module"]._metadata == state["module"]._metadata
    assert copied["rest"] == state["rest"]


def test_torchs_random_numbers_go_on_where_they_were() -> None:
    torch.manual_seed(3)
    rng = TorchRNG()
    state = rng.state_dict()
    numbers = torch.rand(4)
    rng.load_state_dict(state)
    assert torch.equal(torch.rand(4), numbers)
    rng.reseed(20)
    assert not torch.equal(torch.rand(4), numbers)
