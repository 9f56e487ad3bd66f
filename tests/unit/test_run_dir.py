"""A run's folder: what it holds is read as it was written, whatever a kill or an edit has left."""

from __future__ import annotations

from pathlib import Path

import pytest

from mosaickd.errors import UserError
from mosaickd.metric_names import TOP1
from mosaickd.run_dir import Result, RunDir, find_run_dirs, open_run_dir, withdraw

FILES = {"config.yaml": "seed: 0\n", "overrides.yaml": "- seed=0\n"}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Return a run that was accepted in its folder."""
    run = RunDir(tmp_path / "run")
    open_run_dir(run, {"seed": 0}, FILES, force=False, inputs={})
    return run


def test_a_result_comes_back_as_it_was(run: RunDir) -> None:
    assert run.read_result() is None
    result = Result("finished", "kd", "letters", "wrn16_1", 0, skipped=True)
    result.accuracy["last"] = 12.5
    run.write_result(result)
    read = run.read_result()
    assert read is not None
    assert (read.last, read.best, read.skipped) == (12.5, None, False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "not valid JSON"), ("[1]", "no JSON object"), ('{"status": "finished"}', "method"),
     ('{"status": 3, "method": "kd", "dataset": "x", "student": "y", "seed": 0}', "status")],
)  # fmt: skip
def test_a_file_that_is_no_result_is_named(run: RunDir, content: str, reason: str) -> None:
    run.result.write_text(content)
    with pytest.raises(UserError, match=reason) as error:
        run.read_result()
    assert str(run.result) in str(error.value)


def test_metrics_after_the_checkpoint_and_half_lines_are_dropped_on_resume(run: RunDir) -> None:
    assert run.read_metrics() == []
    for step in (1, 20, 40):
        run.append_metrics({"step": step, "loss": step / 10})
    with run.metrics.open("a") as file:
        file.write('{"step": 60, "lo')
    run.truncate(20, 0)
    run.append_metrics({"step": 40, "loss": 0.5})
    assert [(line["step"], line["loss"]) for line in run.read_metrics()] == [
        (1, 0.1), (20, 2.0), (40, 0.5),
    ]  # fmt: skip


def test_an_evaluation_that_comes_again_is_there_once(run: RunDir) -> None:
    """A run was stopped at step 20, before its evaluation; resumed, it was killed right after."""
    run.samples.mkdir()
    for step in (10, 20):
        run.sample(step).touch()
    for line in ({"step": 10, TOP1: 5.0}, {"step": 20, "loss": 1.0}, {"step": 20, TOP1: 7.0}):
        run.append_metrics(line)
    run.truncate(20, evaluated=10)
    assert [line.get(TOP1) for line in run.read_metrics()] == [5.0, None]
    assert run.sample_paths() == [run.sample(10)]


def test_runs_are_found_and_what_lies_inside_of_one_is_not(run: RunDir) -> None:
    root = run.path.parent
    inside = RunDir(run.path / "teacher" / "wrn16_2-training")
    open_run_dir(inside, {"seed": 1}, FILES, force=False, inputs={})
    (root / "empty" / "samples").mkdir(parents=True)
    assert list(find_run_dirs(root)) == [run]
    withdraw(run)
    assert run not in list(find_run_dirs(root))


def test_another_run_in_the_folder_is_refused_or_overwritten(run: RunDir) -> None:
    run.checkpoint.parent.mkdir()
    run.checkpoint.touch()
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        open_run_dir(run, {"seed": 1}, FILES, force=False, inputs={})
    with pytest.raises(UserError, match=r"teacher\.checkpoint"):
        open_run_dir(run, {"seed": 1}, FILES, force=True,
                     inputs={"teacher.checkpoint": str(run.checkpoint)})  # fmt: skip
    opened = open_run_dir(run, {"seed": 1}, FILES, force=True, inputs={})
    assert run.checkpoint.exists(), "until the new run can begin"
    opened.begin(Result("running", "kd", "letters", "wrn16_1", 1))
    assert not run.checkpoint.exists()
    assert run.read_run_key() == {"seed": 1}
