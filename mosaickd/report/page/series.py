"""A run's numbers over its steps: what is in metrics.jsonl, fit for a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mosaickd import metric_names
from mosaickd.errors import printable
from mosaickd.report.results import LARGEST_METRICS, metrics

Points = list[tuple[int, float]]

#: Of one run: names of metrics, and classes that a histogram counts.
NAMES, CLASSES = 200, 10_000


@dataclass
class Measured:
    """All of a run's numbers by name, in order of their steps; and histograms of classes."""

    points: dict[str, Points] = field(default_factory=dict)
    classes: dict[int, list[int]] = field(default_factory=dict)  # step -> images by class
    left_out: int = 0  # names of metrics beyond those that are read
    last_step: int = 0
    last_time: float | None = None
    problem: str | None = None

    def of(self, kind: str) -> dict[str, Points]:
        """loss -> {"generator/local": points, ...}"""
        start = f"{kind}/"
        return {n.removeprefix(start): p for n, p in self.points.items() if n.startswith(start)}


def measured(folder: Path) -> Measured:
    """What a run has logged so far. What is no finite number was not measured, and isn't there."""
    found = Measured()
    path = folder / "metrics.jsonl"
    try:
        if path.exists() and not path.is_file():
            found.problem = "metrics.jsonl is no file"
            return found
        if path.exists() and path.stat().st_size > LARGEST_METRICS:
            size = path.stat().st_size / 2**20
            found.problem = f"metrics.jsonl is too large to be drawn ({size:.0f} MiB)"
            return found
    except OSError as error:
        found.problem = f"metrics.jsonl can't be read: {error.strerror or error}"
        return found
    by_name: dict[str, dict[int, float]] = {}
    beyond: set[str] = set()
    for record in metrics(folder):
        step = record.pop(metric_names.STEP)
        found.last_step = max(found.last_step, step)
        moment = record.pop(metric_names.TIME, None)
        if (at := number(moment)) is not None and at > 0:
            found.last_time = at
        if counts := whole_numbers(record.pop(metric_names.FAKE_CLASSES, None)):
            found.classes[step] = counts
        for name, value in record.items():
            value = number(value)
            if name.startswith("accuracy/") and not (value is not None and 0 <= value <= 100):
                continue
            if value is None:
                continue
            if name in by_name or name in metric_names.METRICS or len(by_name) < NAMES:
                by_name.setdefault(name, {})[step] = value  # what was logged again is newer
            else:
                beyond.add(name)
    found.left_out = len(beyond)
    found.points = {printable(name, 80): sorted(v.items()) for name, v in by_name.items()}
    found.classes = dict(sorted(found.classes.items()))
    return found


def number(value: Any) -> float | None:
    """What is a finite number that can be drawn."""
    if type(value) not in (int, float) or not -1e100 < value < 1e100:
        return None
    return float(value) if abs(value) > 1e-100 else 0.0


def whole_numbers(value: Any) -> list[int] | None:
    """Counts of images by class; None for what can't be any."""
    if not isinstance(value, list) or not 0 < len(value) <= CLASSES:
        return None
    return value if all(type(n) is int and 0 <= n < 2**31 for n in value) else None


def thinned(points: Points, most: int) -> Points:
    """At most about `most` points that look the same: of each stretch the lowest and the highest,
    so that no spike is lost, and both ends."""
    if len(points) <= most:
        return points
    stretches = max(1, most // 2)
    kept = {0, len(points) - 1}
    for i in range(stretches):
        start, stop = i * len(points) // stretches, (i + 1) * len(points) // stretches
        kept.add(min(range(start, stop), key=lambda j: points[j][1]))
        kept.add(max(range(start, stop), key=lambda j: points[j][1]))
    return [points[i] for i in sorted(kept)]


def spans_decades(points: Iterable[tuple[int, float]]) -> bool:
    """Whether a logarithmic axis shows more: positive values, the highest 100 times the lowest."""
    values = [value for _, value in points]
    return min(values) > 0 and math.log10(max(values)) - math.log10(min(values)) >= 2
