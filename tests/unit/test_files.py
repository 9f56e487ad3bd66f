"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from mosaickd.errors import UserError
from mosaickd.files import read_json, write_atomically, write_json


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
