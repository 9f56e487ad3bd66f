"""How far the runs below some folders are: a table for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mosaickd.analysis.labels import number, plural
from mosaickd.analysis.runs import UNDER_WAY, Run, load_runs
from mosaickd.errors import printable
from mosaickd.metric_names import BEST, SECONDS_PER_STEP, STEP, TOP1
from mosaickd.run_dir import RunDir
from mosaickd.utils.durations import duration, pace
from mosaickd.utils.locks import holder

COLOURS = {"running": "bold green", "finished": "green", "interrupted": "yellow",
           "killed": "yellow", "failed": "red", "unreadable": "red"}  # fmt: skip
COLUMNS = ("run", "state", "step", "accuracy (best)", "speed", "left", "last write")


@dataclass(frozen=True)
class Status:
    """How far a run is. Accuracies in percent, times in seconds; None is what isn't known.

    state: one of COLOURS. last_write: Unix time. process: the live process that holds the folder.
    """

    folder: str
    state: str
    step: int | None
    total_steps: int | None
    accuracy: float | None
    best_accuracy: float | None
    seconds_per_step: float | None
    seconds_left: float | None
    last_write: float | None
    process: str | None
    error: str | None


def survey(folders: Sequence[Path]) -> list[Status]:
    """Return the status of all runs below some folders: running ones first, then the newest.

    Raises UserError for what is no folder.
    """
    statuses = [status_of(run) for run in load_runs(folders)]
    return sorted(statuses, key=lambda s: (s.state != "running", -(s.last_write or 0.0)))


def status_of(run: Run) -> Status:
    """Return how far a run is: by its result once it has ended, by its metrics until then."""
    result = run.result
    ended = result is not None and result.status not in UNDER_WAY
    latest: dict[str, Any] = {}
    for record in [] if ended else run.run_dir.read_metrics():
        latest |= record
    if result is not None and ended:
        latest = {STEP: result.steps, TOP1: result.last, BEST: result.best,
                  SECONDS_PER_STEP: result.seconds_per_step}  # fmt: skip
    step, seconds_per_step = latest.get(STEP), latest.get(SECONDS_PER_STEP)
    total = result.total_steps if result else None
    left = None
    if run.state == "running" and step is not None and total and seconds_per_step:
        left = round((total - step) * seconds_per_step, 1)
    owner = holder(run.folder) if run.state == "running" else None
    return Status(
        folder=str(run.folder),
        state=run.state,
        step=step,
        total_steps=total,
        accuracy=latest.get(TOP1),
        best_accuracy=latest.get(BEST),
        seconds_per_step=seconds_per_step,
        seconds_left=left,
        last_write=last_write(run.run_dir),
        process=f"process {owner.pid} on {owner.host}" if owner else None,
        error=run.problem or (result.error if result and ended else None),
    )


def last_write(run: RunDir) -> float | None:
    """Return when a run last wrote its result, its metrics or its log."""
    paths = (run.result, run.metrics, run.log)
    return max((path.stat().st_mtime for path in paths if path.exists()), default=None)


def to_json(statuses: Sequence[Status]) -> list[dict[str, Any]]:
    """Return one object a run."""
    return [dataclasses.asdict(status) for status in statuses]


def to_table(statuses: Sequence[Status], width: int) -> RenderableType:
    """Return how many runs each state has, a line a run (two where `width` characters are too
    few), and the errors below them."""
    rows = [cells(status) for status in statuses]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    wide = sum(widths) + 2 * len(widths) <= width
    lines = one_line_each(rows) if wide else two_lines_each(rows, widths)
    errors = [Text(printable(f"{s.folder}: {s.error}"), "dim") for s in statuses if s.error]
    counts = Counter(status.state for status in statuses)
    states = ", ".join(f"{counts[state]} {state}" for state in COLOURS if counts[state])
    # First: a screen with fewer lines than there are runs cuts off the end.
    return Group(Text(f"{plural(len(statuses), 'run')}: {states}", "bold"), lines, *errors)


def cells(status: Status) -> list[str]:
    """Return what stands in COLUMNS."""
    step = "-" if status.step is None else str(status.step)
    if status.step is not None and status.total_steps:
        step += f"/{status.total_steps} ({100 * status.step // status.total_steps} %)"
    accuracy = "-" if status.accuracy is None else number(status.accuracy)
    best = "" if status.best_accuracy is None else f" ({number(status.best_accuracy)})"
    left = "-" if status.seconds_left is None else duration(status.seconds_left)
    age = "-"
    if status.last_write is not None:
        age = f"{duration(max(0.0, time.time() - status.last_write))} ago"
    speed, name = pace(status.seconds_per_step), printable(status.folder, 1000)
    return [name, status.state, step, accuracy + best, speed, left, age]


def one_line_each(rows: Sequence[list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("run", "state") else "right")
    for name, state, *rest in rows:
        table.add_row(Text(name), Text(state, COLOURS.get(state, "")), *rest)
    return table


def two_lines_each(rows: Sequence[list[str]], widths: Sequence[int]) -> Text:
    text = Text()
    for name, state, *rest in rows:
        text.append(f"{name}\n", "bold")
        text.append(f"  {state:<{widths[1]}}", COLOURS.get(state, ""))
        for cell, width in zip(rest, widths[2:], strict=True):
            text.append(f" {cell:>{width}}")
        text.append("\n")
    text.rstrip()
    return text
