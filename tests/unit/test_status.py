"""The status of runs, from their folders alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO
from rich.console import Console
from run_folders import append, evaluated, logged, owned, write

from mosaickd.analysis.status import survey, to_table
from mosaickd.status import main

Rows = dict[str, dict[str, Any]]


@pytest.fixture
def rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def read() -> Rows:
        """Return what --json says of the runs below tmp_path, by folder, in its order."""
        main([str(tmp_path), "--json"])
        statuses = json.loads(capsys.readouterr().out)
        return {str(Path(row["folder"]).relative_to(tmp_path)): row for row in statuses}

    return read


def under_way(folder: Path, **changes: Any) -> Path:
    """Write a run that has logged 20 steps of 100, and was evaluated at the 10th."""
    write(folder, **{"status": "running", "steps": 0, "total_steps": 100, "last": None,
                     "best": None, "seconds": 0.0} | changes)  # fmt: skip
    append(folder, logged(10), evaluated(10, 60.0), logged(20))
    return folder


def hold(folder: Path, process: int | None = None, host: str | None = None, ago: float = 0) -> None:
    owned(folder, process=process or os.getpid(), host=host or socket.gethostname(), ago=ago)


def ended_process() -> int:
    """Return the number of a process that there was."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_runs_that_have_ended(
    tmp_path: Path, rows: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "kd" / "seed0", steps=50, total_steps=50)
    write(tmp_path / "kd" / "seed1", status="failed", steps=12, total_steps=50,
          error="NonFiniteLoss: kd is nan", last=None, best=None)  # fmt: skip
    write(tmp_path / "kd" / "seed2", status="interrupted", steps=25, total_steps=50)
    write(tmp_path / "kd" / "seed3")
    (tmp_path / "kd" / "seed3" / "result.json").write_text("{")
    found = rows()
    assert {name: row["state"] for name, row in found.items()} == {
        "kd/seed0": "finished", "kd/seed1": "failed", "kd/seed2": "interrupted",
        "kd/seed3": "unreadable",
    }  # fmt: skip
    assert found["kd/seed1"]["accuracy"] is None
    main([str(tmp_path)])
    text = capsys.readouterr().out
    assert "seed1: NonFiniteLoss: kd is nan" in text
    assert "seed3: " in text
    assert "25/50 (50 %)" in text
    assert "70.00 (71.25)" in text
    assert text.splitlines()[0] == "4 runs: 1 finished, 1 interrupted, 1 failed, 1 unreadable"


def test_a_run_that_is_held_is_running_and_says_how_far_it_is(tmp_path: Path, rows: Any) -> None:
    hold(under_way(tmp_path / "run"))
    row = rows()["run"]
    assert (row["state"], row["step"], row["total_steps"]) == ("running", 20, 100)
    assert (row["accuracy"], row["best_accuracy"]) == (60.0, 60.0)
    assert (row["seconds_per_step"], row["seconds_left"]) == (0.5, 40.0)
    assert row["process"] == f"process {os.getpid()} on {socket.gethostname()}"
    assert 0 <= time.time() - row["last_write"] < 60


def test_a_run_that_nobody_holds_any_more_was_killed(tmp_path: Path, rows: Any) -> None:
    under_way(tmp_path / "unheld")
    hold(under_way(tmp_path / "dead"), process=ended_process())
    hold(under_way(tmp_path / "far"), process=1, host="faraway", ago=3600)
    hold(under_way(tmp_path / "alive"), process=1, host="faraway", ago=10)
    states = {name: row["state"] for name, row in rows().items()}
    assert states.pop("alive") == "running"
    assert set(states.values()) == {"killed"}
    assert rows()["unheld"]["seconds_left"] is None


def test_a_run_before_its_first_step_knows_little(tmp_path: Path, rows: Any) -> None:
    write(tmp_path / "run", status="preparing", steps=0, last=None, best=None)
    hold(tmp_path / "run")
    row = rows()["run"]
    assert row["state"] == "running"
    unknown = ("step", "accuracy", "seconds_per_step", "seconds_left")
    assert [row[name] for name in unknown] == [None] * 4


def test_running_ones_come_first_then_those_that_wrote_last(tmp_path: Path, rows: Any) -> None:
    for age, name in ((300, "old"), (200, "new"), (400, "running")):
        write(tmp_path / name, status="running" if name == "running" else "finished")
        moment = time.time() - age
        os.utime(tmp_path / name / "result.json", (moment, moment))
    hold(tmp_path / "running")
    assert [*rows()] == ["running", "new", "old"]


@pytest.mark.parametrize("width", [70, 200])
def test_a_narrow_terminal_shows_whole_names_too(tmp_path: Path, width: int) -> None:
    name = "figure6/full/letters-strokes/wrn16_2-wrn16_1/seed0"
    write(tmp_path / name, total_steps=100)
    out = Console(width=max(width, len(str(tmp_path / name))))
    with out.capture() as capture:
        out.print(to_table(survey([tmp_path]), width))
    assert str(tmp_path / name) in capture.get()
    assert "50/100 (50 %)" in capture.get()


def test_where_there_is_no_run_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for folder, message in ((tmp_path, "no run below"), (tmp_path / "file", "it is a file"),
                            (tmp_path / "nowhere", "there is no such folder")):  # fmt: skip
        with pytest.raises(SystemExit, match="1"):
            main([str(folder)])
        assert message in capsys.readouterr().err


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "mosaickd.status", str(tmp_path), "--watch", "0.1", "--json"],
        env=os.environ | {"PYTHONPATH": str(REPO)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


def test_watching_shows_runs_that_begin_and_ends_with_ctrl_c(
    tmp_path: Path, watching: subprocess.Popen[str]
) -> None:
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline()) == [], "none yet"
    write(tmp_path / "run", total_steps=50)
    while not (statuses := json.loads(watching.stdout.readline())):
        pass
    assert statuses[0]["folder"] == str(tmp_path / "run")
    watching.send_signal(signal.SIGINT)
    assert watching.wait(20) == 130
