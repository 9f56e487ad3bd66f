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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

from conftest import REPO, Cli, Running

CONTEXT = multiprocessing.get_context("forkserver")
STARTING = threading.Lock()  # our environment is the whole process's


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
        start_server(environment)
        out, err = (self.logs / f"forked{self.count}.{name}" for name in ("out", "err"))
        self.count += 1
        out.touch()  # a process that is killed at once leaves no output
        err.touch()
        process = CONTEXT.Process(
            target=run_script,
            args=(self.folder, out, err, environment | dict(env or {}), arguments, before),
        )
        process.start()
        return Running(process, lambda: process.exitcode, out, err)


def refused(run: Running, *words: str) -> str:
    """Return the one message of a run that ends with 1, which must have these words."""
    outcome = run.wait()
    assert outcome.code == 1, outcome.text
    assert "Traceback" not in outcome.text
    message = outcome.err[outcome.err.index("error: ") :]
    for word in words:
        assert word in message, message
    return message


def finish(run: Running) -> str:
    """Return what a run printed, which must end well."""
    outcome = run.wait()
    assert outcome.code == 0, outcome.text
    assert "Traceback" not in outcome.text
    return outcome.text


def start_server(environment: Mapping[str, str]) -> None:
    """Start the process that others are forked from, in this environment, unless it runs."""
    path = os.pathsep.join([str(REPO), str(Path(__file__).parent)])
    with STARTING, environment_replaced_by({**environment, "PYTHONPATH": path}):
        CONTEXT.set_forkserver_preload(["warm"])
        forkserver.ensure_running()


@contextmanager
def environment_replaced_by(environment: Mapping[str, str]) -> Iterator[None]:
    ours = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(ours)


def run_script(
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
