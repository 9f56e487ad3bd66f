"""Runs as their folders tell of them: result.json, checked, and what was evaluated when."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from mosaickd import metric_names
from mosaickd.errors import UserError, printable
from mosaickd.report.finding import check_folders, files_below, linked_folders

#: What a result.json must have to be one of ours, and the types that each may have.
FIELDS: dict[str, tuple[type, ...]] = {
    "status": (str,), "method": (str,), "dataset": (str,), "ood": (str, type(None)),
    "teacher": (str, type(None)), "student": (str,), "seed": (int,), "accuracy": (dict,),
    "teacher_accuracy": (int, float, type(None)), "steps": (int,), "seconds": (int, float),
    "device": (str, type(None)),
}  # fmt: skip
#: What newer versions write as well.
OPTIONAL: dict[str, tuple[type, ...]] = {
    "variant": (str, type(None)), "ood_subset": (bool, type(None)),
    "error": (str, type(None)), "versions": (dict,), "broken_images": (dict,),
    "total_steps": (int, type(None)),
}  # fmt: skip
ACCURACY: dict[str, tuple[type, ...]] = {
    "last": (int, float, type(None)), "best": (int, float, type(None)),
    "best_step": (int, type(None)),
}  # fmt: skip
#: Bytes; ours have some thousand, and of metrics some million.
LARGEST, LARGEST_METRICS = 2**22, 2**29
#: No count of ours comes near; beyond it a float can't follow an int.
LARGE = 2**53
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false",
         dict: "an object", list: "a list", type(None): "null"}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run's result.json; accuracies in percent, texts fit for a line."""

    folder: Path
    status: str
    method: str
    dataset: str
    ood: str | None
    ood_subset: bool
    teacher: str | None
    student: str
    seed: int
    variant: str | None  # what differs from the method's recipe
    tells_variant: bool  # older versions didn't say
    last: float | None
    best: float | None
    teacher_accuracy: float | None
    steps: int
    device: str | None
    versions: tuple[tuple[str, str], ...]
    error: str | None
    seconds: float = 0.0
    total_steps: int | None = None  # older versions didn't say

    @property
    def row(self) -> tuple[object, ...]:
        """What runs have in common that differ by seed only: those of one row of a table."""
        cell = (self.method, self.variant, self.dataset, self.ood, self.ood_subset)
        return (*cell, self.teacher, self.student)

    @property
    def under_way(self) -> bool:
        """Until it ends; or what a kill has left."""
        return self.status in ("preparing", "running")

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def accuracy(self, evaluation: str) -> float | None:
        """evaluation: "last" or "best". Unfinished runs have none."""
        if not self.finished:
            return None
        return self.best if evaluation == "best" else self.last


@dataclass
class Found:
    """What lies below some folders."""

    runs: list[Run] = field(default_factory=list)
    problems: list[tuple[Path, str]] = field(default_factory=list)
    begun: dict[Path, int] = field(default_factory=dict)  # no result.json yet -> last step seen
    empty: list[Path] = field(default_factory=list)  # folders without a result.json
    roots: Sequence[Path] = ()

    @cached_property
    def links(self) -> list[Path]:
        """To folders elsewhere: nobody looked into these."""
        return linked_folders(self.roots)


def read_result(folder: Path) -> dict[str, Any] | None:
    """A run's result.json; None where there is none or it isn't one of ours."""
    try:
        return load_result(folder / "result.json")
    except (OSError, UserError):
        return None


def find_results(root: Path) -> dict[Path, dict[str, Any]]:
    """All runs below `root`, by folder; teachers' own training runs are left out."""
    found = {}
    for path in files_below(root, "result.json"):
        if result := read_result(path.parent):
            found[path.parent] = result
    return found


