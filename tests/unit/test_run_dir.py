"""A run's folder: who may begin a run there, and what is removed for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mosaickd.errors import UserError
from mosaickd.metric_names import TOP1
from mosaickd.run_dir import SWEEP, OpenedRun, Result, RunDir, find_run_dirs, open_run_dir, withdraw

KEY = {"seed": 0, "train": {"batch_size": 16}}
RESULT = Result("interrupted", "kd", "letters", "wrn16_1", seed=0, steps=3)


def open_run(path: Path, key: Any = KEY, *, force: bool = False, **inputs: str) -> OpenedRun:
    return open_run_dir(RunDir(path), key, {"config.yaml": "seed: 0"}, force=force, inputs=inputs)


@pytest.fixture
def begun(tmp_path: Path) -> RunDir:
    """A run that was interrupted after its first checkpoint."""
    opened = open_run(tmp_path / "run")
    opened.begin(RESULT)
    opened.run.checkpoint.parent.mkdir()
    opened.run.checkpoint.touch()
    return opened.run


def test_the_same_settings_go_on_and_others_are_refused(begun: RunDir) -> None:
    assert open_run(begun.path).previous == RESULT
    with pytest.raises(UserError, match=r"\(seed: 0 -> 5\).*hydra.run.dir=FOLDER.*force=true"):
        open_run(begun.path, KEY | {"seed": 5})
    assert begun.read_run_key() == KEY


def test_force_removes_what_the_run_has_written_and_not_before_the_new_one_begins(
    begun: RunDir,
) -> None:
    notes = begun.path / "notes.txt"
    notes.touch()
    opened = open_run(begun.path, KEY | {"seed": 5}, force=True)
    assert begun.checkpoint.exists()
    assert begun.read_run_key() == KEY
    opened.begin(replace(RESULT, steps=0))
    assert not begun.checkpoint.exists()
    assert begun.read_run_key() == KEY | {"seed": 5}
    assert notes.exists()


def test_force_spares_what_the_new_run_is_made_of(begun: RunDir) -> None:
    with pytest.raises(UserError, match=r"teacher\.checkpoint=.*which force=true would remove"):
        open_run(begun.path, force=True, **{"teacher.checkpoint": str(begun.student)})


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


@pytest.mark.parametrize("content", ["[1]", "{", "null and void"])
def test_a_result_that_is_no_result_is_named(begun: RunDir, content: str) -> None:
    begun.result.write_text(content)
    with pytest.raises(UserError, match=f"{begun.result}.*force=true"):
        open_run(begun.path)


def test_what_a_kill_left_is_removed_and_files_of_the_users_own_stay(begun: RunDir) -> None:
    of_a_kill = [begun.path / "checkpoints" / ".last.pt.abcdef01.tmp",
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


def test_runs_are_found_until_they_are_withdrawn(begun: RunDir, tmp_path: Path) -> None:
    assert list(find_run_dirs(tmp_path)) == [begun]
    withdraw(begun)
    assert list(find_run_dirs(tmp_path)) == []


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    begun = RunDir(tmp_path)
    assert begun.read_result() is None
    result = Result("finished", "kd", "letters", "wrn16_1", 0, skipped=True)
    result.accuracy["last"] = 12.5
    begun.write_result(result)
    read = begun.read_result()
    assert read is not None
    assert (read.last, read.best, read.skipped) == (12.5, None, False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "not valid JSON"), ("[1]", "no JSON object"), ('{"status": "finished"}', "method"),
     ('{"status": 3, "method": "kd", "dataset": "x", "student": "y", "seed": 0}', "status")],
)  # fmt: skip
def test_a_file_that_is_no_result_is_named(begun: RunDir, content: str, reason: str) -> None:
    begun.result.write_text(content)
    with pytest.raises(UserError, match=reason) as error:
        begun.read_result()
    assert str(begun.result) in str(error.value)


def test_metrics_after_the_checkpoint_and_half_lines_are_dropped_on_resume(begun: RunDir) -> None:
    assert begun.read_metrics() == []
    for step in (1, 20, 40):
        begun.append_metrics({"step": step, "loss": step / 10})
    with begun.metrics.open("a") as file:
        file.write('{"step": 60, "lo')
    begun.truncate(20, 0)
    begun.append_metrics({"step": 40, "loss": 0.5})
    assert [(line["step"], line["loss"]) for line in begun.read_metrics()] == [
        (1, 0.1), (20, 2.0), (40, 0.5),
    ]  # fmt: skip


def test_an_evaluation_that_comes_again_is_there_once(begun: RunDir) -> None:
    """A run was stopped at step 20, before its evaluation; resumed, it was killed right after."""
    begun.samples.mkdir()
    for step in (10, 20):
        begun.sample(step).touch()
    for line in ({"step": 10, TOP1: 5.0}, {"step": 20, "loss": 1.0}, {"step": 20, TOP1: 7.0}):
        begun.append_metrics(line)
    begun.truncate(20, evaluated=10)
    assert [line.get(TOP1) for line in begun.read_metrics()] == [5.0, None]
    assert begun.sample_paths() == [begun.sample(10)]
