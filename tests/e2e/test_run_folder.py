"""A run's folder: skipped when finished, refused to others. (Its rules: unit/test_run_dir.py.)"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import Cli, Tiny, read_json
from safetensors.torch import load_file

from mosaickd.run_dir import find_run_dirs

STEPS = ["train.steps=2", "hydra.run.dir=run"]
PRODUCTS = ("result.json", "student.safetensors", "metrics.jsonl", "checkpoints/last.pt",
            "samples/step0000002.png", "config.json", ".hydra/overrides.yaml")  # fmt: skip


@pytest.fixture(scope="module")
def finished(shared_cli: Cli, tiny: Tiny) -> Path:
    shared_cli(*tiny.mosaic(*STEPS, "hydra.run.dir=finished"))
    return shared_cli.folder / "finished"


@pytest.fixture
def run(cli: Cli, finished: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(finished, cli.folder / "run")


def written_at(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in PRODUCTS}


def test_a_finished_run_is_skipped_and_other_settings_are_refused(
    cli: Cli, tiny: Tiny, run: Path
) -> None:
    before = written_at(run)
    watched = ["train.eval_every=1", "train.log_every=1", "train.checkpoint_every=1"]
    outcome = cli(*tiny.mosaic(*STEPS, *watched))  # how it is watched makes it no other run
    assert "nothing to do (force=true runs it anew)" in outcome.out
    assert "student wrn16_1" in outcome.out, "the table is shown again"
    outcome = cli(*tiny.mosaic(*STEPS, "seed=5"), code=1)
    assert "seed: 0 -> 5" in outcome.err
    assert "hydra.run.dir" in outcome.err
    assert written_at(run) == before


def test_force_runs_it_anew(cli: Cli, tiny: Tiny, run: Path) -> None:
    before = written_at(run)
    (run / "samples" / "step0000009.png").touch()
    (run / "notes.txt").write_text("mine")
    weights = load_file(run / "student.safetensors")
    cli(*tiny.mosaic(*STEPS, "force=true"))
    after = written_at(run)
    assert all(after[name] > before[name] for name in PRODUCTS)
    assert not (run / "samples" / "step0000009.png").exists()
    assert (run / "notes.txt").exists()
    anew = load_file(run / "student.safetensors")
    assert all(torch.equal(anew[key], weights[key]) for key in weights), "same seed, same run"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3  # two steps, an evaluation


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        pytest.param("teacher.checkpoint=corrupt.safetensors", "corrupt.safetensors",
                     id="corrupt teacher"),
        pytest.param("train.batch_size=1000", "train.batch_size", id="too few images",
                     marks=pytest.mark.slow),
        pytest.param("ood=folder", "ood.root", id="no images", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_an_attempt_that_cannot_begin_leaves_no_run_and_takes_no_ones_place(
    cli: Cli, tiny: Tiny, run: Path, mistake: str, words: str
) -> None:
    (cli.folder / "corrupt.safetensors").write_bytes(b"corrupt")
    attempt = [
        a for a in tiny.mosaic(*STEPS, mistake) if mistake != "ood=folder" or "ood." not in a
    ]
    assert words in cli(*attempt, "hydra.run.dir=failed", code=1).err
    assert list(find_run_dirs(cli.folder / "failed")) == []
    before = written_at(run)
    assert words in cli(*attempt, "force=true", code=1).err
    assert written_at(run) == before


def test_lost_weights_are_written_again_from_the_checkpoint(
    cli: Cli, tiny: Tiny, run: Path
) -> None:
    path = run / "student.safetensors"
    before = path.read_bytes()
    path.write_bytes(b"")
    assert "written again" in cli(*tiny.mosaic(*STEPS)).out
    assert path.read_bytes() == before
    path.unlink()
    for checkpoint in (run / "checkpoints").glob("*.pt"):
        checkpoint.unlink()
    assert "there is no checkpoint: force=true trains it anew" in cli(*tiny.mosaic(*STEPS)).out
    assert not path.exists()


@pytest.mark.slow
def test_jobs_of_a_sweep_that_share_a_folder_are_told_to_name_it(cli: Cli, tiny: Tiny) -> None:
    sweep = [*tiny.distil("kd", "train.steps=1", "train.batch_size=8,16"), "hydra.sweep.dir=mine"]
    assert "batch_size${train.batch_size}/seed${seed}" in cli("-m", *sweep, code=1).text
    cli("-m", *sweep, "hydra.sweep.subdir=bs${train.batch_size}/seed${seed}")
    results = [read_json(path) for path in cli.folder.glob("mine/bs*/seed0/result.json")]
    assert [result["status"] for result in results] == ["finished", "finished"]
