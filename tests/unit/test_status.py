"""The state of runs, told from their folders alone: what is known, and nothing that isn't."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_locks import elsewhere, holding
from test_report import write
from test_report_hostile import INNER, KEYS, ODD, folder

from mosaickd.locks import OWNER, holder, owned
from mosaickd.status import runs
from mosaickd.status.__main__ import main
from mosaickd.status.runs import survey
from mosaickd.status.show import overview

NOW = time.time()


def logged(
    run: Path, steps: int, *, every: float = 10.0, ago: float = 5.0, evaluations: int = 5
) -> None:
    """metrics.jsonl: a line a step, `every` seconds apart, the last one `ago` seconds ago."""
    run.mkdir(parents=True, exist_ok=True)
    last = time.time() - ago
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        at = last - (steps - step) * every
        losses = {"loss/student/kd": 0.5, "speed/seconds_per_step": every}
        lines.append({"step": step, "time": at, **losses})
        if step % evaluations == 0:
            evaluated = {"accuracy/top1": 40.0 + step, "accuracy/best": 41.0 + step}
            lines.append({"step": step, "time": at, **evaluated})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(run / "metrics.jsonl", (last, last))


def playing(run: Path, steps: int = 20, total: int | None = 100, **how: Any) -> None:
    """What a run that is under way has written."""
    write(run, status="running", steps=0, total_steps=total, last=None, best=None, seconds=0.0)
    logged(run, steps, **how)


def rows(*roots: Path) -> dict[str, dict[str, Any]]:
    """What --json says, by folder."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main([*map(str, roots), "--json"])
    found = {row["folder"]: row for row in json.loads(out.getvalue())}
    return {str(Path(name).relative_to(roots[0])): row for name, row in found.items()}


def said(*arguments: object) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main([str(argument) for argument in arguments])
    return out.getvalue()


# -------------------------------------------------------------------------------------- the states


def test_runs_that_have_ended(tmp_path: Path) -> None:
    write(tmp_path / "kd" / "seed0", steps=50, total_steps=50)
    write(tmp_path / "kd" / "seed1", status="failed", steps=12, total_steps=50,
          error="NonFiniteLoss: kd is nan", last=None, best=None)  # fmt: skip
    write(tmp_path / "kd" / "seed2", status="interrupted", steps=25, total_steps=50)
    found = rows(tmp_path)
    assert {name: row["state"] for name, row in found.items()} == {
        "kd/seed0": "finished", "kd/seed1": "failed", "kd/seed2": "interrupted",
    }  # fmt: skip
    assert found["kd/seed1"]["accuracy"] is None
    text = said(tmp_path)
    assert "kd/seed1: NonFiniteLoss: kd is nan" in text
    assert "25/50 (50 %)" in text
    assert "70.00 (71.25)" in text
    assert text.splitlines()[-1] == "3 runs: 1 finished, 1 failed, 1 interrupted"


def test_a_run_that_is_held_and_logs_is_running_and_says_how_long_it_will(tmp_path: Path) -> None:
    playing(tmp_path / "run", steps=20, total=100, every=10.0)
    with owned(tmp_path / "run"):
        row = rows(tmp_path)["run"]
    assert row["state"] == "running"
    assert (row["step"], row["total_steps"]) == (20, 100)
    assert (row["accuracy"], row["best_accuracy"]) == (60.0, 61.0)
    assert row["seconds_per_step"] == 10.0
    assert row["seconds_left"] == pytest.approx(800, rel=0.01)
    assert f"process {os.getpid()} on " in row["process"]
    assert 0 <= time.time() - row["last_sign"] < 30


def test_a_run_whose_process_was_killed_says_so(tmp_path: Path) -> None:
    playing(tmp_path / "run")
    with holding(tmp_path / "run") as other:
        assert rows(tmp_path)["run"]["state"] == "running"
        other.kill()
        other.wait()
        assert (tmp_path / "run" / OWNER).exists(), "it has left its mark"
        assert rows(tmp_path)["run"]["state"] == "killed"
        assert (tmp_path / "run" / OWNER).exists(), "looking takes nothing away"


