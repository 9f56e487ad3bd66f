"""Figures: what is drawn of which runs, what is said of the others, and the numbers behind it."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mosaickd.report.sample_grids import Unreadable, of_kind, read
from PIL import Image
from run_folders import owned
from scipy.linalg import sqrtm
from test_report import write

from mosaickd.engine.samples import Grid, save_grids
from mosaickd.figures.__main__ import main
from mosaickd.figures.domains import frechet_distance
from mosaickd.figures.drawing import COLUMN, DOTS

WEIGHTS = {"adv": 1.0, "align": 1.0, "local": 1.0, "balance": 10.0}
CLASSES = list("ABCDEF")


def run(
    folder: Path,
    *,
    patch: int | None = 10,
    weights: dict[str, float] | None = None,
    curve: dict[int, float] | None = None,
    **changes: Any,
) -> Path:
    """A run as it lies on the disk, without samples."""
    curve = curve or {25: 40.0, 50: changes.get("last", 70.0)}
    write(folder, **changes)
    settings = {
        "dataset": {"image_size": 16},
        "discriminator": {"patch_size": patch},
        "method": WEIGHTS | (weights or {}),
    }
    (folder / "config.json").write_text(json.dumps(settings))
    lines = [{"step": step, "accuracy/top1": value} for step, value in curve.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = [{"class": name, "images": 8, "right": 4} for name in CLASSES]
    (folder / "per_class.json").write_text(json.dumps({"step": 50, "classes": names}))
    return folder


def sample(folder: Path, step: int, classes: list[int], size: int = 8) -> torch.Tensor:
    """A grid of as many images as `classes` has. -> the images, uint8 [n, 3, H, W]."""
    rng = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 255, (len(classes), 3, size, size), generator=rng)
    real = Grid("images", torch.rand(30, 3, size, size, generator=rng), torch.zeros(30).long())
    fakes = Grid("synthetic", pixels / 255, torch.tensor(classes))
    save_grids(folder / "samples" / f"step{step:07d}.png", [fakes, real], step)
    return pixels.byte()


def draw(
    tmp_path: Path, name: str, *arguments: str | Path, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, Any], str]:
    """-> the numbers behind a figure, and what was said beside it."""
    out = tmp_path / "figures"
    main([name, *map(str, arguments), "--out", str(out)])
    said = capsys.readouterr()
    written = [out / f"{name}.{kind}" for kind in ("png", "pdf", "json")]
    assert said.out.split() == [str(path) for path in written]
    numbers: dict[str, Any] = json.loads(written[2].read_text())
    return numbers, said.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one message of a command that can't draw."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert str(end.value.code).startswith("error: ")
    assert not capsys.readouterr().out
    return str(end.value.code)


# ------------------------------------------------------------------------------ grids


@pytest.mark.parametrize(("count", "size"), [(1, 8), (3, 16), (10, 32), (11, 8), (100, 80)])
def test_what_a_grid_was_drawn_of_is_read_from_it_again(
    count: int, size: int, tmp_path: Path
) -> None:
    classes = sorted(i % 5 for i in range(count))
    pixels = sample(tmp_path, 7, classes, size)
    name = "samples/step0000007.png"
    assert list(of_kind(tmp_path, name).classes) == classes
    assert np.array_equal(of_kind(tmp_path, name).pixels, pixels.permute(0, 2, 3, 1).numpy())
    assert len(of_kind(tmp_path, name, "images").pixels) == 30


ODD = {
    "no PNG": b"GIF89a",
    "empty": b"",
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_what_is_no_grid_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "step1.png").write_bytes(content)
    with pytest.raises(Unreadable, match="no picture"):
        read(tmp_path, "step1.png")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"grids": 3}', '{"grids": [{"what": "synthetic"}]}',
     '{"step": 1, "zoom": 0, "padding": 2, "columns": 10, "grids": '
     '[{"what": "synthetic", "left": 0, "size": 8, "classes": [1]}]}',
     '{"step": 1, "zoom": 1, "padding": 2, "columns": 10, "grids": '
     '[{"what": "synthetic", "left": 999, "size": 8, "classes": [1, 2]}]}'],
)  # fmt: skip
def test_a_grid_that_says_nonsense_is_told(text: str, tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    said.add_text("mosaickd", text)
    Image.new("RGB", (40, 40)).save(tmp_path / "step1.png", pnginfo=said)
    assert read(tmp_path, "step1.png").grids == ()
    with pytest.raises(Unreadable, match="doesn't say what it shows"):
        of_kind(tmp_path, "step1.png")


# ------------------------------------------------------------------------------ samples


def test_samples_stand_by_class_with_gaps_where_there_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(tmp_path / "runs" / "a", last=80.0)
    poor = run(tmp_path / "runs" / "b", weights={"local": 0.0}, last=30.0)
    images = run(tmp_path / "runs" / "c", patch=None, last=50.0)
    for folder, classes in ((whole, [0, 0, 1, 1, 2, 2]), (poor, [0] * 6), (images, [0, 1, 2, 3])):
        sample(folder, 25, [5])
        sample(folder, 50, classes)
    command = (tmp_path / "runs", "--classes", "2", "--images", "3")
    numbers, said = draw(tmp_path, "samples", *command, capsys=capsys)
    assert said == ""
    assert [c["name"] for c in numbers["classes"]] == ["A", "B"], "those with most images"
    labels = [one["label"].replace("\n", " ") for one in numbers["runs"]]
    assert labels == [
        "10×10 patch discriminator", "without local", "whole-image discriminator",
    ]  # fmt: skip
    assert [one["images_by_class"].get("1", 0) for one in numbers["runs"]] == [2, 0, 1]
    assert [one["step"] for one in numbers["runs"]] == [50, 50, 50], "the last evaluation"


def test_runs_without_samples_and_older_ones_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample(run(tmp_path / "good"), 50, [0, 1])
    run(tmp_path / "bare")
    old = run(tmp_path / "old") / "samples" / "step0000050.png"
    old.parent.mkdir()
    Image.new("RGB", (64, 64)).save(old)
    sample(run(tmp_path / "running", status="running"), 25, [1])
    numbers, said = draw(tmp_path, "samples", tmp_path, capsys=capsys)
    assert len(numbers["runs"]) == 2
    assert f"left out: {tmp_path / 'bare'}: it has no samples" in said
    assert re.search(f"left out: {tmp_path / 'old'}: .*older versions", said)


def test_a_figure_is_as_wide_as_a_column_and_its_text_stays_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "runs" / "a")
    draw(tmp_path, "curves", tmp_path / "runs", capsys=capsys)
    with Image.open(tmp_path / "figures" / "curves.png") as image:
        assert image.width == round(COLUMN * DOTS)
    pdf = (tmp_path / "figures" / "curves.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf, "fonts are embedded"
    assert b"/Type3" not in pdf, "and not as drawings, which journals refuse"


# ------------------------------------------------------------------------------ accuracies


def test_accuracy_by_patch_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    for seed, last in ((0, 60.0), (1, 64.0)):
        run(
            runs / f"p4-{seed}", patch=4, seed=seed, last=last, best=90.0, variant="ablation=patch4"
        )
    run(runs / "image", patch=None, last=50.0, variant="ablation=patch_image")
    run(runs / "large", patch=22, last=40.0, seed=5, variant="ablation=patch22")  # the image has 16
    run(runs / "other", method="kd")
    run(runs / "no_local", weights={"local": 0}, variant="ablation=no_local")
    run(runs / "broken", status="failed", error="out of memory")
    numbers, said = draw(tmp_path, "patch", runs, capsys=capsys)
    (line,) = numbers["lines"].values()
    assert {size: [one["accuracy"] for one in values] for size, values in line.items()} == {
        "4": [60.0, 64.0], "16": [50.0, 40.0],
    }  # fmt: skip
    assert "method=kd has no patches" in said
    assert "it plays without local" in said
    assert "failed at step 50 (out of memory)" in said
    best, _ = draw(tmp_path, "patch", runs, "--best", capsys=capsys)
    assert best["lines"].popitem()[1]["4"][0]["accuracy"] == 90.0


def test_accuracy_without_one_loss_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    run(runs / "full", last=80.0, variant="ablation=full")
    run(runs / "no_adv", weights={"adv": 0.0}, last=60.0, variant="ablation=no_adv")
    run(
        runs / "none",
        weights=dict.fromkeys(WEIGHTS, 0.0),
        variant="ablation=no_local, method.adv=0, method.align=0",
    )
    numbers, said = draw(tmp_path, "losses", runs, capsys=capsys)
    assert {name: [v["accuracy"] for v in values] for name, values in numbers["bars"].items()} == {
        "all losses": [80.0], "no adv": [60.0],
    }  # fmt: skip
    assert "one at a time" in said
    assert "no run with no balance" in said, "nothing is drawn as zero that was not measured"


def test_curves_are_means_over_seeds_whatever_version_wrote_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    run(runs / "a", seed=0, curve={10: 20.0, 50: 70.0})
    run(runs / "b", seed=1, curve={25: 30.0, 50: 72.0})
    (runs / "b" / "metrics.jsonl").write_text(
        '{"step": 25, "accuracy": 30.0}\n{"step": 50, "accuracy": 72.0}\n'
    )
    run(runs / "kd", method="kd", curve={50: 41.0})
    (run(runs / "silent", method="dfq", ood=None) / "metrics.jsonl").unlink()
    numbers, said = draw(tmp_path, "curves", runs, capsys=capsys)
    drawn = {(line["line"], line["seed"]): line["curve"] for line in numbers["lines"]}
    assert drawn["MosaicKD", 1] == [[25, 30.0], [50, 72.0]]
    assert drawn["KD", 0] == [[50, 41.0]]
    assert len(drawn) == 3
    assert "no evaluation in its metrics.jsonl" in said


def test_only_seeds_are_put_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other images, or another setting, make another line."""
    runs = tmp_path / "runs"
    run(runs / "a", last=70.0)
    run(runs / "b", last=20.0, ood="svhn")
    run(runs / "c", last=30.0, ood_subset=True)
    run(runs / "d", last=10.0, variant="players.student.optimizer.lr=9, ablation=full")
    run(runs / "e", last=72.0, seed=1, variant="ablation=full")
    numbers, _ = draw(tmp_path, "curves", runs, capsys=capsys)
    ends = {line["run"][-1]: line["line"] for line in numbers["lines"]}
    assert ends["a"] == ends["e"] == "MosaicKD on cifar10"
    assert ends["b"] == "MosaicKD on svhn"
    assert ends["c"] == "MosaicKD on cifar10 (OOD subset)"
    assert ends["d"] == "MosaicKD on cifar10 with players.student.optimizer.lr=9"
    numbers, said = draw(tmp_path, "patch", runs, capsys=capsys)
    assert sorted(len(one) for line in numbers["lines"].values() for one in line.values()) == [
        1, 1, 1, 2,
    ]  # fmt: skip
    numbers, said = draw(tmp_path, "losses", runs, capsys=capsys)
    assert [one["accuracy"] for one in numbers["bars"]["all losses"]] == [70.0, 72.0]
    assert said.count("left out") == 3


