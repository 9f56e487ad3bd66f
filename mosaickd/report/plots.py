"""Plots as SVG to stand in a page: real text, and colours that the page's style sheet decides."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from mosaickd.report.labels import short
from mosaickd.report.results import evaluations
from mosaickd.report.table import Cell, PlainRow, Report

#: Lines that a panel holds before it becomes hard to read.
LINES = 8
#: Characters of a line's label.
LABEL = 22
#: Colours 0 to 7 of the style sheet, so that a method looks the same in all panels. Data-free
#: methods share theirs with others that they never meet in a panel of the paper's table.
COLOURS = {"mosaic": 0, "kd": 1, "balanced": 2, "fitnet": 3, "rkd": 4, "crd": 5, "sskd": 6,
           "scratch": 7, "student": 7, "dafl": 2, "zskt": 3, "deepinv": 4, "dfq": 5}  # fmt: skip
MARKERS = "osD^vP"
#: Percent of the training from which on lines lie within a panel for certain.
EARLY = 20.0
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))

#: matplotlib wants colours, the page wants variables: these stand for them until the SVG is done.
INK, MUTED, GRID = "#fe0100", "#fe0101", "#fe0102"
SENTINELS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    f"#fe02{i:02x}": f"var(--line{i})" for i in range(LINES)
}
STYLE: Any = {  # matplotlib types the keys, each version its own
    "svg.fonttype": "none", "svg.hashsalt": "mosaickd", "font.size": 10, "text.color": INK,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A method in a panel: evaluations of each of its runs."""

    label: str
    method: str
    curves: tuple[tuple[tuple[int, float], ...], ...]  # (step, accuracy), a run each
    paper: float | None = None

    @property
    def last(self) -> float:
        return float(np.mean([curve[-1][1] for curve in self.curves]))


@dataclass(frozen=True)
class Panel:
    title: str
    lines: tuple[Line, ...]
    teacher: float | None
    best_of: int  # how many lines there were to choose from


def panels(report: Report) -> list[Panel]:
    """A panel a pair and data of the paper's table, then one a data set and pair of other runs."""
    found = []
    for data, rows in report.blocks():
        for pair in report.pairs:
            lines = [
                _line(short(row.method), row.method, row.cells[pair])
                for row in rows
                if row.method != "teacher"
            ]
            teacher, student = pair.split("-")
            used = [run.teacher_accuracy for row in rows for run in row.cells[pair].runs]
            found.append(_panel(f"{data}: {teacher} to {student}", lines, used))
    letters = report.variants()
    groups: dict[str, list[PlainRow]] = {}
    for row in report.plain:
        if row.student:
            title = f"{row.dataset}: {f'{row.teacher} to ' if row.teacher else ''}{row.student}"
            groups.setdefault(title, []).append(row)
    for title, members in groups.items():
        oods, variants = {row.ood for row in members}, {row.variant for row in members}
        lines = []
        for row in members:
            label = short(row.method) + (f", {row.ood}" if len(oods) > 1 and row.ood else "")
            letter = f" ({letters[row.variant]})" if len(variants) > 1 and row.variant else ""
            lines.append(_line(label[: LABEL - len(letter)] + letter, row.method, row.cell))
        used = [run.teacher_accuracy for row in members for run in row.cell.runs]
        found.append(_panel(title, lines, used))
    return [panel for panel in found if panel.lines]


def _line(label: str, method: str, cell: Cell) -> Line:
    curves = [tuple(evaluations(run.folder)) for run in cell.runs if run.finished]
    return Line(_cut(label), method, tuple(curve for curve in curves if curve), cell.paper)


def _cut(label: str) -> str:
    return label if len(label) <= LABEL else f"{label[: LABEL - 1]}…"


def _panel(title: str, lines: Sequence[Line], teachers: Sequence[float | None]) -> Panel:
    drawn = [line for line in lines if line.curves]
    chosen = sorted(drawn, key=lambda line: -line.last)[:LINES]
    known = [accuracy for accuracy in teachers if accuracy is not None]
    return Panel(
        title,
        tuple(line for line in drawn if line in chosen),
        float(np.mean(known)) if known else None,
        len(drawn),
    )


def draw_panel(panel: Panel, name: str) -> str:
    """Accuracy over training. name: of this SVG among those of a page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.9))
        longest = max(len(line.label) for line in panel.lines)
        axes = figure.add_axes((0.13, 0.16, 0.79 - 0.0165 * max(longest, 8), 0.8))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        ends: list[tuple[float, str, str]] = []
        heights: list[float] = []  # what has to be seen; the steep beginning would press it flat
        taken: list[int] = []
        for line in panel.lines:
            number = _colour(line.method, taken)
            colour, dash = f"#fe02{number:02x}", DASHES[number // 2]
            taken.append(number)
            done, mean, low, high = together(line.curves)
            later = done >= min(EARLY, done[-1])
            heights += [*low[later], *high[later], *([line.paper] if line.paper else [])]
            if len(line.curves) > 1:
                axes.fill_between(done, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(done, mean, color=colour, linestyle=dash, linewidth=1.7)
            if len(done) == 1:
                axes.plot(done, mean, color=colour, marker="o", markersize=4)
            if line.paper is not None:
                axes.plot([100], [line.paper], marker="D", markersize=4.5, clip_on=False,
                          color=colour, markerfacecolor="none", linestyle="none")  # fmt: skip
            ends.append((float(mean[-1]), line.label, colour))
        if panel.teacher is not None:
            axes.axhline(panel.teacher, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
            ends.append((panel.teacher, "teacher", MUTED))
            heights.append(panel.teacher)
        axes.set_xlim(0, 100)
        margin = max(0.5, 0.06 * (max(heights) - min(heights)))
        axes.set_ylim(min(heights) - margin, max(heights) + margin)
        axes.set_xlabel("training done, %")
        axes.set_ylabel("accuracy, %")
        _label_ends(axes, ends)
        return _svg(figure, name)


def _colour(method: str, taken: Sequence[int]) -> int:
    """The method's own colour, or the next one that is free in this panel."""
    own = COLOURS.get(method, 0)
    free = [i % LINES for i in range(own, own + LINES) if i % LINES not in taken]
    return free[0] if free else own