def test_another_process_with_the_number_of_a_killed_one_is_not_it(tmp_path: Path) -> None:
    playing(tmp_path / "run")
    with owned(tmp_path / "run"):
        mark = (tmp_path / "run" / OWNER).read_text()
    (tmp_path / "run" / OWNER).write_text(mark)
    assert rows(tmp_path)["run"]["state"] == "running"
    os.utime(tmp_path / "run" / OWNER, (1e9, 1e9))  # long before this process was started
    assert rows(tmp_path)["run"]["state"] == "killed"


@pytest.mark.parametrize(
    ("every", "ago", "state"),
    [
        (0.1, 240.0, "running"),  # any run may be silent for some minutes
        (0.1, 400.0, "stuck"),
        (60.0, 400.0, "running"),  # one that takes a minute a line, for longer
        (60.0, 700.0, "stuck"),
    ],
)
def test_a_run_that_is_held_and_silent_is_stuck_by_its_own_pace(
    tmp_path: Path, every: float, ago: float, state: str
) -> None:
    playing(tmp_path / "run", every=every, ago=ago)
    with owned(tmp_path / "run"):
        assert rows(tmp_path)["run"]["state"] == state
        if state == "stuck":
            assert "lives, and logs nothing" in said(tmp_path)


def test_an_evaluation_that_takes_long_is_not_stuck(tmp_path: Path) -> None:
    run = tmp_path / "run"
    playing(run, steps=20, every=1.0, ago=600.0)
    with owned(run):
        assert rows(tmp_path)["run"]["state"] == "stuck"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            if line["step"] < 5:
                line["time"] -= 400.0  # until the first evaluation was done
        for line in lines:
            if line["step"] == 5 and "accuracy/top1" not in line:
                line["time"] -= 400.0
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.utime(run / "metrics.jsonl", (NOW - 600, NOW - 600))
        assert rows(tmp_path)["run"]["state"] == "running"


def test_a_process_that_is_stopped_is_stuck_however_fresh_its_lines(tmp_path: Path) -> None:
    playing(tmp_path / "run")
    with holding(tmp_path / "run") as other:
        other.send_signal(signal.SIGSTOP)
        os.utime(tmp_path / "run" / OWNER, (time.time(), time.time() - 120))
        before = holder(tmp_path / "run")
        assert before is not None
        # It was started less than two minutes ago: only its age tells it from a number used again.
        assert before.alive is False
        os.utime(tmp_path / "run" / OWNER)
        assert rows(tmp_path)["run"]["state"] == "running"
        with pytest.MonkeyPatch.context() as patched:  # stopped now, and looked at long after
            patched.setattr(runs, "LEASE", 1.0)
            deadline = time.monotonic() + 30
            while (row := rows(tmp_path)["run"])["state"] == "running":
                assert time.monotonic() < deadline
                time.sleep(0.2)
            other.send_signal(signal.SIGCONT)
        assert row["state"] == "stuck"
        assert f"process {other.pid} on " in row["error"]
        assert "stopped or suspended?" in row["error"]


