"""`python run.py ...` in processes forked from one that has imported everything already.

The same script in a process of its own, as `conftest.Cli` starts it, for a tenth of the time. What
differs: modules are imported already (`warm`), and Python's atexit functions are not called (so not
for launchers that start processes of their own).
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from conftest import PATIENCE, REPO, Cli, Outcome

CONTEXT = multiprocessing.get_context("forkserver")
SERVING = threading.Lock()  # our environment is the whole process's


@dataclass
class Running:
    """A process that runs; its output goes to files, so that it never waits for a reader."""

    process: Any
    out: Path
    err: Path
    began: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def wait(self, timeout: float = PATIENCE) -> Outcome:
        """Its exit code (-N: killed by signal N) and output; TimeoutError after `timeout`
        seconds, and then it is killed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout:g} s:\n{self.outcome().text}")
        return self.outcome()

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that the process should bring about."""
        while not happened():
            assert self.process.is_alive(), f"ended early:\n{self.outcome().text}"
            assert time.monotonic() - self.began < PATIENCE, self.outcome().text
            time.sleep(0.005)

    def kill(self) -> Outcome:
        self.process.kill()
        self.process.join()
        return self.outcome()

    def outcome(self) -> Outcome:
        seconds = time.monotonic() - self.began
        text = (path.read_text(errors="replace") for path in (self.out, self.err))
        return Outcome(self.process.exitcode, *text, seconds)


@dataclass
class Forked:
    """Calls `python run.py` in `folder`; what it prints, and a home for it, lie in `logs`."""

    folder: Path
    logs: Path
    count: int = 0

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> Running:
        """before: called in the process before the script; a function of a module's."""
        environment = Cli(self.folder, self.logs).environment()
        serve(environment)
        out, err = (self.logs / f"{self.count}.{name}" for name in ("out", "err"))
        self.count += 1
        out.touch()  # a process that is killed at once leaves no output
        err.touch()
        given = (self.folder, out, err, environment | dict(env or {}), arguments, before)
        process = CONTEXT.Process(target=play, args=given)
        process.start()
        return Running(process, out, err)


def refused(run: Running, *words: str) -> str:
    """The one message of a run that ends with 1."""
    outcome = run.wait()
    assert outcome.code == 1, outcome.text
    assert "Traceback" not in outcome.text
    message = outcome.err[outcome.err.index("error: ") :]
    for word in words:
        assert word in message, message
    return message


def finish(run: Running) -> str:
    """What a run that ends well has said."""
    outcome = run.wait()
    assert outcome.code == 0, outcome.text
    assert "Traceback" not in outcome.text
    return outcome.text


def serve(environment: Mapping[str, str]) -> None:
    """Have the process that others are forked from; its environment is that of the first call."""
    path = os.pathsep.join([str(REPO), str(Path(__file__).parent)])
    with SERVING, in_place_of_ours({**environment, "PYTHONPATH": path}):
        CONTEXT.set_forkserver_preload(["warm"])
        forkserver.ensure_running()


@contextmanager
def in_place_of_ours(environment: Mapping[str, str]) -> Iterator[None]:
    """Inside, the process has this environment; the server keeps that of its start."""
    ours = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(ours)


def play(
    folder: Path,
    out: Path,
    err: Path,
    environment: Mapping[str, str],
    arguments: tuple[str, ...],
    before: Callable[[], object] | None,
) -> None:
    """In the forked process: become `python run.py ARGUMENTS`."""
    for path, descriptor in ((out, 1), (err, 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    script = str(REPO / "run.py")
    sys.argv = [script, *arguments]
    if before:
        before()
    runpy.run_path(script, run_name="__main__")
