"""Figures: what is drawn of which runs, what is said of the others, and the numbers behind it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from run_folders import owned, write
from scipy.linalg import sqrtm

from mosaickd.analysis.figures.domains import frechet_distance
from mosaickd.analysis.figures.drawing import COLUMN, DPI
from mosaickd.analysis.figures.grids import read_grid
from mosaickd.engine.samples import Grid, save_grids
from mosaickd.errors import UserError
from mosaickd.figures import main

WEIGHTS = {"adv": 1.0, "align": 1.0, "local": 1.0, "balance": 10.0}


def run(
    folder: Path,
    *,
    patch: int | None = 10,
    weights: dict[str, float] | None = None,
    curve: dict[int, float] | None = None,
    **changes: Any,
) -> Path:
    """Write a run's folder, without samples."""
    write(folder, **changes)
    method = WEIGHTS | (weights or {}) if changes.get("method", "mosaic") == "mosaic" else {}
    settings = {"dataset": {"image_size": 16}, "discriminator": {"patch_size": patch},
                "method": method}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    curve = curve or {25: 40.0, 50: changes.get("last", 70.0)}
    lines = [{"step": step, "accuracy/top1": value} for step, value in curve.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = [{"class": name, "images": 8, "right": 4} for name in "ABCDEF"]
    (folder / "per_class.json").write_text(json.dumps({"step": 50, "classes": names}))
    return folder


def sample(folder: Path, step: int, classes: list[int], size: int = 8) -> torch.Tensor:
    """Write a picture of as many images as `classes` has; return them, uint8 [n, 3, H, W]."""
    rng = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 255, (len(classes), 3, size, size), generator=rng)
    real = Grid("images", torch.rand(30, 3, size, size, generator=rng), torch.zeros(30).long())
    fakes = Grid("synthetic", pixels / 255, torch.tensor(classes))
    save_grids(folder / "samples" / f"step{step:07d}.png", [fakes, real], step)
    return pixels.byte()


