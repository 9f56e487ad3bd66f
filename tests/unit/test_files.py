"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from mosaickd.errors import UserError
from mosaickd.run_dir import RunDir
from mosaickd.utils.files import read_json, remove_temporaries, write_atomically, write_json


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


@pytest.mark.parametrize("links", [True, False])
def test_what_a_file_held_before_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links on this file system")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path, previous = tmp_path / "new", tmp_path / "old"
    for content in (b"1", b"2", b"3"):
        write_atomically(path, writer(content), previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    if links:
        previous.unlink()
        os.link(path, previous)  # as a kill between the two steps leaves them
        write_atomically(path, writer(b"4"), previous)
        assert (path.read_bytes(), previous.read_bytes()) == (b"4", b"3")
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


def test_new_files_and_folders_have_the_permissions_that_others_have(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    old = os.umask(0o027)
    try:
        write_atomically(path, writer(b""))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_a_kill_left_is_removed_and_files_of_the_users_own_stay(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "file", lambda file: os.rename(
            next(tmp_path.glob(".file.*.tmp")), tmp_path / ".file.0a1b.tmp") or 1 / 0)  # fmt: skip
    (tmp_path / ".mine.tmp").touch()
    remove_temporaries(tmp_path, of="other")
    assert sorted(os.listdir(tmp_path)) == [".file.0a1b.tmp", ".mine.tmp"]
    remove_temporaries(tmp_path)
    assert os.listdir(tmp_path) == [".mine.tmp"]


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert read_json(path) is None
    write_json(path, {"status": "finished"})
    with pytest.raises(TypeError):
        write_json(path, {"status": object()})
    assert read_json(path) == {"status": "finished"}
    path.write_text('{"status": ')
    with pytest.raises(UserError, match=r"result\.json is not valid JSON"):
        read_json(path)


def test_what_comes_again_after_a_checkpoint_is_not_there_twice(tmp_path: Path) -> None:
    """A run was stopped at step 20, before its evaluation, and killed while it wrote a line."""
    run = RunDir(tmp_path)
    assert run.read_metrics() == []
    losses = {step: {"step": step, "loss/student/kd": 1.0} for step in (20, 40)}
    for record in ({"step": 10, "accuracy/top1": 5.0}, losses[20],
                   {"step": 20, "accuracy/top1": 7.0}, losses[40]):  # fmt: skip
        run.append_metrics(record)
    with run.metrics.open("a") as file:
        file.write('{"step": 60, "lo')
    run.truncate(20, evaluated=10)
    run.append_metrics({"step": 20, "accuracy/top1": 7.5})
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines == [{"step": 10, "accuracy/top1": 5.0}, losses[20],
                     {"step": 20, "accuracy/top1": 7.5}]  # fmt: skip
