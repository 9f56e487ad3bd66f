"""Runs that a report averages as seeds of one experiment, and that are more than that apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mosaickd.errors import printable
from mosaickd.report.contents import read_json
from mosaickd.report.labels import shown
from mosaickd.report.results import Run

#: Settings that may differ: where files lie, and how the arithmetic is done.
ALIKE = ("seed", "train.precision", "train.channels_last", "train.compile", "train.cuda_graph",
         "train.deterministic", "teacher.checkpoint")  # fmt: skip
ANYWHERE = (".root", ".download")
#: What result.json says of what a run is made of.
MADE_OF = {"data_fingerprint": "other images", "teacher_fingerprint": "another teacher"}
#: How many such pairs a report names.
NAMED = 5


def mixed(runs: Sequence[Run]) -> list[str]:
    """A note for each run that differs from the first one of its row in more than the seed."""
    rows: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        rows.setdefault(run.row, []).append(run)
    notes = []
    for first, *others in rows.values():
        known = said_of(first) if others else ({}, {})
        for run in others:
            if different := [*differences(known, said_of(run))]:
                notes.append(
                    f"{shown(run.folder)} stands in one row with {shown(first.folder)}, and has "
                    f"more than another seed: {'; '.join(different[:3])}"
                )
    more = len(notes) - NAMED
    return notes[:NAMED] + ([f"and {more} more such runs"] if more > 0 else [])


#: What decides what a run computes, by name; and what its result.json says.
Said = tuple[dict[str, Any], dict[str, Any]]


def said_of(run: Run) -> Said:
    """Each empty where it can't be read."""
    result = read_json(run.folder, "result.json")
    return settings(run), result if isinstance(result, dict) else {}


def differences(one: Said, other: Said) -> Iterator[str]:
    """What is known of both, and differs."""
    (there, result), (here, another) = one, other
    if there and here:
        for name in sorted(there.keys() | here.keys()):
            before, now = there.get(name), here.get(name)
            if before != now:
                yield printable(f"{name} is {before} there, {now} here", 160)
    for name, words in MADE_OF.items():
        before, now = result.get(name), another.get(name)
        if before and now and before != now:
            yield words


def settings(run: Run) -> dict[str, Any]:
    """What decides what the run computes, by name; empty where that can't be read."""
    return {
        name: value
        for name, value in _flat(read_json(run.folder, "config.json"), "")
        if name not in ALIKE and not name.endswith(ANYWHERE)
    }


def _flat(content: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """train: {steps: 3} as train.steps: 3"""
    if isinstance(content, dict) and depth < 20:
        for key, value in content.items():
            yield from _flat(value, f"{path}.{key}".lstrip("."), depth + 1)
    elif path:
        yield path, content