def load_result(path: Path) -> dict[str, Any]:
    """A result.json that holds what one of ours holds; else a UserError that says what's wrong."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError("too large for a run's result")
        result = json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON ({printable(str(error), 120)})") from error
    if not isinstance(result, dict):
        raise UserError(f"{KINDS.get(type(result), 'a number')} where a run's result is an object")
    if wrong := [*mistakes(result)]:
        written = result.get("versions")
        by = written.get("mosaickd") if isinstance(written, dict) else None
        version = f" (written by version {printable(str(by), 40)})" if by else ""
        raise UserError(f"{'; '.join(wrong[:5])}{version}")
    return result


def mistakes(result: dict[str, Any]) -> Iterator[str]:
    """What keeps a result from being read as one of ours."""
    if missing := [name for name in FIELDS if name not in result]:
        yield f"no {', '.join(missing)}"
    yield from _wrong_types(result, FIELDS | OPTIONAL)
    accuracy = result.get("accuracy")
    if not isinstance(accuracy, dict):
        return
    if missing := [f"accuracy.{name}" for name in ("last", "best") if name not in accuracy]:
        yield f"no {', '.join(missing)}"
    yield from _wrong_types(accuracy, ACCURACY, "accuracy.")
    numbers = {f"accuracy.{name}": accuracy.get(name) for name in ("last", "best")}
    for name, value in (numbers | {"teacher_accuracy": result.get("teacher_accuracy")}).items():
        if _is_number(value) and not 0 <= value <= 100:  # a NaN is no percentage either
            yield f"{name} is {value}, which is no percentage"
        if value is None and name in numbers and result.get("status") == "finished":
            yield f"{name} is null, but the run is said to be finished"
    for name in ("seed", "steps", "seconds", "total_steps"):
        value = result.get(name)
        lowest = -LARGE if name == "seed" else -1
        if _is_number(value) and not lowest < value < LARGE:
            yield f"{name} is {printable(str(value), 40)}"


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float)


def _wrong_types(
    content: dict[str, Any], fields: dict[str, tuple[type, ...]], prefix: str = ""
) -> Iterator[str]:
    for name, types in fields.items():
        if name in content and type(content[name]) not in types:
            shown = printable(json.dumps(content[name]), 40)
            kind = KINDS[float if float in types else types[0]]
            yield f"{prefix}{name} is {shown}, not {kind}"


def to_run(folder: Path, result: dict[str, Any]) -> Run:
    def text(name: str) -> str | None:
        return printable(result[name]) if result.get(name) else None

    return Run(
        folder=folder,
        status=printable(result["status"], 40),
        method=printable(result["method"], 80),
        dataset=printable(result["dataset"], 80),
        ood=text("ood"),
        ood_subset=bool(result.get("ood_subset")),
        teacher=text("teacher"),
        student=printable(result["student"], 80),
        seed=result["seed"],
        variant=text("variant"),
        tells_variant="variant" in result,
        last=result["accuracy"]["last"],
        best=result["accuracy"]["best"],
        teacher_accuracy=result["teacher_accuracy"],
        steps=result["steps"],
        device=text("device"),
        versions=tuple(
            (printable(str(k), 40), printable(str(v), 40))
            for k, v in result.get("versions", {}).items()
        ),
        error=text("error"),
        seconds=result["seconds"],
        total_steps=result.get("total_steps"),
    )


def collect(roots: Sequence[Path]) -> Found:
    """All that lies below the folders, each file once; a UserError names a folder that isn't."""
    check_folders(roots, "no result.json")
    found = Found(roots=roots)
    seen: set[Path] = set()
    for root in roots:
        paths = list(files_below(root, "result.json"))
        if not paths:
            found.empty.append(root)
        for path in paths:
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                found.runs.append(to_run(path.parent, load_result(path)))
            except UserError as error:
                found.problems.append((path, str(error)))
            except OSError as error:
                found.problems.append((path, f"can't be read: {error.strerror or error}"))
        for path in files_below(root, "metrics.jsonl"):
            if not (path.parent / "result.json").exists() and path.resolve() not in seen:
                seen.add(path.resolve())
                found.begun[path.parent] = last_step(path.parent)
    return found


# ---------------------------------------------------------------------------------- metrics.jsonl


def metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, by the names of `metric_names`; a kill may have cut one
    short."""
    path = folder / "metrics.jsonl"
    try:
        if not path.is_file():  # a pipe would be waited for
            return
        if path.stat().st_size > LARGEST_METRICS:
            return
        lines = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in lines.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = record.get(metric_names.STEP) if isinstance(record, dict) else None
        if type(step) is int and 0 < step < LARGE:
            yield record


def evaluations(folder: Path) -> list[tuple[int, float]]:
    """(step, accuracy in percent) of each evaluation, in order."""
    by_step = {
        record[metric_names.STEP]: float(record[metric_names.TOP1])
        for record in metrics(folder)
        if _is_number(record.get(metric_names.TOP1)) and 0 <= record[metric_names.TOP1] <= 100
    }
    return sorted(by_step.items())


def last_step(folder: Path) -> int:
    return max((record[metric_names.STEP] for record in metrics(folder)), default=0)
