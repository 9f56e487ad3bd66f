"""What a run's folder says, read without believing it, and little of it: there may be thousands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mosaickd import metric_names
from mosaickd.errors import printable
from mosaickd.report.contents import content
from mosaickd.report.finding import CONFIG, LOG, METRICS
from mosaickd.report.results import LARGE

#: Bytes at the end of metrics.jsonl, first; more where no evaluation is among them.
TAIL, LONGEST_TAIL = 2**15, 2**22


def end_of(folder: Path, name: str, size: int, *, links: bool = False) -> bytes:
    """The last `size` bytes of a file of the folder, from the beginning of a line; else nothing."""
    found = content(folder, name, size + 1, end=True, links=links) or b""
    return found if len(found) <= size else found.partition(b"\n")[2]


def last_metrics(folder: Path) -> list[dict[str, Any]]:
    """The last lines of metrics.jsonl, by today's names, an evaluation among them if there is one
    near."""
    size = TAIL
    while True:
        end = end_of(folder, METRICS, size, links=True)
        lines = [*_records(end)]
        evaluated = any(percentage(line.get(metric_names.TOP1)) is not None for line in lines)
        if evaluated or size >= LONGEST_TAIL or len(end) < size // 2:
            return lines
        size *= 8


def _records(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a kill may have cut it short
        step = record.get(metric_names.STEP) if isinstance(record, dict) else None
        if type(step) is int and 0 < step < LARGE:
            yield metric_names.renamed(record)


def number(value: Any) -> float | None:
    """What is a finite number that a float can follow."""
    if type(value) in (int, float) and -LARGE < value < LARGE:
        return float(value)
    return None


def percentage(value: Any) -> float | None:
    share = number(value)
    return share if share is not None and 0 <= share <= 100 else None


def logged_error(folder: Path) -> str | None:
    """The last error that run.log tells of: of a run that was refused before it had a result."""
    for line in reversed(end_of(folder, LOG, TAIL).decode(errors="replace").splitlines()):
        _, found, message = line.partition(" ERROR ")
        if found:
            return printable(message.strip().removeprefix(f"{folder.resolve()}: "))
    return None


def config_of(folder: Path) -> dict[str, Any]:
    """The run's settings; none where they can't be read."""
    import yaml  # late: only few runs wait for a teacher

    try:
        found = yaml.safe_load(end_of(folder, CONFIG, TAIL))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
