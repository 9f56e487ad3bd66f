"""A sweep's cells, told to whoever waits for them: how many, which one runs, how each one ended.

In a terminal a line stands above the run's bar; elsewhere, and where a launcher runs several cells
at once, there are lines only, one at a cell's start and one at its end.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
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

from mosaickd.durations import duration
from mosaickd.engine.interruption import Interrupted
from mosaickd.engine.terminal import bar_width, board, is_first, say
from mosaickd.errors import UserError, printable

#: Of the environment: the name that the cells of a sweep have in common, in all their processes.
SWEEP = "MOSAICKD_SWEEP"

#: What a cell came to, as a line says it and as they are counted.
ENDS = {
    "finished": ("finished", "finished"),
    "skipped": ("is finished: nothing to do", "finished before"),
    "elsewhere": ("is being run by another process: left to it", "left to another process"),
    "interrupted": ("interrupted", "interrupted"),
    "failed": ("failed", "failed"),
}


#: What a person wants to know above all.
FIRST = ("finished", "failed")


class Sweep:
    """What this process knows of the sweep that it is part of."""

    def __init__(self, name: str, cells: int | None) -> None:
        self.name = name
        self.cells = cells
        self.cell = ""  # cell 2 of 3
        self.label = ""
        self.counts: Counter[str] = Counter()
        self.began = time.monotonic()
        self.cell_began = self.began
        self.ran: list[float] = []  # seconds of the finished cells, without training teachers

    @property
    def ended(self) -> int:
        return self.counts.total()

    def counted(self, always: Sequence[str] = ()) -> str:
        """1 finished, 0 failed: those that there were, and those that are always told."""
        others = (end for end in ENDS if end not in always and self.counts[end])
        return ", ".join(f"{self.counts[end]} {ENDS[end][1]}" for end in (*always, *others))

    def left(self) -> float | None:
        """Seconds until the end, if the cells to come take as long as those that were run."""
        if not self.ran or self.cells is None or self.ended >= self.cells:
            return None
        mean = sum(self.ran) / len(self.ran)
        spent = time.monotonic() - self.cell_began if self.cell else 0.0
        return mean * (self.cells - self.ended) - min(spent, mean)

    def draw(self) -> RenderableType:
        """The sweep's bar, and which cell it is."""
        line = Table.grid(padding=(0, 1, 0, 0))
        left = self.left()
        about = f"  about {duration(left)} left" if left is not None else ""
        cell = f"{self.cell}  " if self.cell else ""
        words = f"{cell}{self.counted(FIRST)}{about}"
        parts: list[RenderableType] = [Text(self.name, style="bold"), Text(words)]
        if self.cells is not None:
            width = bar_width(len(self.name) + len(words) + 1)
            parts.insert(1, ProgressBar(total=self.cells, completed=self.ended, width=width))
        line.add_row(*parts)
        if not cell:
            return line
        return Group(line, Text(self.label, style="dim", no_wrap=True, overflow="ellipsis"))


class Cells(Callback):
    """Counts a sweep's cells before the first one, for whichever process runs them."""

    sweep: Sweep | None = None  # of the class, and of this process: instances are pickled
    without: str | None = None  # the override that leaves the sweep without a cell

    def __init__(self) -> None:
        self.name = ""
        self.cells: int | None = None
        self.varying: list[str] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        os.environ[SWEEP] = uuid4().hex
        hydra = config.hydra
        self.name = hydra.runtime.choices.get("sweep") or Path(hydra.sweep.dir).name
        self.cells, self.varying = counted(hydra)
        if self.cells == 0:  # Hydra turns an error of a callback's into a warning
            Cells.without = ", ".join(without_value(hydra))
            return
        if not is_first():
            return
        many = "" if self.cells is None else f"{self.cells} cells, "
        say(f"{self.name}: {many}in {hydra.sweep.dir}")
        if hydra.launcher._target_.endswith(".BasicLauncher"):  # others run cells elsewhere
            Cells.sweep = Sweep(self.name, self.cells)
            board.add(Cells.sweep.draw)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        hydra = config.hydra
        if hydra.mode != RunMode.MULTIRUN or not is_first():
            return
        sweep = Cells.sweep = Cells.sweep or Sweep(self.name, self.cells)
        of = "" if self.cells is None else f" of {self.cells}"
        sweep.cell = f"cell {hydra.job.num + 1}{of}"
        chosen = [o for o in hydra.overrides.task if o.partition("=")[0] in self.varying]
        sweep.label = printable(" ".join(chosen or hydra.overrides.task), 300)
        sweep.cell_began = time.monotonic()
        if sweep.draw not in board.parts:
            say(f"{sweep.cell}  {sweep.label}  begins")

    @classmethod
    def check_some(cls) -> None:
        """Raise a UserError where a sweep had no cell: nothing was run, which nobody asks for."""
        if cls.without is not None:
            raise UserError(f"the sweep has no cells: {cls.without} stands for no value")

    @classmethod
    def close(cls) -> None:
        """The sweep has ended, however: say what its cells came to."""
        board.close()
        sweep, cls.sweep = cls.sweep, None
        if sweep is not None and sweep.ended:
            of = "" if sweep.cells is None else f" of {sweep.cells} cells"
            took = duration(time.monotonic() - sweep.began)
            say(f"{sweep.name}: {sweep.ended}{of}: {sweep.counted()}  {took}")


