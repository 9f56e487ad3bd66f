"""A sweep for the one who waits for it: how many jobs, which one runs, how each one ended.

In a terminal a line stands above the run's bar; elsewhere, and where a launcher runs several jobs
at once, each job has a line at its start and one at its end. In messages a job is a cell.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mosaickd import analysis, parallel
from mosaickd.durations import duration
from mosaickd.engine.interruption import Interrupted
from mosaickd.engine.terminal import bar_width, board, is_rank0, print_line
from mosaickd.errors import UserError, printable
from mosaickd.run_dir import SWEEP, Result

#: How a job ended: as its line says it, and as the jobs are counted.
OUTCOMES = {
    "finished": ("finished", "finished"),
    "skipped": ("is finished: nothing to do", "finished before"),
    "running elsewhere": (
        "is being run by another process: left to it",
        "left to another process",
    ),
    "interrupted": ("interrupted", "interrupted"),
    "failed": ("failed", "failed"),
}


class Sweep:
    """What this process knows of the sweep that it runs, or runs a job of.

    jobs: how many there are; None where only the sweeper knows.
    """

    def __init__(self, name: str, jobs: int | None) -> None:
        self.name = name
        self.jobs = jobs
        self.job = ""  # cell 2 of 3
        self.label = ""  # its overrides
        self.counts: Counter[str] = Counter()
        self.began = self.job_began = time.monotonic()
        self.durations: list[float] = []  # seconds of the jobs that this process has run

    def count(self, *always: str) -> str:
        """Return `1 finished, 0 failed`: the outcomes there were, and those always shown."""
        others = (name for name in OUTCOMES if name not in always and self.counts[name])
        return ", ".join(f"{self.counts[n]} {OUTCOMES[n][1]}" for n in (*always, *others))

    def seconds_left(self) -> float | None:
        """Return the seconds until the end, if the jobs to come take as long as those before."""
        if not self.durations or self.jobs is None:
            return None
        usual = median(self.durations)
        spent = time.monotonic() - self.job_began if self.job else 0.0
        return max(0.0, usual * (self.jobs - self.counts.total()) - min(spent, usual))

    def draw(self) -> RenderableType:
        """Draw the sweep's bar, and which job it is."""
        left = self.seconds_left()
        about = f"  about {duration(left)} left" if left is not None else ""
        text = f"{self.job}  {self.count('finished', 'failed')}{about}".strip()
        parts: list[RenderableType] = [Text(self.name, style="bold"), Text(text)]
        if self.jobs is not None:
            width = bar_width(len(self.name) + len(text) + 1)
            bar = ProgressBar(total=self.jobs, completed=self.counts.total(), width=width)
            parts.insert(1, bar)
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_row(*parts)
        if not self.job:
            return line
        return Group(line, Text(self.label, style="dim", no_wrap=True, overflow="ellipsis"))

    def end_job(self, outcome: str, accuracy: float | None = None) -> None:
        """Count a job and print its line."""
        self.counts[outcome] += 1
        seconds = time.monotonic() - self.job_began
        parts = [self.job, self.label, OUTCOMES[outcome][0]]
        if accuracy is not None:
            parts.append(f"{accuracy:.2f} %")
        if outcome not in ("skipped", "running elsewhere"):
            parts.append(duration(seconds))
        if outcome == "finished":
            self.durations.append(seconds)
        print_line("  ".join(parts))
        self.job = ""


#: Of this process. Hydra's callbacks are pickled for other processes: they can't keep it.
_current: Sweep | None = None
_folder: Path | None = None
_empty: str | None = None  # the override that leaves the sweep without a job


