"""A run's folder: skipped when finished, refused to others."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Cli, Tiny, read_json
from safetensors.torch import load_file

STEPS = ["train.steps=2", "hydra.run.dir=run"]
PRODUCTS = ("result.json", "student.safetensors", "metrics.jsonl", "checkpoints/last.pt",
            "samples/step0000002.png", "config.json")  # fmt: skip


@pytest.fixture(scope="module")
def finished(shared_cli: Cli, tiny: Tiny) -> Path:
    shared_cli(*tiny.mosaic(*STEPS, "hydra.run.dir=finished"))
    return shared_cli.folder / "finished"


@pytest.fixture
def run(cli: Cli, finished: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(finished, cli.folder / "run")


def written(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in PRODUCTS}


def test_finished_is_skipped(cli: Cli, tiny: Tiny, run: Path) -> None:
    before = written(run)
    outcome = cli(*tiny.mosaic(*STEPS))
    assert "finished" in outcome.out
    assert "force=true" in outcome.out
    assert "student wrn16_1" in outcome.out, "the table is shown again"
    assert written(run) == before


def test_what_a_kill_left_of_its_first_files_is_removed_and_nothing_else(
    cli: Cli, tiny: Tiny
) -> None:
    """Killed while it wrote the first file: nothing in the folder says yet that it is a run's."""
    folder = cli.folder / "run"
    (folder / "below").mkdir(parents=True)
    left = [folder / ".config.json.1a2b.tmp", folder / ".hydra" / ".config.yaml.3c4d.tmp"]
    others = [folder / ".mine.tmp", folder / "below" / ".config.json.5e6f.tmp"]
    (folder / ".hydra").mkdir()
    for path in [*left, *others]:
        path.touch()
    cli(*tiny.scratch("hydra.run.dir=run", "method=nothing"), code=2)
    assert all(path.exists() for path in left), "not before the run is accepted"
    cli(*tiny.scratch(*STEPS))
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


@pytest.mark.slow
def test_how_a_run_is_watched_may_change(cli: Cli, tiny: Tiny, run: Path) -> None:
    before = written(run)
    cli(*tiny.mosaic(*STEPS, "train.eval_every=1", "train.log_every=1", "train.checkpoint_every=1"))
    assert written(run) == before


def test_force_runs_it_anew(cli: Cli, tiny: Tiny, run: Path) -> None:
    before = written(run)
    (run / "samples" / "step0000009.png").touch()
    (run / "notes.txt").write_text("mine")
    weights = load_file(run / "student.safetensors")
    cli(*tiny.mosaic(*STEPS, "force=true"))
    after = written(run)
    assert all(after[name] > before[name] for name in PRODUCTS)
    assert not (run / "samples" / "step0000009.png").exists()
    assert (run / "notes.txt").exists()
    anew = load_file(run / "student.safetensors")
    assert all(torch.equal(anew[key], weights[key]) for key in weights), "same seed, same run"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3  # two steps, an evaluation


def test_force_removes_nothing_from_a_folder_that_is_no_run(cli: Cli, tiny: Tiny) -> None:
    mine = [cli.folder / "run" / name for name in ("samples/mine.png", "teacher/notes", ".x.tmp")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    cli(*tiny.mosaic(*STEPS, "force=true"))
    assert all(path.exists() for path in mine)


def test_a_result_that_is_no_result_is_named(cli: Cli, tiny: Tiny, run: Path) -> None:
    for content in ("[1]", "{", "null and void"):
        (run / "result.json").write_text(content)
        outcome = cli(*tiny.mosaic(*STEPS), code=1)
        assert str(run / "result.json") in outcome.err
        assert "force=true" in outcome.err
    cli(*tiny.mosaic(*STEPS, "force=true"))
    assert read_json(run / "result.json")["status"] == "finished"


@pytest.mark.parametrize(
    ("override", "setting"),
    [
        ("seed=5", "seed: 0 -> 5"),
        pytest.param("method.align=0.5", "method.align: 1.0 -> 0.5", marks=pytest.mark.slow),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    cli: Cli, tiny: Tiny, run: Path, override: str, setting: str
) -> None:
    before = written(run)
    outcome = cli(*tiny.mosaic(*STEPS, override), code=1)
    assert setting in outcome.err
    assert "hydra.run.dir" in outcome.err
    assert written(run) == before
    hydra = (run / ".hydra" / "overrides.yaml").read_text()
    assert override not in hydra, ".hydra still says what the run in this folder was"


def test_a_damaged_checkpoint_is_named(cli: Cli, tiny: Tiny, run: Path) -> None:
    path = run / "checkpoints" / "last.pt"
    (run / "result.json").unlink()  # as after a kill
    size = path.stat().st_size // 2
    os.truncate(path, size)
    outcome = cli(*tiny.mosaic(*STEPS), code=1)
    assert str(path) in outcome.err
    assert "force=true" in outcome.err
    assert path.stat().st_size == size, "the file is left for a person to look at"
    result = read_json(run / "result.json")
    assert result["status"] == "failed"
    assert str(path) in result["error"]
