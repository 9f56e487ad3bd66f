"""The images that a teacher doubts most: chosen once, the same for everyone who asks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mosaickd.data import subset
from mosaickd.data.source import ImageSet
from mosaickd.data.subset import fingerprint, most_uncertain
from mosaickd.errors import UserError

PATIENCE = 60.0
context = get_context("forkserver" if os.name == "posix" else "spawn")
context.set_forkserver_preload(["mosaickd.data.folder", "mosaickd.data.subset"])

SCORES = torch.tensor([0.1, 3.0, 2.0, 0.5, 2.0, 2.0, 0.0])


class Scores:
    """A function that returns scores; each call leaves a line in `log`."""

    def __init__(self, log: Path, scores: Tensor = SCORES, pause: float = 0.0) -> None:
        self.log = log
        self.scores = scores
        self.pause = pause

    def __call__(self) -> Tensor:
        with self.log.open("a") as lines:
            lines.write("scored\n")
        time.sleep(self.pause)
        return self.scores


def choose(scores: Callable[[], Tensor], path: Path, count: int = 3) -> list[int]:
    indices = most_uncertain(scores, count=count, path=path, what="strokes")
    assert indices.dtype == torch.int64
    return indices.tolist()


def choose_in_a_process(log: Path, path: Path, pause: float) -> None:
    assert choose(Scores(log, pause=pause), path) == [1, 2, 4]


def test_the_highest_are_chosen_and_ties_go_to_the_lower_index(tmp_path: Path) -> None:
    scores = Scores(tmp_path / "log")
    for count, expected in ((1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (7, list(range(7)))):
        assert choose(scores, tmp_path / f"{count}.safetensors", count) == expected


def test_ties_among_many(tmp_path: Path) -> None:
    scores = Scores(tmp_path / "log", torch.arange(10_000) % 4)
    chosen = choose(scores, tmp_path / "many.safetensors", 3000)
    assert chosen == [*sorted([*range(3, 10_000, 4), *range(2, 2000, 4)])]


def test_it_is_chosen_once_and_kept_with_what_it_is(tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "deep" / "subset.safetensors"
    for _ in range(2):
        assert choose(Scores(log), path) == [1, 2, 4]
    assert log.read_text() == "scored\n"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"images": "7"}
        assert file.get_tensor("indices").tolist() == [1, 2, 4]
    assert choose(Scores(log), path, 2) == [1, 2], "another question has another answer"


def test_a_killed_one_is_taken_over_by_one_of_those_who_wait(tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "subset.safetensors"
    killed = context.Process(target=choose_in_a_process, args=(log, path, PATIENCE))
    killed.start()
    began = time.monotonic()
    while not log.exists():
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.01)
    arguments = (log, path, 0.0)
    waiting = [context.Process(target=choose_in_a_process, args=arguments) for _ in range(2)]
    for process in waiting:
        process.start()
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    for process in waiting:
        process.join(PATIENCE)
        assert process.exitcode == 0
    killed.join()
    assert log.read_text() == "scored\n" * 2


@pytest.mark.parametrize("damage", ["empty", "short", "order", "range", "names", "count"])
def test_a_damaged_file_is_replaced(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    log, path = tmp_path / "log", tmp_path / "subset.safetensors"
    choose(Scores(log), path)
    whole = path.read_bytes()
    contents = {"order": [4, 2, 1], "range": [1, 2, 7], "names": [1, 2, 4], "count": [1, 2]}
    if damage in contents:
        name = "others" if damage == "names" else "indices"
        save_file({name: torch.tensor(contents[damage])}, path, {"images": "7"})
    else:
        path.write_bytes({"empty": b"", "short": whole[:-5]}[damage])
    assert choose(Scores(log), path) == [1, 2, 4]
    assert caplog.text.count(f"{path} is not the choice that was meant") == 1
    for _ in range(2):
        assert choose(Scores(log), path) == [1, 2, 4]
    assert log.read_text() == "scored\n" * 2


@pytest.mark.parametrize(
    ("scores", "count", "reason"),
    [
        (SCORES, 8, "8 images is asked of strokes, but there are only 7"),
        (SCORES, 0, "at least 1"),
        (torch.tensor([0.1, float("nan"), 0.2]), 2, "score of image 1 of strokes is nan"),
        (torch.tensor([0.1, 0.2, float("inf")]), 2, "score of image 2 of strokes is inf"),
    ],
)
def test_what_cannot_be_chosen_is_said(
    tmp_path: Path, scores: Tensor, count: int, reason: str
) -> None:
    path = tmp_path / "subset.safetensors"
    with pytest.raises(UserError, match=reason):
        choose(lambda: scores, path, count)
    assert not path.exists()
    assert choose(lambda: SCORES, path) == [1, 2, 4], "the lock is free again"


def test_a_folder_that_cannot_be_written_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert choose(lambda: SCORES, tmp_path / "file" / "subset.safetensors") == [1, 2, 4]
    assert "can't be kept" in caplog.text


# ----------------------------------------------------------------------------------- fingerprints


def images(count: int = 50) -> ImageSet:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 4, 4), generator=random, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 3, ["a", "b", "c"])


def test_fingerprints_tell_image_sets_apart() -> None:
    data = images()
    same = fingerprint(data)
    assert same == fingerprint(images())
    assert len(same) == 64
    others = [ImageSet(data.images[:-1], data.labels[:-1], data.classes)]
    others += [ImageSet(data.images.roll(1, 0), data.labels, data.classes)]
    others += [ImageSet(data.images, data.labels.roll(1), data.classes)]
    others += [ImageSet(data.images.view(50, 3, 2, 8), data.labels, data.classes)]
    for index in (0, 25, 49):
        changed = images()
        changed.images[index, 0, 0, 0] ^= 1
        others.append(changed)
    assert len({same, *map(fingerprint, others)}) == 1 + len(others)


def test_of_many_images_only_some_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "HASHED_PIXELS", 10 * 48)
    same = fingerprint(images(1001))
    seen = []
    for index in range(1001):
        changed = images(1001)
        changed.images[index] ^= 1
        if fingerprint(changed) != same:
            seen.append(index)
    assert len(seen) == 10
    assert seen[0] == 0
    assert seen[-1] == 1000
    gaps = torch.tensor(seen).diff()
    assert gaps.min() >= 111
    assert gaps.max() <= 112