class SweepCallback(Callback):
    """Hydra's callback for multirun: counts the jobs, and prepares the machine for them."""

    def __init__(self) -> None:
        self.name = ""
        self.jobs: int | None = None
        self.varying: list[str] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _current, _folder, _empty
        hydra = config.hydra
        os.environ[SWEEP] = uuid4().hex
        parallel.prepare_joblib(hydra)
        self.name = hydra.runtime.choices.get("sweep") or Path(hydra.sweep.dir).name
        self.jobs, self.varying = count_jobs(hydra)
        if self.jobs == 0:  # Hydra turns an error of a callback's into a warning
            swept = [o for o in sweep_overrides(hydra) if o.is_sweep_override()]
            _empty = ", ".join(str(o.input_line) for o in swept if not [*o.sweep_string_iterator()])
            return
        if not is_rank0():
            return
        _folder = Path(hydra.sweep.dir)
        many = "" if self.jobs is None else f"{self.jobs} cells, "
        print_line(f"{self.name}: {many}in {hydra.sweep.dir}")
        if hydra.launcher._target_.endswith(".BasicLauncher"):  # others run jobs elsewhere
            _current = Sweep(self.name, self.jobs)
            board.add(_current.draw)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _current
        hydra = config.hydra
        if hydra.mode != RunMode.MULTIRUN or not is_rank0():
            return
        sweep = _current = _current or Sweep(self.name, self.jobs)
        of = "" if self.jobs is None else f" of {self.jobs}"
        sweep.job = f"cell {hydra.job.num + 1}{of}"
        chosen = [o for o in hydra.overrides.task if o.partition("=")[0] in self.varying]
        sweep.label = printable(" ".join(chosen or hydra.overrides.task), 300)
        sweep.job_began = time.monotonic()
        if not board.shows(sweep.draw):
            print_line(f"{sweep.job}  {sweep.label}  begins")


@contextmanager
def report_job() -> Iterator[list[Result]]:
    """Print how the job inside ended, where it is one of a sweep. Yields a list for its result."""
    results: list[Result] = []
    sweep = _current if HydraConfig.get().mode == RunMode.MULTIRUN and is_rank0() else None
    try:
        yield results
    except BaseException as error:
        if sweep is not None:
            reason = error if isinstance(error, Exception) else error.__context__
            stopped = isinstance(error, Interrupted | KeyboardInterrupt) and reason is None
            sweep.end_job("interrupted" if stopped else "failed")
            if isinstance(reason, UserError):
                folder = f"{HydraConfig.get().runtime.output_dir}"
                text = str(reason)
                print_line(f"  {text}" if text.startswith(folder) else f"  {folder}: {text}")
            elif isinstance(reason, Exception):
                print_line(f"  {type(reason).__name__}: {printable(str(reason))}")
        raise
    if sweep is not None:
        (result,) = results
        sweep.end_job("skipped" if result.skipped else result.status, result.last)


def close_sweep() -> None:
    """Print what the sweep's jobs came to, however it ended, and its table of results.

    (Hydra's `on_multirun_end` is not called when a job has failed.)
    """
    global _current, _folder
    board.close()
    sweep, _current = _current, None
    if sweep is not None and (ended := sweep.counts.total()):
        of = "" if sweep.jobs is None else f" of {sweep.jobs} cells"
        took = duration(time.monotonic() - sweep.began)
        print_line(f"{sweep.name}: {ended}{of}: {sweep.count()}  {took}")
    folder, _folder = _folder, None
    if folder is not None:
        analysis.show_sweep(folder)


def check_sweep() -> None:
    """Raise UserError where a sweep had no jobs: nothing was run, which nobody asks for."""
    if _empty is not None:
        raise UserError(f"the sweep has no cells: {_empty} stands for no value")


def count_jobs(hydra: DictConfig) -> tuple[int | None, list[str]]:
    """Return how many jobs the sweeper will launch, and the keys in which they differ.

    None and [] where only the sweeper knows.
    """
    try:
        overrides = sweep_overrides(hydra)
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
    except Exception:  # Hydra will say what is wrong, in a moment
        return None, []
    last = {override.get_key_element(): override for override in overrides}
    return len(jobs), [key for key, o in last.items() if o.is_sweep_override()]


def sweep_overrides(hydra: DictConfig) -> list[Override]:
    """Return what Hydra's own sweeper makes jobs of. Raises ValueError where another one does."""
    if not hydra.sweeper._target_.endswith(".BasicSweeper"):
        raise ValueError(hydra.sweeper._target_)
    params = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return parser.parse_overrides([*params, *hydra.overrides.task])
