"""A sweep: what a person sees of its jobs, its table, and that the same command goes on."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from conftest import Cli, Running, Tiny, read_json
from forked import Forked

ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|.)")
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"
CELLS = ["mosaic/letters-strokes", "kd/letters-strokes", "kd/letters-letters"]


@pytest.mark.slow
def test_a_table_of_all_cells(cli: Cli, tiny: Tiny) -> None:
    # ++: Hydra first composes what all jobs share, and that has other readers than the letters'.
    sources = [f"++{override}" for role in ("dataset", "ood") for override in tiny.source(role)]
    small = ["train.steps=2", "train.batch_size=16", f"teacher.checkpoint={tiny.teacher}"]
    sweep = ["-m", "sweep=quickstart", *small, *sources]
    outcome = cli(*sweep)
    home = cli.folder / "outputs" / "quickstart"
    cells = {cell: home / cell / "wrn16_2-wrn16_1" / "seed0" for cell in CELLS}
    table = outcome.out[outcome.out.rindex("┏") :]
    assert sum(line.startswith("│") for line in table.splitlines()) == 4, "a teacher, 3 students"
    for folder in cells.values():
        result = read_json(folder / "result.json")
        assert result["status"] == "finished"
        assert f"{result['accuracy']['last']:.2f} %" in table

    # ---- Two jobs fail, the last is run all the same; the sweep ends with 1, and what there is.
    for folder in cells.values():
        (folder / "result.json").unlink()
    broken = [cells[cell] / "checkpoints" / "last.pt" for cell in CELLS[:2]]
    for path in broken:
        os.truncate(path, 1000)
    failed = cli(*sweep, code=1)
    statuses = [read_json(folder / "result.json")["status"] for folder in cells.values()]
    assert statuses == ["failed", "failed", "finished"]
    for path in broken:
        assert f"{path} can't be read" in failed.out
    assert "top-1 accuracy at the last step" in failed.out


# ------------------------------------------------------------------------------- in a terminal


class Screen:
    """A terminal that somebody looks at."""

    def __init__(self, width: int) -> None:
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, width, 0, 0))
        self.name = os.ttyname(self.theirs)
        self.raw = b""
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        with suppress(OSError):  # nobody has it open any more
            while piece := os.read(self.ours, 65536):
                self.raw += piece

    def text(self) -> str:
        return self.raw.decode(errors="replace")

    def drawn(self) -> str:
        """Return all that was ever drawn, without what moves the cursor and colours."""
        return ESCAPES.sub("", self.text()).replace("\r", "\n")

    def is_left_as_it_was(self) -> bool:
        return self.text().rindex(SHOW_CURSOR) > self.text().rindex(HIDE_CURSOR)

    def close(self) -> None:
        os.close(self.theirs)
        self.reader.join(10)
        os.close(self.ours)


def use_terminal(name: str) -> None:
    """In the process: standard output and error are that terminal."""
    from mosaickd.engine.progress import console

    descriptor = os.open(name, os.O_RDWR | os.O_NOCTTY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    console.is_interactive = True  # it was imported where there was no terminal


@contextmanager
def in_terminal(
    forked: Forked, *arguments: str, width: int = 80
) -> Iterator[tuple[Running, Screen]]:
    screen = Screen(width)
    try:
        terminal = {"TERM": "xterm-256color"}
        run = forked.start(*arguments, env=terminal, before=partial(use_terminal, screen.name))
        yield run, screen
    finally:
        screen.close()


@pytest.fixture
def two_jobs(forked: Forked) -> list[str]:
    """Their teacher is missing, and the second has fewer images than a batch."""
    own = Tiny(forked.folder / "glyphs").experiment(forked.folder, "method=kd", "train.steps=4")
    where = ["hydra.sweep.dir=outputs/mine", "hydra.sweep.subdir=${train.batch_size}"]
    return ["-m", *own, "dataset.recipe.epochs=1", "train.batch_size=16,1000", *where]


def job_lines(text: str) -> list[str]:
    """Return the lines that stay, one at a job's start or end, apart from the bar's."""
    ends = r"job \d.*  (begins|is finished|finished|failed|interrupted)"
    return [line.strip() for line in text.splitlines() if re.match(ends, line)]


@pytest.mark.slow
def test_a_sweep_in_a_terminal_and_in_a_pipe(forked: Forked, two_jobs: list[str]) -> None:
    with in_terminal(forked, *two_jobs) as (run, screen):
        assert run.wait().code == 1, screen.text()
        drawn = screen.drawn()
    assert "Traceback" not in drawn
    assert "mine: 2 jobs, in outputs/mine" in drawn
    assert re.search(r"mine [━╸╺ ]+ 0/2 +0 finished, 0 failed", drawn), drawn
    assert re.search(r"teacher wrn16_2 [━╸╺ ]+ +\d+/\d+", drawn), "whose bar it is"
    assert re.search(r"kd [━╸╺ ]+ +\d+/4", drawn)
    first, second = job_lines(drawn)
    accuracy = read_json(forked.folder / "outputs/mine/16/result.json")["accuracy"]["last"]
    line = rf"job 1 of 2  train\.batch_size=16  finished  {accuracy:.2f} %  \d+ s"
    assert re.fullmatch(line, first)
    assert re.fullmatch(r"job 2 of 2  train\.batch_size=1000  failed  \d+ s", second)
    folder = forked.folder / "outputs" / "mine" / "1000"
    assert f"{folder}:" in re.sub(r"\s", "", drawn), "the error, right below"
    assert "mine: 2 of 2 jobs: 1 finished, 1 failed" in drawn
    assert "#0 :" not in drawn, "Hydra doesn't say it again"
    assert screen.is_left_as_it_was()

    # ---- Again, in a pipe.
    outcome = forked.start(*two_jobs).wait()
    assert outcome.code == 1
    assert "\x1b" not in outcome.text
    lines = job_lines(outcome.out)
    assert lines[:3] == [
        "job 1 of 2  train.batch_size=16  begins",
        f"job 1 of 2  train.batch_size=16  is finished: nothing to do  {accuracy:.2f} %",
        "job 2 of 2  train.batch_size=1000  begins",
    ]
    assert lines[3].startswith("job 2 of 2  train.batch_size=1000  failed")
    assert "mine: 2 of 2 jobs: 1 finished before, 1 failed" in outcome.out


@pytest.mark.slow
def test_ctrl_c_leaves_the_terminal_as_it_was(forked: Forked, two_jobs: list[str]) -> None:
    long = ["train.steps=100000", "train.eval_every=10000", "train.log_every=1"]
    both = [*two_jobs, *long, "train.batch_size=16,17"]
    with in_terminal(forked, *both, width=120) as (run, screen):
        run.until(lambda: re.search(r"kd .*/100000 .* left", screen.drawn()) is not None)
        os.kill(run.pid, signal.SIGINT)
        assert run.wait().code == 130, screen.text()
        drawn = screen.drawn()
    assert "Traceback" not in drawn
    (end,) = job_lines(drawn)
    assert re.fullmatch(r"job 1 of 2  train\.batch_size=16  interrupted  .*\d+ s", end)
    assert re.search(r"\d+\.\d+ (steps/s|s/step)  \d+ \w+( \d+ \w+)? left", drawn)
    assert "  student  kd " in drawn, "the losses, by player"
    assert screen.is_left_as_it_was()


# --------------------------------------------------------------------------------- of many jobs


def use_of(pid: int) -> dict[str, int]:
    """Return how many files, threads and megabytes a process has (Linux)."""
    process = Path("/proc") / str(pid)
    lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {
        "files": len(list((process / "fd").iterdir())),
        "threads": int(lines["Threads"]),
        "megabytes": int(lines["VmRSS"].split()[0]) // 1000,
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("fails", [False, True])
def test_the_last_of_many_jobs_holds_no_more_than_the_first(
    cli: Cli, tiny: Tiny, fails: bool
) -> None:
    """Hydra keeps each failed job's exception to the end of the sweep."""
    jobs, home = 10, cli.folder / "sweep"
    sweep = [f"seed=range({jobs})", f"hydra.sweep.dir={home}", "hydra.sweep.subdir=${seed}"]
    method = ["method=mosaic", "method.student_steps=1"]
    if fails:  # the student, its gradients and its momentum are 135 MB
        method = ["method=kd", "student=resnet18", "players.student.optimizer.lr=1e30",
                  "train.log_every=1"]  # fmt: skip
    own = tiny.experiment(cli.folder, *method, f"teacher.checkpoint={tiny.teacher}")
    run = cli.start("-m", *own, *sweep)
    uses: dict[int, dict[str, int]] = {}

    def ended() -> int:
        return run.out.read_text().count("  failed  " if fails else "  finished  ")

    while ended() < jobs - 1:
        run.until(lambda: ended() not in uses)
        uses[ended()] = use_of(run.pid)
    assert run.wait().code == int(fails)
    early, late = uses[min(done for done in uses if done >= 3)], uses[max(uses)]
    assert late["files"] <= early["files"] + 1  # one may be open at the moment
    assert late["threads"] <= early["threads"]
    assert late["megabytes"] < early["megabytes"] + (135 if fails else 40)
