"""The command that shrinks photographs, as a user meets it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mosaickd.data import folder, prepare
from mosaickd.data.prepare import Recipe

PATIENCE = 60.0


def photograph(size: tuple[int, int] = (60, 40), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(path: Path, picture: Image.Image | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture or photograph()).save(path)


def start(source: Path, target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mosaickd.data.prepare", str(source), str(target)]
    return subprocess.Popen(
        [*command, "--workers", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def call(*arguments: object) -> int:
    return prepare.main([str(argument) for argument in arguments])


def files(target: Path) -> list[str]:
    """All below target, without the folder's own."""
    names = (str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.startswith((".", "prepare.json")))


def shrink(path: Path, recipe: Recipe) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(prepare.shrink(path.read_bytes(), recipe))))


def test_a_tree_is_kept_and_what_is_broken_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "photographs", tmp_path / "small"
    save(source / "train" / "cat" / "1.jpg", photograph((500, 375)))
    save(source / "train" / "dog" / "deep" / "2.PNG")
    save(source / "val" / "cat" / "3.webp")
    save(source / "train" / "cat" / "same.jpg", photograph(seed=1))
    save(source / "train" / "cat" / "same.png", photograph(seed=2))
    torn = source / "train" / "cat" / "torn\n.jpg"
    torn.write_bytes(b"\xff\xd8\xff\xe0 not much")
    (source / "notes.txt").write_text("not an image")
    save(tmp_path / "elsewhere.png")
    (source / "link.png").symlink_to(tmp_path / "elsewhere.png")
    assert call(source, target) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1, "one line where nobody watches"
    assert "5 images of 32x32" in out
    assert "2 broken" in out
    assert str(source / "train/cat/torn") in err
    assert files(target) == [
        "broken.txt", "train/cat/1.png", "train/cat/same.jpg.png", "train/cat/same.png.png",
        "train/dog/deep/2.png", "val/cat/3.png",
    ]  # fmt: skip
    link, broken = (target / "broken.txt").read_text().splitlines()
    assert link.startswith("link.png\ta link that leads out")
    assert broken.startswith("train/cat/torn\\n.jpg\t")

    pixels = np.asarray(Image.open(target / "train" / "cat" / "same.png.png"))
    resized = photograph(seed=2).resize((32, 32), Image.Resampling.BOX)
    assert np.array_equal(pixels, np.asarray(resized))
    read = folder.read(root=target, split="test", image_size=32)
    assert read.images.shape == (1, 3, 32, 32)

    torn.unlink()
    assert call(source, target, "--follow-links") == 0
    assert "6 images of 32x32, 1 of them made now" in capsys.readouterr().out
    assert not (target / "broken.txt").exists()


def test_killed_or_stopped_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "photographs", tmp_path / "small"
    save(source / "first.jpg", photograph((400, 300)))
    content = (source / "first.jpg").read_bytes()
    for index in range(599):
        (source / f"{index}.jpg").write_bytes(content)

    def stop(number: signal.Signals) -> tuple[int, str, str]:
        before = len(list(target.rglob("*.png")))
        process = start(source, target)
        began = time.monotonic()
        while len(list(target.rglob("*.png"))) < before + 20:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() - began < PATIENCE
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    stop(signal.SIGKILL)
    assert 20 <= len(files(target)) < 600
    code, out, err = stop(signal.SIGINT)
    assert (code, err) == (130, "")
    assert "the same command goes on" in out
    assert len(files(target)) < 600
    assert call(source, target) == 0
    line = capsys.readouterr().out
    assert "600 images" in line
    assert "600 of them" not in line, "what was there is not made again"
    expected = prepare.shrink(content, Recipe())
    assert len(files(target)) == 600
    assert all((target / name).read_bytes() == expected for name in files(target))
    assert not list(target.rglob(".*.tmp"))


@pytest.mark.parametrize(("fit", "left"), [("stretch", [255, 0, 0]), ("crop", [0, 255, 0])])
def test_the_whole_image_or_its_centre(tmp_path: Path, fit: str, left: list[int]) -> None:
    flag = np.zeros((30, 90, 3), np.uint8)
    for stripe in range(3):
        flag[:, 30 * stripe : 30 * stripe + 30, stripe] = 255
    save(tmp_path / "flag.png", Image.fromarray(flag))
    small = shrink(tmp_path / "flag.png", Recipe(size=12, fit=fit))
    assert small.shape == (12, 12, 3)
    assert small[6, 0].tolist() == left


@pytest.mark.parametrize("format", ["png", "webp"])
def test_photographs_are_turned_upright_and_lose_their_profiles(
    tmp_path: Path, format: str
) -> None:
    half = np.zeros((40, 40), np.uint8)
    half[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(half).save(tmp_path / "turned.jpg", exif=exif, icc_profile=bytes(50_000))
    recipe = Recipe(size=8, format=format)
    assert len(prepare.shrink((tmp_path / "turned.jpg").read_bytes(), recipe)) < 1000
    small = shrink(tmp_path / "turned.jpg", recipe)
    assert small.shape == (8, 8, 3)
    assert small[0].max() < 10
    assert small[-1].min() > 245


def test_names_never_collide() -> None:
    names = ["a.gif", "a.jpg", "a.jpg.png", "b.png", "c/A.png", "c/a.jpg", "d/a.jpg"]
    assert dict(prepare.assign_targets(names, "png")) == {
        "a.gif": "a.gif.png", "a.jpg": "a.jpg.png", "a.jpg.png": "a.jpg.png.png",
        "b.png": "b.png", "c/A.png": "c/A.png.png", "c/a.jpg": "c/a.jpg.png", "d/a.jpg": "d/a.png",
    }  # fmt: skip


def test_what_cannot_be_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, small = tmp_path / "photographs", tmp_path / "small"

    def message(*arguments: object) -> str:
        assert call(*arguments) == 1
        return capsys.readouterr().err

    assert f"no folder {source}" in message(source, small)
    source.mkdir()
    assert f"no images below {source}" in message(source, small)
    assert not small.exists()
    (source / "1.png").write_bytes(b"")
    assert "1.png: an empty file" in message(source, tmp_path / "all broken")
    save(source / "1.png")
    for target in (source, source / "small", tmp_path):
        assert "must not lie in one another" in message(source, target)
    save(tmp_path / "other" / "1.png")
    assert "holds something else" in message(source, tmp_path / "other")
    assert files(tmp_path / "other") == ["1.png"]

    assert call(source, small, "--workers", "1") == 0
    capsys.readouterr()
    changed = message(source, small, "--size", 64, "--filter", "lanczos")
    assert "size 32, not 64; filter box, not lanczos" in changed
    assert json.loads((small / "prepare.json").read_text())["size"] == 32


@pytest.mark.parametrize("wrong", [["--size", "0"], ["--workers", "x"], ["--filter", "cubic"]])
def test_options_that_cannot_be_meant(
    tmp_path: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(tmp_path, tmp_path / "small", *wrong)
    assert stop.value.code == 2
    assert wrong[0] in capsys.readouterr().err
