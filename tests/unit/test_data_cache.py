"""Large sets are decoded once, whatever happens to the process that does it."""

from __future__ import annotations

import logging
import os
import signal
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from mosaickd.data import cache, folder
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError

PATIENCE = 60.0
context = get_context("forkserver" if os.name == "posix" else "spawn")
context.set_forkserver_preload(["mosaickd.data.folder", "mosaickd.data.subset"])

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 4), dtype=np.uint8)


def make(file: IO[bytes], log: Path | None = None, pause: float = 0.0) -> cache.Made:
    """Seven images and their labels; each call leaves a line in `log`."""
    if log is not None:
        with log.open("a") as lines:
            lines.write("made\n")
    pixels = cache.reserve(file, PIXELS.shape)
    pixels[:4] = PIXELS[:4]
    time.sleep(pause)
    pixels[4:] = PIXELS[4:]
    return cache.Made(np.arange(7))


def ask(root: Path, log: Path, pause: float, key: str = "key") -> None:
    """In a process of its own: exits with 0 if it got the images."""
    found = cache.cached(root, "set", key, what="a set", make=partial(make, log=log, pause=pause))
    assert found is not None
    assert np.array_equal(found[0].numpy(), PIXELS)
    assert found[1].tolist() == list(range(7))


def files(root: Path) -> list[str]:
    return sorted(p.name for p in (root / cache.FOLDER).iterdir() if p.name[0] != ".")


def test_it_is_made_once_and_mapped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for _ in range(2):
        found = cache.cached(tmp_path, "set", "key", what="a set", make=partial(make, log=log))
        assert found is not None
        images, labels, _ = found
        assert np.array_equal(images.numpy(), PIXELS)
        assert labels.tolist() == list(range(7))
        images[0] = 0  # the next one sees nothing of it
    assert log.read_text() == "made\n"
    ask(tmp_path, log, 0, key="other")
    assert log.read_text() == "made\n" * 2
    assert files(tmp_path) == ["set-key.npy", "set-other.npy"]


def test_four_processes_make_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [context.Process(target=ask, args=(tmp_path, log, 0.3)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert log.read_text() == "made\n"


def test_a_killed_maker_is_taken_over(tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = context.Process(target=ask, args=(tmp_path, log, PATIENCE))
    killed.start()
    place = tmp_path / cache.FOLDER
    began = time.monotonic()
    while not list(place.glob(".set-*.tmp")):
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.01)
    waiting = context.Process(target=ask, args=(tmp_path, log, 0))
    waiting.start()
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    waiting.join(PATIENCE)
    assert waiting.exitcode == 0
    killed.join()
    assert log.read_text() == "made\n" * 2
    assert not list(place.glob(".set-*.tmp")), "what it had made is removed"


@pytest.mark.parametrize("damage", ["empty", "header", "short", "long", "text"])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    ask(tmp_path, tmp_path / "log", 0)
    path = tmp_path / cache.FOLDER / "set-key.npy"
    whole = path.read_bytes()
    damaged = {"empty": b"", "header": b"\0" * 200 + whole[200:], "short": whole[:-3],
               "long": whole + b"\0", "text": b"not an array"}  # fmt: skip
    path.write_bytes(damaged[damage])
    ask(tmp_path, tmp_path / "log", 0)
    assert caplog.text.count(f"{path} is damaged") == 1
    assert path.read_bytes() == whole


def block(root: Path) -> None:
    """A file where the cache's folder should be: no one, not even root, can write below it."""
    (root / cache.FOLDER).write_text("")


def test_where_root_cannot_be_written_the_users_cache_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, home, log = tmp_path / "images", tmp_path / "home", tmp_path / "log"
    root.mkdir()
    block(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    for _ in range(2):
        ask(root, log, 0)
    assert log.read_text() == "made\n"
    assert len(list((home / "mosaickd").glob("images-*/set-key.npy"))) == 1
    home.rename(tmp_path / "moved")
    home.write_text("")
    assert cache.cached(root, "set", "key", what="a set", make=make) is None


def test_an_error_of_the_maker_leaves_nothing(tmp_path: Path) -> None:
    def fail(file: IO[bytes]) -> cache.Made:
        cache.reserve(file, PIXELS.shape)
        raise UserError("a broken image")

    with pytest.raises(UserError, match="a broken image"):
        cache.cached(tmp_path, "set", "key", what="a set", make=fail)
    assert files(tmp_path) == []
    ask(tmp_path, tmp_path / "log", 0)


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


def read(root: Path, split: str = "train", image_size: int = 8) -> ImageSet:
    return folder.read(root=root, split=split, image_size=image_size)


def test_a_large_folder_is_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(root)
    monkeypatch.setattr(folder, "decode", None)  # nothing can be decoded any more
    second = read(root)
    for images in (first, second):
        assert images.images[:, 0, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]
        assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert images.classes == ["a", "b"]
    assert len(files(root)) == 1


def test_a_small_folder_is_not_cached(root: Path) -> None:
    assert len(read(root, "test")) == 1
    assert not (root / cache.FOLDER).exists()


def test_changed_images_are_decoded_again(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(root)
    save(root / "train" / "a" / "0.png", 7)
    assert read(root).images[0, 0, 0, 0] == 7
    (root / "train" / "a" / "0.png").rename(root / "train" / "b" / "0.png")
    assert read(root).images[:, 0, 0, 0].tolist() == [2, 4, 7, 1, 3, 5]
    save(root / "train" / "c" / "6.png", 6)
    assert read(root).classes == ["a", "b", "c"]
    assert read(root, image_size=4).images.shape == (7, 3, 4, 4)
    with caplog.at_level(logging.INFO):
        os.utime(root / "train" / "c" / "6.png", (0, 0))
        read(root)
    assert "delete it to free" in caplog.text


def test_a_broken_image_is_named_and_nothing_is_kept(root: Path) -> None:
    (root / "train" / "a" / "2.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"a/2\.png"):
        read(root)
    (root / "train" / "a" / "2.png").unlink()
    (root / "train" / "a" / "2.png").symlink_to(root / "nowhere")
    with pytest.raises(UserError, match=r"a/2\.png"):
        read(root)
    assert files(root) == []


def test_without_room_for_a_cache_the_images_are_decoded_into_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    block(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / cache.FOLDER))
    assert read(root).images[:, 0, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]
    assert "XDG_CACHE_HOME" in caplog.text


def read_in_a_process(root: Path) -> None:
    cache.CACHE_FROM = 6
    assert read(root).images[:, 0, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]


def test_processes_that_read_a_large_folder_together_agree(root: Path) -> None:
    processes = [context.Process(target=read_in_a_process, args=(root,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert len(files(root)) == 1