# ------------------------------------------------------------------------------ animations


def test_an_animation_has_a_frame_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path / "run", status="running")
    for step in (10, 20, 30):
        sample(folder, step, [0, 1, 2])
    (folder / "samples" / "step0000025.png").write_bytes(b"cut short")
    main(["animation", str(folder), "--out", str(tmp_path / "out"), "--seconds", "0.5"])
    said = capsys.readouterr()
    assert "step0000025.png: no picture" in said.err
    with Image.open(said.out.strip()) as image:
        assert image.n_frames == 3
        durations = []
        for frame in range(3):
            image.seek(frame)
            durations.append(image.info["duration"])
        assert durations == [500, 500, 1500]


def test_a_film_has_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    folder = run(tmp_path / "run")
    for step in (10, 20):
        sample(folder, step, [0, 1, 2])
    main(["animation", str(folder), "--out", str(tmp_path / "out"), "--mp4"])
    path = capsys.readouterr().out.strip()
    frames, _ = ffmpeg.count_frames_and_secs(path)
    assert frames == 4, "two, and the last one three times"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["animation.mp4"]


def test_of_several_runs_each_has_its_own_animation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        sample(run(tmp_path / "runs" / name, variant=name), 10, [0])
    run(tmp_path / "runs" / "c", variant="c")
    main(["animation", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    written = [Path(line) for line in said.out.split()]
    assert written == [tmp_path / "out" / name / "animation.gif" for name in ("a", "b")]
    assert all(path.is_file() for path in written)
    assert "it has no samples" in said.err


# ------------------------------------------------------------------------------ distances


def test_frechet_distance_of_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    other = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) + 3
    c1, c2 = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    gap = ((one.mean(0) - other.mean(0)) ** 2).sum()
    expected = gap + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2)))
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(one, one + 2) == pytest.approx(24)
    flat = np.hstack([one, np.zeros((500, 3))])  # features that are always zero
    assert frechet_distance(flat, flat + 1) == pytest.approx(9)


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("name", ["samples", "patch", "losses", "curves", "animation", "domains"])
def test_nothing_to_draw_is_told(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no such folder" in refused(capsys, name, tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "run below" in refused(capsys, name, tmp_path / "empty")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "result.json").write_text("[]")
    assert "an object" in refused(capsys, name, tmp_path / "odd")


@pytest.mark.parametrize("name", ["patch", "losses", "curves"])
def test_a_run_that_goes_on_is_not_counted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path / "a", status="running", steps=0, curve={20: 30.0})
    message = refused(capsys, name, tmp_path)
    assert "no finished run" in message
    assert "killed at step 20" in message
    owned(folder, process=os.getpid(), host=socket.gethostname())
    assert "running at step 20" in refused(capsys, name, tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"method": 3}', '{"dataset": {"image_size": "x"}}']
)
def test_a_config_that_says_nothing_is_told(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run(tmp_path / "a") / "config.json").write_text(content)
    assert "config.json doesn't say" in refused(capsys, "patch", tmp_path)


@pytest.mark.parametrize(
    "arguments", [["animation", "--seconds", "nan"], ["animation", "--seconds", "0"]]
)
def test_odd_options_are_told(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample(run(tmp_path / "a"), 10, [0])
    assert "--seconds" in refused(capsys, arguments[0], tmp_path, *arguments[1:])
