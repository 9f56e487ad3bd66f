"""A run's folder: skipped when finished, refused to others."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import Cli, Tiny, read_json
from forked import Forked
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


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (["train.batch_size=1000"], "train.batch_size"),
        (["teacher.checkpoint=typo.safetensors"], "typo.safetensors"),
        (["teacher=wrn16_1", "teacher.checkpoint=run/student.safetensors"], "force=true would"),
    ],
)
def test_force_discards_nothing_for_a_run_that_cannot_begin(
    cli: Cli, tiny: Tiny, run: Path, mistake: list[str], said: str
) -> None:
    before = written(run)
    assert said in cli(*tiny.mosaic(*STEPS, "force=true", *mistake), code=1).err
    assert written(run) == before
    assert "nothing to do" in cli(*tiny.mosaic(*STEPS)).out


def test_a_job_that_is_queued_again_goes_on_also_with_force(forked: Forked, tiny: Tiny) -> None:
    same = [*tiny.distil("kd", "train.steps=400", "train.checkpoint_every=2"), "force=true",
            "hydra.run.dir=run"]  # fmt: skip
    job = {"SLURM_JOB_ID": "17"}
    run = forked.start(*same, env=job)
    run.until((forked.folder / "run" / "checkpoints" / "last.pt").exists)
    os.kill(run.pid, signal.SIGTERM)
    assert "the same command, without force=true, goes on" in run.wait().out
    told = {"resumed", "discarded"}
    for env, goes_on in ((job | {"SLURM_RESTART_COUNT": "1"}, True), (job, False)):
        run = forked.start(*same, env=env)
        run.until(lambda out=run.out: told & {*out.read_text().split()})  # type: ignore[misc]
        os.kill(run.pid, signal.SIGTERM)
        assert ("resumed at step" in run.wait().out) == goes_on


def test_cells_that_share_a_folder_do_not_take_its_place(cli: Cli, tiny: Tiny) -> None:
    sweep = [*tiny.distil("kd", "train.steps=1", "train.batch_size=8,16"), "hydra.sweep.dir=mine"]
    for more in ([], ["force=true"]):
        outcome = cli("-m", *sweep, *more, code=1)
        assert "holds another cell of this sweep (train.batch_size: 8 -> 16)" in outcome.text
        assert "batch_size${train.batch_size}/seed${seed}" in outcome.text
    named = "hydra.sweep.subdir=bs${train.batch_size}/seed${seed}"
    cli("-m", *sweep, named, "force=true")
    assert {path.parent.parent.name for path in cli.folder.glob("mine/*/*/result.json")} >= {
        "bs8", "bs16",
    }  # fmt: skip


def test_lost_weights_are_written_again_from_the_checkpoint(
    cli: Cli, tiny: Tiny, run: Path
) -> None:
    path = run / "student.safetensors"
    before = path.read_bytes()
    for lose in (path.unlink, lambda: path.write_bytes(b"")):
        lose()
        assert "written again" in cli(*tiny.mosaic(*STEPS)).out
        assert path.read_bytes() == before
    path.unlink()
    for checkpoint in (run / "checkpoints").glob("*.pt"):
        checkpoint.unlink()
    outcome = cli(*tiny.mosaic(*STEPS))
    assert "there is no checkpoint: force=true trains it anew" in outcome.out
    assert not path.exists()


def test_files_of_the_users_own_stay_below_a_run(cli: Cli, tiny: Tiny, run: Path) -> None:
    mine = [run / "deep" / ".result.json.abcdefgh.tmp", run / ".draft.tmp"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    left = run / "checkpoints" / ".last.pt.abcd_efg.tmp"
    left.touch()
    cli(*tiny.mosaic(*STEPS))
    assert all(path.exists() for path in mine)
    assert not left.exists()


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
