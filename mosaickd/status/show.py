"""Rows as a table for people, or as JSON for programs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mosaickd.durations import duration, pace
from mosaickd.status.runs import STATES, Row

COLOURS = {"stuck": "bold red", "failed": "red", "unreadable": "red", "killed": "yellow",
           "interrupted": "yellow", "running": "bold green", "finished": "green"}  # fmt: skip


def overview(rows: Sequence[Row], width: int, most: int | None = None) -> RenderableType:
    """The runs, what is to be said of some, and how many there are of each state.

    width: characters a line, most: lines that there is room for.
    """
    cells = columns(rows)
    stacked = sum(max(len(text) for text in (n, *c)) + 2 for n, c in cells.items()) > width
    shown, said = len(rows), remarks(rows)
    lines = 2 if stacked else 1  # a run
    if most is not None and 4 + lines * shown + len(said) > most:
        said = said[: max(0, most // 4)]
        shown = max(1, (most - 5 - len(said)) // lines)
    cells = {name: texts[:shown] for name, texts in cells.items()}
    drawn = in_two_lines(cells, rows) if stacked else table(cells, rows)
    parts: list[RenderableType] = [drawn, *(Text(line, style="dim") for line in said)]
    if shown < len(rows):
        parts.append(Text(f"and {len(rows) - shown} more, for which there is no room", style="dim"))
    return Group(*parts, Text(summary(rows), style="bold"))


def columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """By their headings; those of which nothing is known of any run are left out."""
    found = {
        "run": [row.name for row in rows],
        "state": [row.state for row in rows],
        "step": [progress(row) for row in rows],
        "accuracy (best)": [accuracy(row) for row in rows],
        "speed": [pace(row.seconds_per_step) for row in rows],
        "left": ["-" if row.seconds_left is None else duration(row.seconds_left) for row in rows],
        "last sign": [age(row) for row in rows],
    }
    return {n: c for n, c in found.items() if n in ("run", "state") or {*c} != {"-"}}


def table(cells: dict[str, list[str]], rows: Sequence[Row]) -> Table:
    """One line a run."""
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in cells:
        drawn.add_column(name, justify="left" if name in ("run", "state") else "right")
    for row, texts in zip(rows, zip(*cells.values(), strict=True), strict=False):
        parts = [*map(Text, texts)]
        parts[1].stylize(COLOURS.get(row.state, ""))
        drawn.add_row(*parts)
    return drawn


def in_two_lines(cells: dict[str, list[str]], rows: Sequence[Row]) -> Text:
    """Where a terminal is narrow: the run's name, and below it the rest."""
    width = {name: max(map(len, texts), default=0) for name, texts in cells.items()}
    text = Text()
    for number, row in enumerate(rows[: len(cells["run"])]):
        text.append(row.name + "\n", style="bold")
        text.append(f"  {row.state:<{width['state']}}", style=COLOURS.get(row.state, ""))
        for name in [*cells][2:]:
            text.append(f"  {cells[name][number]:>{width[name]}}")
        text.append("\n")
    text.rstrip()
    return text


def progress(row: Row) -> str:
    """1200/3000 (40 %); without the rest where it isn't known."""
    if row.step is None:
        return "-"
    if row.total_steps is None:
        return str(row.step)
    done = f"{row.step}/{row.total_steps}"
    if row.state == "finished" and row.step == row.total_steps:
        return done
    return f"{done} ({100 * row.step // row.total_steps} %)"


def accuracy(row: Row) -> str:
    """74.25 (75.10)"""
    if row.accuracy is None:
        return "-"
    return f"{row.accuracy:.2f}" + (f" ({row.best:.2f})" if row.best is not None else "")


def age(row: Row) -> str:
    """Since the last sign of progress; a clock ahead of ours by more than a minute says nothing."""
    if row.active is None or (seconds := time.time() - row.active) < -60:
        return "-"
    return f"{duration(max(seconds, 0.0))} ago"


def remarks(rows: Sequence[Row]) -> list[str]:
    """What doesn't fit into the table: errors, what a run does before its first step, versions."""
    said = [f"{row.name}: {row.doing or row.error}" for row in rows if row.doing or row.error]
    unknown = [row for row in rows if row.step is not None and row.total_steps is None]
    if unknown:
        versions = sorted({f"version {row.version}" for row in unknown if row.version})
        by = f" ({', '.join(versions)})" if versions else ""
        some = "1 run doesn't" if len(unknown) == 1 else f"{len(unknown)} runs don't"
        said.append(f"{some} say how many steps it takes: an older version's{by}, or not begun")
    return said


def summary(rows: Sequence[Row]) -> str:
    """12 runs: 8 finished, 1 running, 1 stuck, 2 failed"""
    counts = Counter(row.state for row in rows)
    order = ["finished", "running", *(s for s in STATES if s not in ("finished", "running"))]
    order += sorted(state for state in counts if state not in STATES)
    told = ", ".join(f"{counts[state]} {state}" for state in order if counts[state])
    return f"{len(rows)} run{'' if len(rows) == 1 else 's'}: {told}"


def as_json(row: Row) -> dict[str, Any]:
    """What is known of a run; null is what isn't. Accuracies in percent, times in seconds."""
    return {
        "folder": str(row.folder),
        "state": row.state,
        "doing": row.doing,
        "step": row.step,
        "total_steps": row.total_steps,
        "accuracy": row.accuracy,
        "best_accuracy": row.best,
        "seconds_per_step": row.seconds_per_step,
        "seconds_left": None if row.seconds_left is None else round(row.seconds_left, 1),
        "last_sign": row.active,
        "process": row.process,
        "error": row.error,
        "version": row.version,
    }
