"""Runs that a report averages as seeds of one experiment, and that are more than that apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mosaickd.errors import printable
from mosaickd.report.contents import read_json
from mosaickd.report.results import Run
from mosaickd.report.words import shown

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
        key = (run.method, run.variant, run.dataset, run.ood, run.ood_subset)
        rows.setdefault((*key, run.teacher, run.student), []).append(run)
    notes = []
    for first, *others in rows.values():
        for run in others:
            if different := [*differences(first, run)]:
                notes.append(
                    f"{shown(run.folder)} stands in one row with {shown(first.folder)}, and has "
                    f"more than another seed: {'; '.join(different[:3])}"
                )
    more = len(notes) - NAMED
    return notes[:NAMED] + ([f"and {more} more such runs"] if more > 0 else [])


def differences(one: Run, other: Run) -> Iterator[str]:
    """What is known of both, and differs."""
    theirs = settings(one), settings(other)
    if all(theirs):
        for name in sorted(theirs[0].keys() | theirs[1].keys()):
            values = [own.get(name) for own in theirs]
            if values[0] != values[1]:
                yield printable(f"{name} is {values[0]} there, {values[1]} here", 160)
    results = [read_json(run.folder, "result.json") for run in (one, other)]
    for name, words in MADE_OF.items():
        said = [result.get(name) if isinstance(result, dict) else None for result in results]
        if all(said) and said[0] != said[1]:
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