class Figures:
    """Draws into `folder`/figures."""

    def __init__(
        self, folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        self.folder, self.capsys, self.caplog = folder / "figures", capsys, caplog

    @property
    def notes(self) -> str:
        """Return what the last command says beside its figure."""
        return "\n".join(self.caplog.messages)

    def __call__(self, name: str, *arguments: object) -> dict[str, Any]:
        """Return the numbers behind a figure."""
        self.caplog.clear()
        main([name, *map(str, arguments), "--out", str(self.folder)])
        printed = self.capsys.readouterr()
        paths = [self.folder / f"{name}.{kind}" for kind in ("png", "pdf", "json")]
        assert printed.out.split() == [str(path) for path in paths]
        numbers: dict[str, Any] = json.loads(paths[2].read_text())
        return numbers

    def error(self, *arguments: object) -> str:
        """Return what a command says that can't draw."""
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        printed = self.capsys.readouterr()
        assert (end.value.code, printed.out) == (1, "")
        return printed.err + self.notes


@pytest.fixture
def figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Figures:
    return Figures(tmp_path, capsys, caplog)


# ------------------------------------------------------------------------------ samples


@pytest.mark.parametrize(("count", "size"), [(1, 8), (10, 32), (11, 8), (100, 80)])
def test_the_images_of_a_picture_are_read_from_it_again(
    count: int, size: int, tmp_path: Path
) -> None:
    classes = sorted(i % 5 for i in range(count))
    pixels = sample(tmp_path, 7, classes, size)
    path = tmp_path / "samples" / "step0000007.png"
    grid = read_grid(path)
    assert (grid.step, grid.classes) == (7, classes)
    assert np.array_equal(grid.images, pixels.permute(0, 2, 3, 1).numpy())
    assert len(read_grid(path, "images").images) == 30


@pytest.mark.parametrize(
    "text",
    [None, "{", '{"grids": 3}', '{"grids": [{"what": "synthetic"}]}',
     '{"step": 1, "zoom": 0, "padding": 2, "columns": 10, "grids": '
     '[{"what": "synthetic", "left": 0, "size": 8, "classes": [1]}]}',
     '{"step": 1, "zoom": 1, "padding": 2, "columns": 10, "grids": '
     '[{"what": "synthetic", "left": 36, "size": 8, "classes": [1, 2]}]}'],
)  # fmt: skip
def test_what_is_no_picture_of_samples_is_refused_by_name(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "step1.png"
    layout = PngInfo()
    layout.add_text("mosaickd", text or "")
    Image.new("RGB", (40, 40)).save(path, pnginfo=layout)
    if text is None:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"step1\.png is no picture of samples"):
        read_grid(path)


def test_samples_stand_by_class_with_gaps_where_there_are_none(
    tmp_path: Path, figures: Figures
) -> None:
    whole = run(tmp_path / "runs" / "a", last=80.0)
    poor = run(tmp_path / "runs" / "b", weights={"local": 0.0}, last=30.0)
    images = run(tmp_path / "runs" / "c", patch=None, last=50.0)
    for folder, classes in ((whole, [0, 0, 1, 1, 2, 2]), (poor, [0] * 6), (images, [0, 1, 2, 3])):
        sample(folder, 25, [5])
        sample(folder, 50, classes)
    numbers = figures("samples", tmp_path / "runs", "--classes", 2, "--images", 3)
    assert figures.notes == ""
    assert [c["name"] for c in numbers["classes"]] == ["A", "B"], "those with most images"
    assert [one["label"] for one in numbers["runs"]] == [
        "10×10 patch discriminator", "without local", "whole-image discriminator",
    ]  # fmt: skip
    assert [one["images_by_class"].get("1", 0) for one in numbers["runs"]] == [2, 0, 1]
    assert [one["step"] for one in numbers["runs"]] == [50, 50, 50], "the last evaluation"


def test_runs_that_can_show_no_samples_are_named(tmp_path: Path, figures: Figures) -> None:
    sample(run(tmp_path / "good"), 50, [0, 1])
    run(tmp_path / "bare")
    sample(run(tmp_path / "others", dataset="letters"), 50, [0])
    sample(run(tmp_path / "running", status="running"), 25, [1])
    numbers = figures("samples", tmp_path / "good", tmp_path)
    assert {Path(one["run"]).name for one in numbers["runs"]} == {"good", "running"}
    assert f"left out: {tmp_path / 'bare'}: it has no samples" in figures.notes
    assert f"left out: {tmp_path / 'others'}: its classes are those of letters" in figures.notes


# ------------------------------------------------------------------------------ accuracies


def test_accuracy_by_patch_size(tmp_path: Path, figures: Figures) -> None:
    runs = tmp_path / "runs"
    for seed, last in ((0, 60.0), (1, 64.0)):
        run(runs / f"p4-{seed}", patch=4, seed=seed, last=last, best=90.0,
            variant="ablation=patch4")  # fmt: skip
    run(runs / "image", patch=None, last=50.0, variant="ablation=patch_image")
    run(runs / "large", patch=22, last=40.0, seed=5, variant="ablation=patch22")  # the image has 16
    run(runs / "other", method="kd")
    run(runs / "no_local", weights={"local": 0}, variant="ablation=no_local")
    run(runs / "broken", status="failed", error="out of memory")
    (line,) = figures("patch", runs)["lines"].values()
    assert {size: [one["accuracy"] for one in values] for size, values in line.items()} == {
        "4": [60.0, 64.0], "16": [50.0, 40.0],
    }  # fmt: skip
    for reason in ("other: method=kd has no patches", "no_local: it plays without local",
                   "broken: failed at step 50 (out of memory)"):  # fmt: skip
        assert f"left out: {runs}/{reason}" in figures.notes
    (line,) = figures("patch", runs, "--best")["lines"].values()
    assert line["4"][0]["accuracy"] == 90.0


def test_accuracy_without_one_loss_at_a_time(tmp_path: Path, figures: Figures) -> None:
    runs = tmp_path / "runs"
    run(runs / "full", last=80.0, variant="ablation=full")
    run(runs / "no_adv", weights={"adv": 0.0}, last=60.0, variant="ablation=no_adv")
    run(runs / "none", weights=dict.fromkeys(WEIGHTS, 0.0), variant="ablation=no_local, x=1")
    run(runs / "patch4", patch=4, variant="ablation=patch4")
    run(runs / "svhn", ood="svhn")
    numbers = figures("losses", runs)
    assert {name: [v["accuracy"] for v in values] for name, values in numbers["bars"].items()} == {
        "all losses": [80.0], "no adv": [60.0],
    }  # fmt: skip
    for reason in ("one at a time is drawn", "patches of 4 pixels, where the first has 10",
                   "from svhn, not cifar100", "no run with no balance"):  # fmt: skip
        assert reason in figures.notes


def test_curves_of_seeds_become_one_line_and_a_column_wide_figure(
    tmp_path: Path, figures: Figures
) -> None:
    runs = tmp_path / "runs"
    run(runs / "a", seed=0, curve={10: 20.0, 50: 70.0})
    run(runs / "b", seed=1, curve={25: 30.0, 50: 72.0})
    run(runs / "kd", method="kd", curve={50: 41.0})
    run(runs / "more", method="kd", steps=60, curve={60: 43.0})  # the same cell and seed
    run(runs / "silent", method="dfq", ood=None).joinpath("metrics.jsonl").unlink()
    lines = figures("curves", runs)["lines"]
    assert {(line["line"], line["seed"]): line["curve"] for line in lines} == {
        ("MosaicKD", 0): [[10, 20.0], [50, 70.0]], ("MosaicKD", 1): [[25, 30.0], [50, 72.0]],
        ("KD", 0): [[60, 43.0]],
    }  # fmt: skip
    assert "silent: no evaluation in its metrics.jsonl" in figures.notes
    assert f"{runs / 'more'} counts" in figures.notes
    with Image.open(figures.folder / "curves.png") as image:
        assert image.width == round(COLUMN * DPI)
    pdf = (figures.folder / "curves.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf, "fonts are embedded"
    assert b"/Type3" not in pdf, "and not as drawings, which journals refuse"


def test_only_seeds_are_put_together(tmp_path: Path, figures: Figures) -> None:
    """Other images, or another setting, make another line."""
    runs = tmp_path / "runs"
    run(runs / "a", last=70.0)
    run(runs / "b", last=20.0, ood="svhn")
    run(runs / "c", last=30.0, ood_subset=True)
    run(runs / "d", last=10.0, variant="players.student.optimizer.lr=9, ablation=full")
    run(runs / "e", last=72.0, seed=1, variant="ablation=full")
    ends = {line["run"][-1]: line["line"] for line in figures("curves", runs)["lines"]}
    assert ends == {
        "a": "MosaicKD on cifar10", "e": "MosaicKD on cifar10", "b": "MosaicKD on svhn",
        "c": "MosaicKD on cifar10 (OOD subset)",
        "d": "MosaicKD on cifar10 with players.student.optimizer.lr=9",
    }  # fmt: skip
    lines = figures("patch", runs)["lines"].values()
    assert sorted(len(values) for line in lines for values in line.values()) == [1, 1, 1, 2]
    bars = figures("losses", runs)["bars"]
    assert [one["accuracy"] for one in bars["all losses"]] == [70.0, 72.0]


# ------------------------------------------------------------------------------ animations


def test_an_animation_has_a_frame_an_evaluation(tmp_path: Path, figures: Figures) -> None:
    folder = run(tmp_path / "run", status="running")
    for step in (10, 20, 30):
        sample(folder, step, [0] * step)  # a method may make more and more
    (folder / "samples" / "step0000025.png").write_bytes(b"cut short")
    main(["animation", str(folder), "--out", str(tmp_path / "out"), "--seconds", "0.5"])
    printed = figures.capsys.readouterr()
    assert "step0000025.png is no picture" in figures.notes
    durations = []
    with Image.open(printed.out.strip()) as image:
        assert image.n_frames == 3
        for frame in range(3):
            image.seek(frame)
            durations.append(image.info["duration"])
    assert durations == [500, 500, 1500]


def test_a_film_has_them_too(tmp_path: Path, figures: Figures) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    folder = run(tmp_path / "run")
    for step in (10, 20):
        sample(folder, step, [0, 1, 2])
    main(["animation", str(folder), "--out", str(tmp_path / "out"), "--mp4"])
    frames, _ = ffmpeg.count_frames_and_secs(figures.capsys.readouterr().out.strip())
    assert frames == 4, "two, and the last one three times"


def test_of_several_runs_each_has_its_own_animation(tmp_path: Path, figures: Figures) -> None:
    for name in ("a", "b"):
        sample(run(tmp_path / "runs" / name), 10, [0])
    run(tmp_path / "runs" / "c")
    main(["animation", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    printed = figures.capsys.readouterr()
    paths = [Path(line) for line in printed.out.split()]
    assert paths == [tmp_path / "out" / name / "animation.gif" for name in ("a", "b")]
    assert all(path.is_file() for path in paths)
    assert "c: it has no samples" in figures.notes


# ------------------------------------------------------------------------------ distances


def test_frechet_distance_of_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    other = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) + 3
    c1, c2 = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    gap = ((one.mean(0) - other.mean(0)) ** 2).sum()
    expected = gap + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2)))
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-8)
    flat = np.hstack([one, np.zeros((500, 3))])  # features that are always zero
    assert frechet_distance(flat, flat + 1) == pytest.approx(9)


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("name", ["samples", "patch", "losses", "curves", "animation", "domains"])
def test_where_nothing_can_be_drawn_the_reasons_are_given(
    name: str, tmp_path: Path, figures: Figures
) -> None:
    assert "there is no such folder" in figures.error(name, tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "run below" in figures.error(name, tmp_path / "empty")
    run(tmp_path / "odd").joinpath("result.json").write_text("[]")
    assert "no result of a run" in figures.error(name, tmp_path / "odd")


@pytest.mark.parametrize("name", ["patch", "losses", "curves"])
def test_a_run_that_has_not_finished_is_not_counted(
    name: str, tmp_path: Path, figures: Figures
) -> None:
    folder = run(tmp_path / "a", status="running", steps=0, curve={20: 30.0})
    message = figures.error(name, tmp_path)
    assert "no finished run" in message
    assert "killed at step 20" in message
    owned(folder, process=os.getpid(), host=socket.gethostname())
    assert "running at step 20" in figures.error(name, tmp_path)