def counted(hydra: DictConfig) -> tuple[int | None, list[str]]:
    """How many cells the sweeper will launch, and the keys in which they differ; None and nothing
    where only the sweeper knows."""
    try:
        overrides = _overrides(hydra)
        (cells,) = BasicSweeper.split_arguments(overrides, None)
    except Exception:  # Hydra will say what is wrong, in a moment
        return None, []
    last = {override.get_key_element(): override for override in overrides}
    return len(cells), [key for key, o in last.items() if o.is_sweep_override()]


def without_value(hydra: DictConfig) -> list[str]:
    """The overrides that leave a sweep without cells."""
    sweeps = [override for override in _overrides(hydra) if override.is_sweep_override()]
    return [str(sweep.input_line) for sweep in sweeps if not [*sweep.sweep_string_iterator()]]


def _overrides(hydra: DictConfig) -> list[Override]:
    """What Hydra's own sweeper makes cells of; a ValueError where another one does."""
    if not hydra.sweeper._target_.endswith(".BasicSweeper"):
        raise ValueError(hydra.sweeper._target_)
    params = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return parser.parse_overrides([*params, *hydra.overrides.task])


@contextmanager
def told() -> Iterator[dict[str, Any]]:
    """A run, as a cell where it is one: what it came to is said, however it ends.

    -> what to fill with its result.
    """
    result: dict[str, Any] = {}
    sweep = Cells.sweep if HydraConfig.get().mode == RunMode.MULTIRUN and is_first() else None
    if sweep is None:
        yield result
        return
    teachers = _on_teachers()
    try:
        yield result
    except BaseException as error:
        reason = error if isinstance(error, Exception) else error.__context__
        stopped = isinstance(error, Interrupted | KeyboardInterrupt) and reason is None
        _tell(sweep, "interrupted" if stopped else "failed", result)
        if isinstance(reason, UserError):
            folder = f"{HydraConfig.get().runtime.output_dir}"
            say(f"  {reason}" if str(reason).startswith(folder) else f"  {folder}: {reason}")
        elif isinstance(reason, Exception):
            say(f"  {type(reason).__name__}: {printable(str(reason))}")
        raise
    end = {"running elsewhere": "elsewhere"}.get(str(result.get("status")), "finished")
    if end == "finished" and result.get("skipped"):
        end = "skipped"
    if end == "finished":
        sweep.ran.append(time.monotonic() - sweep.cell_began - (_on_teachers() - teachers))
    _tell(sweep, end, result)


def _tell(sweep: Sweep, end: str, result: dict[str, Any]) -> None:
    sweep.counts[end] += 1
    last = (result.get("accuracy") or {}).get("last")
    took = duration(time.monotonic() - sweep.cell_began)
    words = [sweep.cell, sweep.label, ENDS[end][0]]
    words += [f"{last:.2f} %"] if isinstance(last, float) else []
    words += [took] if end not in ("skipped", "elsewhere") else []
    say("  ".join(words))
    sweep.cell = ""


def _on_teachers() -> float:
    """Seconds: of a module that brings torch, so asked only once that is there."""
    progress = sys.modules.get("mosaickd.engine.progress")
    return progress.Progress.on_teachers if progress else 0.0
