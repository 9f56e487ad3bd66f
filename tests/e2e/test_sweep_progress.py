"""A sweep as a person sees it: a board in a terminal, plain lines in a pipe."""

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

import pytest
from conftest import Tiny, read_json
from forked import Forked, Running

ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|.)")
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


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

    def seen(self) -> str:
        """All that was ever drawn, without what moves the cursor and colours."""
        return ESCAPES.sub("", self.text()).replace("\r", "\n")

    def close(self) -> None:
        os.close(self.theirs)
        self.reader.join(10)
        os.close(self.ours)


def onto(name: str) -> None:
    """In the process: standard output and error are that terminal."""
    from mosaickd.engine.terminal import console

    descriptor = os.open(name, os.O_RDWR | os.O_NOCTTY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    console.is_interactive = True  # it was imported where there was no terminal


@contextmanager
def shown(forked: Forked, *arguments: str, width: int = 80) -> Iterator[tuple[Running, Screen]]:
    screen = Screen(width)
    try:
        terminal = {"TERM": "xterm-256color"}
        yield forked.start(*arguments, env=terminal, before=partial(onto, screen.name)), screen
    finally:
        screen.close()


@pytest.fixture
def sweep(forked: Forked) -> list[str]:
    """Two cells; their teacher is missing, and the second has fewer images than a batch."""
    own = Tiny(forked.folder / "glyphs").experiment(forked.folder, "method=kd", "train.steps=4")
    where = ["hydra.sweep.dir=outputs/mine", "hydra.sweep.subdir=${train.batch_size}"]
    short = ["dataset.recipe.epochs=1"]
    return ["-m", *own, *short, "train.batch_size=16,1000", *where]


def ends(text: str) -> list[str]:
    """The lines that tell of a cell."""
    return [line.strip() for line in text.splitlines() if re.match(r"\s*cell \d", line)]


@pytest.mark.slow
def test_a_sweep_in_a_terminal_and_in_a_pipe(forked: Forked, sweep: list[str]) -> None:
    with shown(forked, *sweep) as (run, screen):
        assert run.wait().code == 1, screen.text()
        seen = screen.seen()
    assert "Traceback" not in seen
    assert "mine: 2 cells, in outputs/mine" in seen
    board = re.findall(r"mine [━╸╺ ]+ cell 1 of 2  0 finished, 0 failed", seen)
    assert board, seen
    assert re.search(r"teacher wrn16_2 [━╸╺ ]+ +\d+/\d+", seen), "whose bar it is"
    assert re.search(r"kd [━╸╺ ]+ +\d+/4", seen)
    first, second = ends(seen)
    assert re.fullmatch(r"cell 1 of 2  train\.batch_size=16  finished  \d+\.\d\d %  \d+ s", first)
    assert re.fullmatch(r"cell 2 of 2  train\.batch_size=1000  failed  \d+ s", second)
    folder = forked.folder / "outputs" / "mine"
    message = re.sub(r"\s", "", seen)
    assert f"{folder / '1000'}:" in message, "the error, right below"
    assert "mine: 2 of 2 cells: 1 finished, 1 failed" in seen
    assert "#0 :" not in seen, "Hydra doesn't say it again"
    text = screen.text()
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR), "the terminal is as it was"
    accuracy = read_json(folder / "16" / "result.json")["accuracy"]["last"]
    assert f"{accuracy:.2f} %" in first

    # ---- Again, in a pipe.
    outcome = forked.start(*sweep).wait()
    assert outcome.code == 1
    assert "\x1b" not in outcome.text
    lines = ends(outcome.out)
    assert lines[0] == "cell 1 of 2  train.batch_size=16  begins"
    assert lines[1] == (
        f"cell 1 of 2  train.batch_size=16  is finished: nothing to do  {accuracy:.2f} %"
    )
    assert lines[2] == "cell 2 of 2  train.batch_size=1000  begins"
    assert lines[3].startswith("cell 2 of 2  train.batch_size=1000  failed")
    assert len(lines) == 4
    assert "mine: 2 of 2 cells: 1 finished before, 1 failed" in outcome.out


@pytest.mark.slow
def test_ctrl_c_leaves_the_terminal_as_it_was(forked: Forked, sweep: list[str]) -> None:
    long = ["train.steps=100000", "train.eval_every=10000", "train.log_every=1"]
    with shown(forked, *sweep, *long, "train.batch_size=16,17", width=120) as (run, screen):
        run.until(lambda: re.search(r"kd .*/100000 .* left", screen.seen()) is not None)
        os.kill(run.pid, signal.SIGINT)
        assert run.wait().code == 130, screen.text()
        seen, text = screen.seen(), screen.text()
    assert "Traceback" not in seen
    (end,) = ends(seen)
    assert re.fullmatch(r"cell 1 of 2  train\.batch_size=16  interrupted  .*\d+ s", end)
    assert re.search(r"\d+\.\d+ (steps/s|s/step)  \d+ \w+( \d+ \w+)? left", seen)
    assert "  student  kd " in seen, "the losses, by player"
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
