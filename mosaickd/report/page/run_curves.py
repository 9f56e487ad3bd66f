"""A run's curves: accuracy, each player's losses, learning rates, synthetic images, speed."""

from __future__ import annotations

from collections.abc import Sequence

from mosaickd import metric_names
from mosaickd.report.page.charts import Series, draw_rows, draw_together, told
from mosaickd.report.page.markup import figure
from mosaickd.report.page.series import Measured, Points

#: Metrics that stand below each other in a figure: its title, and of each a label and a unit.
GROUPS = {
    "Synthetic images": {
        metric_names.FAKE_CLASSES_SEEN: ("classes seen", ""),
        metric_names.FAKE_CONFIDENCE: ("the teacher's confidence", ""),
    },
    "Speed and memory": {
        metric_names.IMAGES_PER_SECOND: ("images per second", ""),
        metric_names.SECONDS_PER_STEP: ("seconds per step", "s"),
        metric_names.PEAK_MEMORY: ("peak memory", "MB"),
    },
}


def figures(numbers: Measured, teacher: float | None, most: int) -> list[str]:
    """All that was measured; nothing for what was not. most: points a curve."""
    drawn = [*_accuracy(numbers, teacher, most), *_losses(numbers, most)]
    if rates := _series(numbers.of(metric_names.LEARNING_RATE)):
        drawn.append(_rows("Learning rates", rates, numbers.last_step, most))
    for title, wanted in GROUPS.items():
        found = [
            Series(label, numbers.points[metric], unit, i)
            for i, (metric, (label, unit)) in enumerate(wanted.items())
            if numbers.points.get(metric)
        ]
        if found:
            drawn.append(_rows(title, found, numbers.last_step, most))
    return drawn


def _accuracy(numbers: Measured, teacher: float | None, most: int) -> list[str]:
    labels = {metric_names.TOP1: "top-1", metric_names.TOP5: "top-5"}
    found = [
        Series(label, numbers.points[metric], "%", i)
        for i, (metric, label) in enumerate(labels.items())
        if numbers.points.get(metric)
    ]
    if not found:
        return []
    level = None if teacher is None else ("teacher", teacher)
    alt = f"Accuracy over steps, in percent: {told(found)}"
    alt += "" if teacher is None else f" The teacher has {teacher:.2f} %."
    svg = draw_together(found, numbers.last_step, most, level=level)
    return [figure(svg, "Accuracy on test images, %", "", alt)]


def _losses(numbers: Measured, most: int) -> list[str]:
    """Of each player its losses, each on its own scale, and weighted, all on one."""
    raw, weighted = (numbers.of(kind) for kind in (metric_names.LOSS, metric_names.WEIGHTED))
    drawn = []
    for player in dict.fromkeys(name.partition("/")[0] for name in raw):
        own, sum_of = (
            _series({name: p for name, p in found.items() if name.startswith(f"{player}/")})
            for found in (raw, weighted)
        )
        own = own or _series({player: raw[player]})  # a loss that is no player's
        drawn.append(_rows(f"{player}: losses", own, numbers.last_step, most))
        if len(sum_of) > 1:
            svg = draw_together(sum_of, numbers.last_step, most)
            alt = f"Weighted losses of the {player} over steps: {told(sum_of)}"
            caption = "Weight times loss; what is minimised is their sum."
            drawn.append(figure(svg, f"{player}: weighted", caption, alt))
    return drawn


def _rows(title: str, found: Sequence[Series], last_step: int, most: int) -> str:
    svg = draw_rows(found, last_step, most)
    return figure(svg, title, "", f"{title} over steps: {told(found)}")


def _series(found: dict[str, Points]) -> list[Series]:
    """By the last part of their names, each with its colour."""
    return [
        Series(name.partition("/")[2] or name, points, "", i % 8)
        for i, (name, points) in enumerate(found.items())
    ]