def test_what_a_run_does_before_its_first_step(tmp_path: Path) -> None:
    run = tmp_path / "outputs" / "run"
    run.mkdir(parents=True)
    (run / "run.log").touch()
    (run / ".hydra").mkdir()
    settings = "dataset: {name: letters}\nteacher: {name: wrn16_2}\nteachers_dir: teachers\n"
    (run / ".hydra" / "config.yaml").write_text(settings)
    teacher = tmp_path / "teachers" / "letters-ab12" / "wrn16_2-training"
    with owned(run):
        assert rows(tmp_path / "outputs")["run"]["doing"] == "preparing"
        playing(teacher, steps=7, total=50, every=1.0)
        with owned(teacher):
            os.utime(run / "run.log", (NOW - 9000, NOW - 9000))  # silent since it began
            row = rows(tmp_path / "outputs")["run"]
            assert row["state"] == "running"
            assert row["doing"] == "training its teacher, step 7 of 50"
            assert row["step"] is None, "of the run itself there is none"
        with holding(teacher):
            doing = rows(tmp_path / "outputs")["run"]["doing"]
            assert doing == "waiting for its teacher, step 7 of 50"
            assert "run: waiting for its teacher, step 7 of 50" in said(tmp_path / "outputs")
        assert rows(tmp_path / "outputs")["run"]["state"] == "stuck", "nothing for two hours"
    assert rows(tmp_path / "outputs")["run"]["state"] == "killed", "nobody holds it"


def test_a_run_that_is_gone_on_with_is_running_whatever_it_came_to_before(tmp_path: Path) -> None:
    write(tmp_path / "run", status="interrupted", steps=25, total_steps=50)
    with owned(tmp_path / "run"):
        row = rows(tmp_path)["run"]
        assert (row["state"], row["doing"]) == ("running", "preparing")
        assert (row["step"], row["total_steps"]) == (25, 50)


