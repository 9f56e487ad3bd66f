"""The command that shrinks photographs, in processes of its own, as a user meets it."""

from __future__ import annotations

import json
import os
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


def command(source: Path, target: Path, *more: str) -> list[str]:
    module = [sys.executable, "-m", "mosaickd.data.prepare", str(source), str(target)]
    return [*module, "--workers", "2", *more]


def call(source: Path, target: Path, *more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(source, target, *more), capture_output=True, text=True, timeout=PATIENCE
    )
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done


def made(target: Path) -> list[str]:
    """All images below target, without the folder's own files."""
    files = (str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    return sorted(name for name in files if not name.startswith((".", "prepare.json")))


def shrink(path: Path, recipe: Recipe) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(prepare.shrunk(path.read_bytes(), recipe))))


def test_a_tree_is_kept_and_what_is_broken_is_listed(tmp_path: Path) -> None:
    source, target = tmp_path / "photographs", tmp_path / "small"
    save(source / "train" / "cat" / "1.jpg", photograph((500, 375)))
    save(source / "train" / "dog" / "deep" / "2.PNG")
    save(source / "val" / "cat" / "3.webp")
    save(source / "bare.gif")
    save(source / "train" / "cat" / "same.jpg", photograph(seed=1))
    save(source / "train" / "cat" / "same.png", photograph(seed=2))
    save(source / "train" / "cat" / "bomb.png", Image.new("1", (10_000, 10_000)))
    (source / "train" / "cat" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much")
    (source / "notes.txt").write_text("not an image")
    done = call(source, target)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1, "one line where nobody watches"
    assert "6 images of 32x32" in done.stdout
    assert "2 broken" in done.stdout
    assert made(target) == [
        "bare.png", "broken.txt", "train/cat/1.png", "train/cat/same.jpg.png",
        "train/cat/same.png.png", "train/dog/deep/2.png", "val/cat/3.png",
    ]  # fmt: skip
    listed = (target / "broken.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["train/cat/bomb.png", "train/cat/torn.jpg"]
    assert "bomb" in listed[0].split("\t")[1]
    assert str(source / "train/cat/torn.jpg") in done.stderr

    pixels = np.asarray(Image.open(target / "train" / "cat" / "same.png.png"))
    resized = photograph(seed=2).resize((32, 32), Image.Resampling.BOX)
    assert np.array_equal(pixels, np.asarray(resized))
    read = folder.read(root=target, split="test", image_size=32)
    assert read.images.shape == (1, 3, 32, 32)

    (source / "train" / "cat" / "torn.jpg").unlink()
    (source / "train" / "cat" / "bomb.png").unlink()
    again = call(source, target)
    assert "6 images of 32x32, 0 of them made now" in again.stdout
    assert not (target / "broken.txt").exists()


def start(source: Path, target: Path) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell would start it, and at work."""
    before = len(list(target.rglob("*.png")))
    process = subprocess.Popen(
        command(source, target), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    began = time.monotonic()
    while len(list(target.rglob("*.png"))) < before + 20:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.01)
    return process


def wait_until_all_ended(group: int) -> None:
    """Nothing of a process group is left: no worker waits for ever."""
    began = time.monotonic()
    while any(group_of(int(entry)) == group for entry in os.listdir("/proc") if entry.isdigit()):
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.02)


def group_of(process: int) -> int | None:
    try:
        status = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if status[0] == "Z" else int(status[2])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_killed_or_stopped_it_goes_on(tmp_path: Path) -> None:
    source, target = tmp_path / "photographs", tmp_path / "small"
    save(source / "first.jpg", photograph((400, 300)))
    content = (source / "first.jpg").read_bytes()
    for index in range(700):
        (source / f"{index}.jpg").write_bytes(content)

    killed = start(source, target)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    wait_until_all_ended(killed.pid)
    present = made(target)
    assert 20 <= len(present) < 700
    (target / ".partial" / "stale").write_text("of a killed worker")

    stopped = start(source, target)
    os.killpg(stopped.pid, signal.SIGINT)  # what Ctrl-C does
    out, err = stopped.communicate(timeout=PATIENCE)
    wait_until_all_ended(stopped.pid)
    assert stopped.returncode == 130, err
    assert "the same command goes on" in out
    assert err == ""
    assert len(present) + 20 <= len(made(target)) < 701

    done = call(source, target)
    assert done.returncode == 0
    assert "701 images" in done.stdout
    assert "701 of them" not in done.stdout, "what was there is not made again"
    assert len(made(target)) == 701
    assert not (target / ".partial").exists()
    expected = prepare.shrunk(content, Recipe())
    assert all((target / name).read_bytes() == expected for name in made(target))


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
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, format: str) -> None:
    colour, grey = (200, 100, 50), (90, 90, 90)
    save(tmp_path / "grey.png", Image.new("L", (40, 40), 90))
    save(tmp_path / "deep.png", Image.new("I;16", (40, 40), 90 * 256))
    save(tmp_path / "palette.png", Image.new("RGB", (40, 40), colour).quantize(4))
    save(tmp_path / "clear.png", Image.new("RGBA", (40, 40), (*colour, 0)))
    save(tmp_path / "print.tif", Image.new("RGB", (40, 40), (0, 255, 255)).convert("CMYK"))
    expected = {"grey.png": grey, "deep.png": grey, "palette.png": colour,
                "clear.png": (0, 0, 0), "print.tif": (0, 255, 255)}  # fmt: skip
    for name, value in expected.items():
        small = shrink(tmp_path / name, Recipe(size=8, format=format))
        assert (small == value).all(), name


def test_photographs_are_turned_upright_and_lose_their_profiles(tmp_path: Path) -> None:
    half = np.zeros((40, 40, 3), np.uint8)
    half[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(half).save(tmp_path / "turned.jpg", exif=exif, icc_profile=bytes(50_000))
    content = prepare.shrunk((tmp_path / "turned.jpg").read_bytes(), Recipe(size=8))
    assert len(content) < 1000
    small = shrink(tmp_path / "turned.jpg", Recipe(size=8))
    assert small[0].max() < 10
    assert small[-1].min() > 245


def test_names_never_collide() -> None:
    names = ["a.gif", "a.jpg", "a.jpg.png", "b.png", "c/A.png", "c/a.jpg", "d/a.jpg"]
    assert dict(prepare.targets(names, "png")) == {
        "a.gif": "a.gif.png", "a.jpg": "a.jpg.png", "a.jpg.png": "a.jpg.png.png",
        "b.png": "b.png", "c/A.png": "c/A.png.png", "c/a.jpg": "c/a.jpg.png", "d/a.jpg": "d/a.png",
    }  # fmt: skip


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert prepare.main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err


def test_folders_that_cannot_be_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "photographs"
    assert f"no folder {source}" in fails(capsys, source, tmp_path / "small")
    source.mkdir()
    assert f"no images below {source}" in fails(capsys, source, tmp_path / "small")
    assert not (tmp_path / "small").exists()
    save(source / "a" / "1.png")
    (tmp_path / "link").symlink_to(source)
    for target in (source, source / "small", tmp_path, tmp_path / "link" / "small"):
        assert "must not lie in one another" in fails(capsys, source, target)
    save(tmp_path / "other" / "1.png")
    assert "holds something else" in fails(capsys, source, tmp_path / "other")
    assert made(tmp_path / "other") == ["1.png"]


def test_images_of_two_recipes_are_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "photographs", tmp_path / "small"
    save(source / "1.png")
    assert prepare.main([str(source), str(target), "--workers", "1"]) == 0
    said = fails(capsys, source, target, "--size", 64, "--filter", "lanczos")
    assert "size 32, not 64; filter box, not lanczos" in said
    assert json.loads((target / "prepare.json").read_text())["size"] == 32
    save(tmp_path / "others" / "1.png")
    assert "source" in fails(capsys, tmp_path / "others", target)


def test_a_tree_without_a_single_good_image_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "1.png").write_bytes(b"")
    assert "1.png" in fails(capsys, tmp_path / "photographs", tmp_path / "small")


@pytest.mark.parametrize("wrong", [["--size", "0"], ["--workers", "x"], ["--filter", "cubic"]])
def test_settings_that_cannot_be_meant(
    tmp_path: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        prepare.main([str(tmp_path), str(tmp_path / "small"), *wrong])
    assert stop.value.code == 2
    assert wrong[0] in capsys.readouterr().err