def together(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[Any, Any, Any, Any]:
    """Mean, lowest and highest of several curves, by the share of the training that is done (%)."""
    shares = [[100 * step / curve[-1][0] for step, _ in curve] for curve in curves]
    done = np.unique(np.round(np.concatenate(shares), 6))
    # What was evaluated at other steps is interpolated, but not before its first evaluation.
    done = done[done >= max(share[0] for share in shares) - 1e-6]
    values = np.stack(
        [
            np.interp(done, share, [accuracy for _, accuracy in curve])
            for share, curve in zip(shares, curves, strict=True)
        ]
    )
    return done, values.mean(0), values.min(0), values.max(0)


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the lines' right ends, moved apart where they would cover each other."""
    low, high = axes.get_ylim()
    ends = sorted(ends)
    heights = [(value - low) / (high - low) for value, _, _ in ends]
    places = spread(heights, gap=0.075)
    for (_, label, colour), height, place in zip(ends, heights, places, strict=True):
        axes.annotate(
            label,
            xy=(1.015, height),
            xytext=(1.075, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7,
                        "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Sorted heights, moved as little as it takes to be `gap` apart, within 0 and 1 if they fit."""
    groups: list[list[float]] = []  # neighbours that touch, each as its distance to their first
    for i, height in enumerate(heights):
        groups.append([height - i * gap])
        while len(groups) > 1 and fmean(groups[-2]) >= fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    free = max(0.0, 1 - (len(heights) - 1) * gap)  # where the lowest may lie
    bases = [min(max(fmean(group), 0.0), free) for group in groups for _ in group]
    return [base + i * gap for i, base in enumerate(bases)]


def draw_scatter(report: Report, name: str) -> str | None:
    """Ours against the paper's numbers, a point a cell; None where there is no cell with both."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    points = {
        data: [
            (row.cells[pair], short(row.method))
            for row in rows
            for pair in report.pairs
            if row.cells[pair].difference is not None
        ]
        for data, rows in report.blocks()
    }
    everything = [cell for cells in points.values() for cell, _ in cells]
    if not everything:
        return None
    numbers = [n for cell in everything for n in (cell.paper, cell.mean) if n is not None]
    margin = max(2.0, 0.06 * (max(numbers) - min(numbers)))
    low, high = max(0.0, min(numbers) - margin), min(100.0, max(numbers) + margin)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.4))
        axes = figure.add_axes((0.12, 0.11, 0.85, 0.86))
        axes.grid()
        axes.set_axisbelow(True)
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        for i, (data, cells) in enumerate(points.items()):
            x, y, error = (
                [value or 0.0 for value in column]
                for column in zip(*((c.paper, c.mean, c.sd) for c, _ in cells), strict=True)
            ) if cells else ([], [], [])  # fmt: skip
            colour = f"#fe02{i % LINES:02x}"
            axes.errorbar(x, y, yerr=error, fmt="none", ecolor=colour, elinewidth=1, alpha=0.6)
            axes.plot(x, y, linestyle="none", marker=MARKERS[i % len(MARKERS)], markersize=5,
                      color=colour, alpha=0.85, label=data)  # fmt: skip
            for cell, label in cells if len(everything) <= 8 else []:
                at = (cell.paper or 0.0, cell.mean or 0.0)
                right = at[0] < (low + high) / 2  # of the point there is room for its name
                axes.annotate(label, at, xytext=(7, -9) if right else (-7, 4),
                              ha="left" if right else "right",
                              textcoords="offset points", fontsize=8, color=colour)  # fmt: skip
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
        axes.set_xlabel("the paper's accuracy, %")
        axes.set_ylabel("ours, %")
        axes.legend(loc="upper left", frameon=False, fontsize=8, handletextpad=0.2)
        return _svg(figure, name)


def _svg(figure: Any, name: str) -> str:
    """The figure as an element of a page: nothing in it refers to anything outside."""
    text = io.StringIO()
    with warnings.catch_warnings():  # the page's fonts have glyphs that matplotlib's lack
        warnings.simplefilter("ignore")
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", head)
    svg = f"{head}>{rest}".replace("xlink:href", "href")
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return re.sub("|".join(SENTINELS), lambda found: SENTINELS[found[0]], svg)