def test_a_run_that_was_refused_before_it_began_says_why(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    line = f"2026-11-26 01:49:55,059 ERROR   {run}: no letters images in nowhere\n"
    (run / "run.log").write_text("2026-11-26 01:49:54,000 INFO    reading\n" + line)
    row = rows(tmp_path)["run"]
    assert (row["state"], row["error"]) == ("failed", "no letters images in nowhere")


def test_a_run_that_has_only_just_been_started_is_not_called_killed(tmp_path: Path) -> None:
    """Hydra opens run.log before this program's modules are read."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.log").touch()
    row = rows(tmp_path)["run"]
    assert row["state"] == "running"
    assert row["doing"].startswith("beginning")
    os.utime(tmp_path / "run" / "run.log", (NOW - 1000, NOW - 1000))
    assert rows(tmp_path)["run"]["state"] == "killed"


# ------------------------------------------------------------------------------ of other machines


def test_a_process_elsewhere_lives_as_long_as_its_mark_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT", 0.3)
    playing(tmp_path / "fresh")
    elsewhere(tmp_path / "fresh")
    for name in ("dead", "another clock"):
        playing(tmp_path / name)
        os.utime(elsewhere(tmp_path / name), (NOW - 1e5, NOW - 1e5))
    stop = threading.Event()

    def live() -> None:
        past = NOW - 1e5
        while not stop.wait(0.05):
            past += 0.05
            os.utime(tmp_path / "another clock" / OWNER, (past, past))

    alive = threading.Thread(target=live)
    alive.start()
    try:
        states = {name: row["state"] for name, row in rows(tmp_path).items()}
    finally:
        stop.set()
        alive.join()
    assert states == {"fresh": "running", "dead": "killed", "another clock": "running"}


# ------------------------------------------------------------------------- what was never written


def test_older_versions_say_less_and_nothing_is_made_up(tmp_path: Path) -> None:
    run = tmp_path / "run"
    old = write(run, status="interrupted", steps=40, versions={"mosaickd": "0.0.9"},
                last=None, best=None)  # fmt: skip
    assert "total_steps" not in old
    lines = [{"step": step, "losses": {"student/kd": 1.0}, "seconds_per_step": 0.25}
             for step in (20, 40)]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert rows(tmp_path)["run"]["seconds_per_step"] == pytest.approx(12.3 / 40)
    with owned(run):
        row = rows(tmp_path)["run"]
    assert row["total_steps"] is None
    assert row["seconds_left"] is None
    assert row["accuracy"] is None
    assert row["seconds_per_step"] == 0.25
    text = said(tmp_path)
    assert "an older version's (version 0.0.9)" in text
    assert "%" not in text
    assert "0.00" not in text


def test_a_run_held_by_an_older_version_is_running_by_its_lines(tmp_path: Path) -> None:
    logged(tmp_path / "run", 12)
    with owned(tmp_path / "run"):
        row = rows(tmp_path)["run"]
    assert (row["state"], row["step"], row["accuracy"]) == ("running", 12, 50.0)
    assert row["total_steps"] is None


def test_no_run_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"error: no run below .*empty: a run's folder has"):
        main([str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match="nowhere: there is no such folder"):
        main([str(tmp_path / "nowhere")])
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="file: it is a file, not a folder"):
        main([str(tmp_path / "file")])


def test_stuck_runs_come_first_and_a_run_is_told_once(tmp_path: Path) -> None:
    write(tmp_path / "a", total_steps=50)
    playing(tmp_path / "b", ago=10_000.0, every=0.1)
    playing(tmp_path / "c")
    with owned(tmp_path / "b"), owned(tmp_path / "c"):
        assert [*rows(tmp_path, tmp_path / "b")] == ["b", "c", "a"]
        summary = said(tmp_path).splitlines()[-1]
        assert summary == "3 runs: 1 finished, 1 running, 1 stuck"


def test_a_pipe_gets_whole_lines_without_colour(tmp_path: Path) -> None:
    name = "/".join(["a-rather-long-name-of-a-method"] * 6)
    write(tmp_path / name, total_steps=50)
    text = said(tmp_path)
    assert "\x1b" not in text
    assert any(name in line and "finished" in line for line in text.splitlines())


def test_an_evaluation_many_lines_ago_is_found(tmp_path: Path) -> None:
    playing(tmp_path / "run", steps=3000, total=4000, every=1.0, evaluations=20)
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "top1" not in line or '"step": 60,' in line))
    assert len(path.read_bytes()) > 2**17
    with owned(tmp_path / "run"):
        row = rows(tmp_path)["run"]
    assert (row["state"], row["step"], row["accuracy"]) == ("running", 3000, 100.0)


# --------------------------------------------------------------------------------- bad input


@settings(max_examples=40, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from([*KEYS, "total_steps"]), ODD, max_size=3),
    inner=st.dictionaries(st.sampled_from(INNER), ODD, max_size=2),
    line=st.dictionaries(
        st.sampled_from(["step", "time", "accuracy/top1", "speed/seconds_per_step"]), ODD
    ),
    content=st.binary(max_size=100),
)
def test_files_of_other_versions_and_of_nobody(
    changes: dict[str, Any], inner: dict[str, Any], line: dict[str, Any], content: bytes
) -> None:
    with folder() as root:
        write(root / "good", last=61.5)
        result = write(root / "odd", seed=1)
        result["accuracy"] |= inner
        (root / "odd" / "result.json").write_text(json.dumps(result | changes))
        odd = json.dumps({"step": 3, "time": NOW} | line).encode()
        (root / "odd" / "metrics.jsonl").write_bytes(content + b"\n" + odd + b"\n" + odd + b"\n")
        (root / "odd" / "run.log").write_bytes(content)
        with owned(root / "odd"):
            assert "61.50" in said(root)
            assert rows(root)["odd"]["state"] in ("running", "stuck")
        (root / "odd" / OWNER).write_bytes(content)
        text = said(root)
        assert "61.50" in text
        assert "\x1b" not in text


def test_what_is_no_file_and_what_is_too_large(tmp_path: Path) -> None:
    write(tmp_path / "good", last=61.5)
    for name in ("pipe", "folder", "large", "nowhere"):
        (tmp_path / name).mkdir()
    for file in ("result.json", "metrics.jsonl", "run.log", OWNER):
        os.mkfifo(tmp_path / "pipe" / file)
    (tmp_path / "folder" / "result.json").mkdir()
    (tmp_path / "folder" / "run.log").touch()
    (tmp_path / "nowhere" / "result.json").symlink_to(tmp_path / "none")
    (tmp_path / "nowhere" / "again").symlink_to(tmp_path)
    with (tmp_path / "large" / "result.json").open("wb") as sparse:
        sparse.truncate(2**33)
    found = rows(tmp_path)
    assert found["good"]["state"] == "finished"
    unreadable = {name for name, row in found.items() if row["state"] == "unreadable"}
    assert unreadable == {"pipe", "folder", "large", "nowhere"}
    assert "large: result.json: too large" in said(tmp_path)


def test_runs_behind_a_link_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs, disk = tmp_path / "outputs", tmp_path / "disk"
    write(outputs / "good")
    for number in range(5):
        (disk / f"kd{number}").mkdir(parents=True)
        (outputs / f"kd{number}").symlink_to(disk / f"kd{number}")
    (outputs / "good" / "wandb").symlink_to(disk)  # of a run's own
    assert list(rows(outputs)) == ["good"]
    some = ", ".join(str(outputs / f"kd{number}") for number in range(3))
    expected = f"not looked into, as they are links: {some} and 2 more; name them as well"
    assert expected in capsys.readouterr().err


def test_numbers_are_read_through_links_and_texts_are_not(tmp_path: Path) -> None:
    """git-annex and DVC put links in place of files."""
    write(tmp_path / "runs" / "kd", status="running", steps=3, total_steps=10)
    run, store = tmp_path / "runs" / "kd", tmp_path / "store"
    store.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 7, "accuracy/top1": 12.5}\n')
    for name in ("metrics.jsonl", "result.json"):
        (run / name).replace(store / name)
        (run / name).symlink_to(store / name)
    (row,) = rows(tmp_path / "runs").values()
    assert (row["step"], row["accuracy"]) == (7, 12.5)
    (store / "secret").write_text("2026-01-01 00:00:00 ERROR do not tell\n")
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "run.log").symlink_to(store / "secret")
    assert "do not tell" not in said(tmp_path / "runs")


# ---------------------------------------------------------------------------------- the command


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mosaickd.status", *map(str, arguments)]


@pytest.fixture
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which nothing can import torch."""
    place = tmp_path_factory.mktemp("no_torch")
    (place / "torch.py").write_text("raise ImportError('torch was imported')\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(place), str(REPO)])}


@pytest.mark.parametrize("width", [70, 200])
def test_a_narrow_terminal_shows_whole_names_too(tmp_path: Path, width: int) -> None:
    name = "figure6/full/letters-strokes/wrn16_2-wrn16_1/seed"
    for seed in range(40):
        write(tmp_path / f"{name}{seed}", seed=seed, total_steps=100)
    out = Console(width=width, height=20)
    with out.capture() as capture:
        out.print(overview(survey([tmp_path]), out.width, out.height))
    lines = [line.strip() for line in capture.get().splitlines()]
    assert len(lines) <= 20
    assert max(map(len, lines)) <= width
    shown = [line for line in lines if line.startswith(name)]
    assert shown
    assert f"and {40 - len(shown)} more, for which there is no room" in lines
    assert lines[-1] == "40 runs: 40 finished"
    assert "50/100 (50 %)" in capture.get()


def test_the_command_needs_no_torch(tmp_path: Path, no_torch: dict[str, str]) -> None:
    write(tmp_path / "run", total_steps=50)
    done = subprocess.run(command(tmp_path), env=no_torch, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 run: 1 finished"


@pytest.fixture
def watching(tmp_path: Path, no_torch: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(tmp_path, "--watch", "0.2", "--json"), env=no_torch, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


def test_watching_sees_runs_come_and_ends_with_ctrl_c(
    tmp_path: Path, watching: subprocess.Popen[str]
) -> None:
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline()) == [], "none yet"
    write(tmp_path / "run", total_steps=50)
    while not (found := json.loads(watching.stdout.readline())):
        pass
    assert found[0]["state"] == "finished"
    watching.send_signal(signal.SIGINT)
    assert watching.wait(20) == 130
