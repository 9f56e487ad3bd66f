"""What a run's folder says, read without believing it, and little of it: there may be thousands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mosaickd import vocabulary
from mosaickd.errors import printable
from mosaickd.locks import OWNER
from mosaickd.report.results import INSIDE, LARGE
from mosaickd.report.run_files import content

METRICS, RESULT, LOG, CONFIG = "metrics.jsonl", "result.json", "run.log", ".hydra/config.yaml"

#: Bytes at the end of metrics.jsonl, first; more where no evaluation is among them.
TAIL, LONGEST_TAIL = 2**15, 2**22


def run_folders(roots: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """(root, folder) of each run below the roots, once."""
    seen: set[str] = set()
    for root in roots:
        for place, folders, names in os.walk(root):
            folder = Path(place)
            is_run = not {RESULT, METRICS, LOG, OWNER}.isdisjoint(names)
            if is_run or (".hydra" in folders and (folder / CONFIG).exists()):
                folders[:] = [name for name in folders if name not in INSIDE]
                if (real := os.path.realpath(place)) not in seen:
                    seen.add(real)
                    yield root, folder
            folders.sort()


def end_of(folder: Path, name: str, size: int) -> bytes:
    """The last `size` bytes of a file of the folder, from the beginning of a line; else nothing."""
    found = content(folder, name, size + 1, end=True) or b""
    return found if len(found) <= size else found.partition(b"\n")[2]


def last_metrics(folder: Path) -> list[dict[str, Any]]:
    """The last lines of metrics.jsonl, by today's names, an evaluation among them if there is one
    near."""
    size = TAIL
    while True:
        end = end_of(folder, METRICS, size)
        lines = [*_records(end)]
        evaluated = any(percentage(line.get(vocabulary.TOP1)) is not None for line in lines)
        if evaluated or size >= LONGEST_TAIL or len(end) < size // 2:
            return lines
        size *= 8


def _records(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a kill may have cut it short
        step = record.get(vocabulary.STEP) if isinstance(record, dict) else None
        if type(step) is int and 0 < step < LARGE:
            yield vocabulary.renamed(record)


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
