"""Large sets are decoded once, whatever happens to the process that does it."""

from __future__ import annotations

import logging
import os
import signal
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mosaickd.data import cache, decode, folder
from mosaickd.data.decode import Allocate, Decoded
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError

PATIENCE = 60.0
context = get_context("forkserver" if os.name == "posix" else "spawn")
context.set_forkserver_preload(["mosaickd.data.folder", "mosaickd.data.subset"])

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 4), dtype=np.uint8)


def make(allocate: Allocate, log: Path | None = None, pause: float = 0.0) -> Decoded:
    """Return seven images of nine; each call leaves a line in `log`."""
    if log is not None:
        with log.open("a") as lines:
            lines.write("made\n")
    images = allocate((9, 3, 4, 4))
    time.sleep(pause)
    images[:7] = PIXELS
    return Decoded(images[:7], np.arange(7), [(2, "torn"), (5, "empty")])


def ask(root: Path, log: Path, pause: float = 0.0, key: str = "key") -> None:
    """Raise where this process doesn't get the images."""
    decoded = cache.cached(
        root, "set", key, title="a set", make=partial(make, log=log, pause=pause)
    )
    assert np.array_equal(decoded.images, PIXELS)
    assert decoded.labels.tolist() == list(range(7))
    assert decoded.broken == [(2, "torn"), (5, "empty")]
    decoded.images[0] = 0  # of its own copy: the next one sees nothing of it


def entries(root: Path) -> list[str]:
    return sorted(p.name for p in (root / cache.FOLDER).iterdir() if p.name[0] != ".")


def test_it_is_made_once_for_each_key(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for key in ("key", "key", "other", "key"):
        ask(tmp_path, log, key=key)
    assert log.read_text() == "made\n" * 2
    assert entries(tmp_path) == ["set-key", "set-other"]


def test_a_killed_maker_is_taken_over_by_one_of_those_who_wait(tmp_path: Path) -> None:
    log, place = tmp_path / "log", tmp_path / cache.FOLDER
    killed = context.Process(target=ask, args=(tmp_path, log, PATIENCE))
    killed.start()
    began = time.monotonic()
    while not list(place.glob(".set-*.tmp")):
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.01)
    waiting = [context.Process(target=ask, args=(tmp_path, log)) for _ in range(2)]
    for process in waiting:
        process.start()
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    for process in waiting:
        process.join(PATIENCE)
        assert process.exitcode == 0
    killed.join()
    assert log.read_text() == "made\n" * 2
    assert not list(place.glob(".set-*.tmp")), "what it had made is removed"


@pytest.mark.parametrize("name", ["images", "labels.npy", "set.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "short", "other"])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log"
    ask(tmp_path, log)
    path = tmp_path / cache.FOLDER / "set-key" / name
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "short": whole[:-3], "other": b"{}"}[damage])
    ask(tmp_path, log)
    assert log.read_text() == "made\n" * 2
    assert caplog.text.count(f"{path.parent} is damaged") == 1
    assert path.read_bytes() == whole


def block(root: Path) -> None:
    """A file where the cache's folder should be: no one, not even root, can write below it."""
    (root / cache.FOLDER).write_text("")


def test_where_root_cannot_be_written_the_users_cache_folder_or_memory_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, home, log = tmp_path / "images", tmp_path / "home", tmp_path / "log"
    root.mkdir()
    block(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    for _ in range(2):
        ask(root, log)
    assert log.read_text() == "made\n"
    assert len(list((home / "mosaickd").glob("images-*/set-key"))) == 1
    home.rename(tmp_path / "moved")
    home.write_text("")
    ask(root, log)
    assert "set XDG_CACHE_HOME" in caplog.text


def test_a_folder_that_nobody_may_write_gets_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even from a superuser, who could."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root = tmp_path / "images"
    root.mkdir(mode=0o555)
    ask(root, tmp_path / "log")
    assert not (root / cache.FOLDER).exists()
    assert list((tmp_path / "home").rglob("set-key"))


def test_an_error_of_the_maker_leaves_nothing(tmp_path: Path) -> None:
    def fail(allocate: Allocate) -> Decoded:
        allocate(PIXELS.shape)
        raise UserError("a broken image")

    with pytest.raises(UserError, match="a broken image"):
        cache.cached(tmp_path, "set", "key", title="a set", make=fail)
    assert entries(tmp_path) == []
    ask(tmp_path, tmp_path / "log")


# ---------------------------------------------------------------------------------- class folders


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six images in two classes, and folders count as large from six images on."""
    monkeypatch.setattr(cache, "CACHE_FROM", 6)
    root = tmp_path / "images"
    for index in range(6):
        save(root / "train" / "ab"[index % 2] / f"{index}.png", index)
    save(root / "val" / "b" / "0.png", 9)
    return root


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(path)


def read(root: Path, split: str = "train", image_size: int = 8, max_broken: float = 0) -> ImageSet:
    return folder.read(root=root, split=split, image_size=image_size, max_broken=max_broken)


def values(images: ImageSet) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


def test_a_large_folder_is_decoded_once_and_a_small_one_is_not_cached(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert values(read(root, "test")) == [9]
    assert not (root / cache.FOLDER).exists()
    read(root)
    monkeypatch.setattr(decode, "decode_image", None)  # nothing can be decoded any more
    images = read(root)
    assert values(images) == [0, 2, 4, 1, 3, 5]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.classes == ["a", "b"]


def test_changed_images_are_decoded_again(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(root)
    save(root / "train" / "a" / "0.png", 7)
    assert values(read(root))[0] == 7
    (root / "train" / "a" / "0.png").rename(root / "train" / "b" / "0.png")
    assert values(read(root)) == [2, 4, 7, 1, 3, 5]
    save(root / "train" / "c" / "6.png", 6)
    assert read(root).classes == ["a", "b", "c"]
    assert read(root, image_size=4).images.shape == (7, 3, 4, 4)
    with caplog.at_level(logging.INFO):
        os.utime(root / "train" / "c" / "6.png", (0, 0))
        read(root)
    assert "delete it to free" in caplog.text


def test_a_cache_is_as_strict_as_the_run_that_reads_it(root: Path) -> None:
    (root / "train" / "a" / "2.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 6 .*a/2\.png"):
        read(root, max_broken=0.1)
    assert entries(root) == [], "what is refused is not kept"
    for place in (root, root.rename(root.with_name("moved"))):
        if place.exists():
            images = read(place, max_broken=0.2)
            assert images.broken == ((str(place / "train" / "a" / "2.png"), "an empty file"),)
            assert values(images) == [0, 4, 1, 3, 5]
            with pytest.raises(UserError, match="1 of 6"):
                read(place, max_broken=0.1)
