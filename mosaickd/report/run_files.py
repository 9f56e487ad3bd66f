"""What a run's folder tells beside its result.json: its command, and who is at work there."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mosaickd.errors import UserError, printable
from mosaickd.locks import OWNER, holder
from mosaickd.report.contents import content
from mosaickd.report.finding import files_below
from mosaickd.report.results import Found, Run, load_result

#: Bytes of a command, and brackets in it: YAML is slow to read, above all what is nested.
TYPED, NESTED = 2**15, 300
#: Seconds without a sign of life after which a process of another machine is taken for dead: more
#: than a lease has, as clocks of machines differ.
SILENT = 90.0
#: What becomes of a folder as it runs. A page is built anew when one of these has changed.
WATCHED = ("result.json", "metrics.jsonl", "per_class.json", "run.log", "samples", OWNER,
           "config.json", ".hydra/config.yaml", ".hydra/overrides.yaml")  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A run's folder. run: None where there is no result.json that can be read."""

    folder: Path
    run: Run | None
    problem: str | None = None  # with its result.json

    @property
    def result(self) -> dict[str, Any]:
        """What result.json holds beside what a Run has."""
        if self.run is None:
            return {}
        try:
            return load_result(self.folder / "result.json")
        except (OSError, UserError):  # it was replaced a moment ago
            return {}

    @property
    def state(self) -> str:
        """finished, failed, interrupted, running, killed; or whatever else a version may write."""
        if self.run is not None:
            return state_of(self.run)
        return "unreadable" if self.problem else under_way(self.folder)


def entries(found: Found, roots: Iterable[Path]) -> list[Entry]:
    """All runs below the roots, also those that have written nothing but their settings yet."""
    known = {run.folder: Entry(run.folder, run) for run in found.runs}
    known |= {path.parent: Entry(path.parent, None, words) for path, words in found.problems}
    known |= {folder: Entry(folder, None) for folder in found.begun}
    seen = {folder.resolve() for folder in known}
    for root in roots:
        for path in files_below(root, "config.json"):
            folder = path.parent
            if folder.resolve() not in seen and (folder / ".hydra" / "config.yaml").is_file():
                seen.add(folder.resolve())
                known[folder] = Entry(folder, None)
    return [known[folder] for folder in sorted(known)]


def command(folder: Path) -> str | None:
    """What was typed, as far as it chose the run's settings."""
    import yaml

    said = content(folder, ".hydra/overrides.yaml", TYPED) or b""
    if said.count(b"[") + said.count(b"{") > NESTED:
        return None
    try:
        overrides = yaml.safe_load(said)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(overrides, list):
        return None
    words = [printable(word, 2000) for word in overrides[:1000] if isinstance(word, str)]
    return shlex.join(["python", "run.py", *words])


# ----------------------------------------------------------------------------- who is at work there


def alive(folder: Path) -> bool:
    """Whether a process holds the folder, as far as one look can tell."""
    held = holder(folder)
    if held is None:
        return False
    return time.time() - held.touched <= SILENT if held.alive is None else held.alive


def state_of(run: Run) -> str:
    """What its result.json says; of one that had not ended, whether it goes on."""
    return under_way(run.folder) if run.under_way else run.status


def under_way(folder: Path) -> str:
    """Of a run that had not ended when its files were written."""
    return "running" if alive(folder) else "killed"


def moment(seconds: float | None) -> str:
    """2026-03-14 09:26:53 UTC"""
    try:
        return (
            f"{datetime.fromtimestamp(seconds or 0, UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds else ""
        )
    except (ValueError, OverflowError, OSError):
        return ""


def signature(folder: Path) -> tuple[object, ...]:
    """What differs as soon as something in the folder has changed that a page shows."""
    held = alive(folder)
    marks: list[object] = [held]
    for name in WATCHED if held else [name for name in WATCHED if name != OWNER]:
        try:
            status = (folder / name).stat()
        except (OSError, ValueError):
            continue
        # The owner's mark is touched every few seconds, and says nothing new each time.
        marks.append((name, status.st_ino) if name == OWNER else
                     (name, status.st_mtime_ns, status.st_size))  # fmt: skip
    return tuple(marks)


def signatures(found: Sequence[Entry]) -> tuple[object, ...]:
    return tuple((str(entry.folder), signature(entry.folder)) for entry in found)
