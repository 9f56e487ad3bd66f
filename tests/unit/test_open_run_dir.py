"""A run's folder: which command goes on with a run there, and what is removed for a new one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mosaickd.errors import UserError
from mosaickd.run_dir import SWEEP, OpenedRun, Result, RunDir, open_run_dir

KEY = {"seed": 0, "train": {"batch_size": 16}}
RESULT = Result("interrupted", "kd", "letters", "wrn16_1", seed=0, steps=3)


def open_run(path: Path, key: Any = KEY, *, force: bool = False) -> OpenedRun:
    return open_run_dir(RunDir(path), key, {"config.yaml": "seed: 0"}, force=force, inputs={})


@pytest.fixture
def begun(tmp_path: Path) -> RunDir:
    """A run that was interrupted after its first checkpoint."""
    opened = open_run(tmp_path / "run")
    opened.begin(RESULT)
    opened.run.checkpoint.parent.mkdir()
    opened.run.checkpoint.touch()
    return opened.run


def test_an_interrupted_run_goes_on_and_force_spares_files_of_the_users_own(begun: RunDir) -> None:
    assert open_run(begun.path).previous == RESULT
    notes = begun.path / "notes.txt"
    notes.touch()
    open_run(begun.path, force=True).begin(replace(RESULT, steps=0))
    assert not begun.checkpoint.exists()
    assert notes.exists()


def test_a_job_that_is_queued_again_goes_on_also_with_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    opened = open_run(tmp_path, force=True)
    opened.begin(RESULT)
    opened.run.checkpoint.parent.mkdir()
    opened.run.checkpoint.touch()
    assert open_run(tmp_path, force=True).overwrites, "somebody's own command"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not open_run(tmp_path, force=True).overwrites


def test_jobs_of_a_sweep_do_not_take_each_others_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWEEP, "a")
    open_run(tmp_path).begin(replace(RESULT, status="finished"))
    for force in (False, True):
        with pytest.raises(UserError, match=r"batch_size: 16 -> 8.*batch_size\$\{train.batch_size"):
            open_run(tmp_path, {"seed": 0, "train": {"batch_size": 8}}, force=force)


def test_what_a_kill_left_is_removed_and_files_of_the_users_own_stay(begun: RunDir) -> None:
    of_a_kill = [begun.path / "checkpoints" / ".last.pt.1a2b3c4d.tmp",
                 begun.path / ".hydra" / ".config.yaml.3c4d.tmp"]  # fmt: skip
    of_the_user = [begun.path / ".draft.tmp", begun.path / "deep" / ".result.json.5e6f.tmp"]
    for path in [*of_a_kill, *of_the_user]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    open_run(begun.path)
    assert not any(path.exists() for path in of_a_kill)
    assert all(path.exists() for path in of_the_user)


def test_a_folder_that_is_no_runs_is_left_as_it_is(tmp_path: Path) -> None:
    """Also where a kill came so early that nothing says yet that it is a run's."""
    users = [
        tmp_path / name for name in ("samples/mine.png", "below/.config.json.5e6f.tmp", ".x.tmp")
    ]
    of_a_kill = [tmp_path / ".config.json.1a2b.tmp", tmp_path / ".hydra" / ".config.yaml.3c4d.tmp"]
    for path in [*users, *of_a_kill]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    opened = open_run(tmp_path, force=True)
    opened.begin(RESULT)
    assert not any(path.exists() for path in of_a_kill)
    assert all(path.exists() for path in users)
