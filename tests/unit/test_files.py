"""Files that are whole or not there, checkpoints that say what is wrong, folders with one owner."""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
import torch
from mosaickd.engine.metrics import MetricsFile

from mosaickd.engine.checkpoint import load_checkpoint, save_checkpoint
from mosaickd.errors import UserError
from mosaickd.files import read_json, write_atomically, write_json

# ---------------------------------------------------------------------------------- atomic writes


def writer(content: bytes) -> Callable[[IO[bytes]], object]:
    return lambda file: file.write(content)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def write(file: IO[bytes]) -> None:
        file.write(b"half of the n")
        file.flush()
        assert path.read_text() == "old", "nothing shows before all is written"
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_what_a_file_held_before_is_kept(tmp_path: Path) -> None:
    path, previous = tmp_path / "new", tmp_path / "old"
    for content in (b"1", b"2", b"3"):
        write_atomically(path, writer(content), previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    previous.unlink()
    os.link(path, previous)  # as a kill between the two steps leaves them
    write_atomically(path, writer(b"4"), previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"4", b"3")
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


def test_a_file_system_without_links_keeps_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    path, previous = tmp_path / "new", tmp_path / "old"
    for content in (b"1", b"2", b"3"):
        write_atomically(path, writer(content), previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


def test_a_write_replaces_the_file_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    for content in (b"first, and longer", b"second"):
        write_atomically(path, writer(content))
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file"]


def test_files_have_the_permissions_that_others_have(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", lambda file: file.write(b""))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_what_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"status": "finished"})
    with pytest.raises(TypeError):
        write_json(path, {"status": object()})
    assert read_json(path) == {"status": "finished"}


def test_missing_and_broken_json(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") is None
    path = tmp_path / "broken.json"
    path.write_text('{"status": ')
    with pytest.raises(UserError, match=r"broken\.json"):
        read_json(path)


# ------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.pt"
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    game = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(path, {"game": game, "random": torch.get_rng_state(), "step": 7})
    return path


def test_a_checkpoint_comes_back_as_it_was(checkpoint: Path) -> None:
    state = load_checkpoint(checkpoint)
    assert state["step"] == 7
    assert torch.equal(state["random"], torch.get_rng_state())
    weight = state["game"]["module"]["0.weight"]
    save_checkpoint(checkpoint, state)
    assert torch.equal(load_checkpoint(checkpoint)["game"]["module"]["0.weight"], weight)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.9, -1])
def test_a_truncated_checkpoint_names_the_file(checkpoint: Path, keep: float) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(UserError, match=r"last\.pt"):
        load_checkpoint(checkpoint)


def test_whatever_bytes_are_damaged_the_error_names_the_file(checkpoint: Path) -> None:
    """Damage to a pickle surfaces as nearly any exception; damage to weights may not show."""
    content = checkpoint.read_bytes()
    noise = torch.randint(256, (400, 6), generator=torch.Generator().manual_seed(0)).tolist()
    start = content.index(b"data.pkl")
    for first, *values in noise:
        damaged = bytearray(content)
        for offset, value in enumerate(values):  # in the pickle, which has most of the structure
            damaged[start + 8 + first * 5 + offset * 7] = value
        checkpoint.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_checkpoint(checkpoint)
            except UserError as error:
                assert "last.pt" in str(error)  # noqa: PT017  (most damage raises, not all)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, torch.zeros(3)])
def test_another_torch_file_is_no_checkpoint(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=r"model\.pt"):
        load_checkpoint(path)


class Rocket:
    """An object that unpickling would have to run code for."""


def test_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    path = tmp_path / "rocket.pt"
    torch.save({"game": Rocket()}, path)
    with pytest.raises(UserError, match=r"rocket\.pt"):
        load_checkpoint(path)


# ---------------------------------------------------------------------------------------- metrics


def test_metrics_after_the_checkpoint_and_half_lines_are_dropped_on_resume(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    assert metrics.read() == []
    for step in (1, 20, 40):
        metrics.append({"step": step, "loss": step / 10})
    with metrics.path.open("a") as file:
        file.write('{"step": 60, "lo')
    metrics.truncate(20, 0)
    metrics.append({"step": 40, "loss": 0.5})
    lines = [json.loads(line) for line in metrics.path.read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 0.1}, {"step": 20, "loss": 2.0}, {"step": 40, "loss": 0.5},
    ]  # fmt: skip


def test_an_evaluation_that_comes_again_is_not_there_twice(tmp_path: Path) -> None:
    """A run was stopped at step 20, before its evaluation; gone on, it was killed right after."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for line in ({"step": 10, "accuracy/top1": 5.0}, {"step": 20, "loss/student/kd": 1.0},
                 {"step": 20, "accuracy/top1": 7.0}):  # fmt: skip
        metrics.append(line)
    metrics.truncate(20, evaluated=10)
    assert [line.get("accuracy/top1") for line in metrics.read()] == [5.0, None]
    metrics.append({"step": 20, "accuracy/top1": 7.0})
    metrics.truncate(20, evaluated=20)
    assert [line.get("accuracy/top1") for line in metrics.read()] == [5.0, None, 7.0]
