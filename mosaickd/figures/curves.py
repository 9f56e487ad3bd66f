"""Accuracy over training by method: lines are means over seeds, bands reach from seed to seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from mosaickd.figures.ablations import setting, teach
from mosaickd.figures.drawing import COLOURS, Drawing, legend, new_figure, styled
from mosaickd.figures.runs import Chosen, keep, labels
from mosaickd.report.labels import shown
from mosaickd.report.plots import DASHES, together
from mosaickd.report.results import Run, evaluations

MOST = len(COLOURS)  # lines before it becomes hard to read


def draw(chosen: Chosen) -> Drawing:
    """A line for each kind of run; of several pairs or image sets, one panel each."""
    curves: dict[Run, list[tuple[int, float]]] = {}

    def problem(run: Run) -> str | None:
        curves[run] = evaluations(run.folder)
        return None if curves[run] else "no evaluation in its metrics.jsonl"

    drawn = keep(chosen, problem)
    notes = list(drawn.notes)
    members: dict[str, list[Run]] = {}
    for run in drawn.runs:
        panel = f"{run.dataset}, {run.teacher} to {run.student}" if run.teacher else run.dataset
        members.setdefault(panel, []).append(run)
    panels: dict[str, dict[str, list[Run]]] = {panel: {} for panel in members}
    for panel, runs in members.items():
        for run, label in labels(runs).items():
            panels[panel].setdefault(label, []).append(run)
    lines: list[dict[str, Any]] = []
    with styled():
        figure = new_figure(2.1 * len(panels))
        axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axis, (title, kinds) in zip(axes, panels.items(), strict=True):
            axis.grid(axis="y")
            ordered = sorted(kinds.items(), key=lambda item: -ending(item[1], curves))
            notes += [f"left out of the panel {title}: {name}, below the best {MOST}"
                      for name, _ in ordered[MOST:]]  # fmt: skip
            for i, (name, runs) in enumerate(ordered[:MOST]):
                done, mean, low, high = together([curves[run] for run in runs])
                several = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
                axis.plot(done, mean, color=COLOURS[i], linestyle=DASHES[i // 2],
                          label=f"{name}{several}", marker="o" if len(done) == 1 else "",
                          markersize=3)  # fmt: skip
                if len(runs) > 1:
                    axis.fill_between(done, low, high, color=COLOURS[i], alpha=0.18, linewidth=0)
                lines += [
                    {"panel": title, "line": name, "run": shown(run.folder), "seed": run.seed,
                     "setting": setting(run), "curve": curves[run]}
                    for run in runs
                ]  # fmt: skip
            teach(axis, [run for runs in kinds.values() for run in runs])
            axis.set_xlim(0, 100)
            axis.set_xlabel("training done, %", labelpad=1)
            axis.set_ylabel("accuracy, %")
            if len(panels) > 1:
                axis.set_title(title)
            legend(axis, figure)
    return Drawing(figure, {"lines": lines}, notes)


def ending(runs: list[Run], curves: dict[Run, list[tuple[int, float]]]) -> float:
    """The mean of the last evaluations."""
    return float(np.mean([curves[run][-1][1] for run in runs]))
