"""Accuracy over training by method: lines are means over seeds, bands reach from seed to seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mosaickd.analysis.figures.ablations import draw_teacher
from mosaickd.analysis.figures.drawing import COLOURS, COLUMN, DASHES, Drawing, draw_legend
from mosaickd.analysis.figures.runs import Run, drawable, label_runs, log
from mosaickd.metric_names import STEP, TOP1

MOST_LINES = len(COLOURS)


def draw(runs: Sequence[Run]) -> Drawing:
    """Draw a line for each kind of run; a panel for each data set and pair of models."""
    curves: list[pd.Series] = []

    def problem(run: Run) -> str | None:
        curve = accuracy_curve(run)
        if curve.empty:
            return "no evaluation in its metrics.jsonl"
        curves.append(curve)
        return None

    runs = drawable(runs, problem)
    frame = pd.DataFrame({"run": runs, "curve": curves, "panel": [run.models for run in runs]})
    frame["label"] = frame.groupby("panel")["run"].transform(lambda same: label_runs([*same]))
    frame["last"] = [curve.iloc[-1] for curve in curves]
    frame["last"] = frame.groupby(["panel", "label"])["last"].transform("mean")
    frame = frame.sort_values("last", ascending=False, kind="stable")
    panels = list(frame.groupby("panel"))
    figure = Figure(figsize=(COLUMN, 2.1 * len(panels)))
    plots = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    lines: list[dict[str, Any]] = []
    for axes, (panel, members) in zip(plots, panels, strict=True):
        axes.grid(axis="y")
        for i, (label, same) in enumerate(members.groupby("label", sort=False)):
            if i >= MOST_LINES:
                log.warning("left out of the panel %s: %s, below the best %d", panel, label, i)
                continue
            line = summarize_curves(list(same["curve"]))
            seeds = f" ({len(same)} seeds)" if len(same) > 1 else ""
            axes.plot(line.index, line["mean"], color=COLOURS[i], linestyle=DASHES[i // 2],
                      label=f"{label}{seeds}", marker="o" if len(line) == 1 else "",
                      markersize=3)  # fmt: skip
            if seeds:
                axes.fill_between(line.index, line["min"], line["max"], color=COLOURS[i],
                                  alpha=0.18, linewidth=0)  # fmt: skip
            lines += [
                {"panel": panel, "line": label, "run": str(run.run_dir.path),
                 "seed": run.result.seed, "setting": run.setting,
                 "curve": [[step, accuracy] for step, accuracy in curve.items()]}
                for run, curve in zip(same["run"], same["curve"], strict=True)
            ]  # fmt: skip
        draw_teacher(axes, list(members["run"]))
        axes.set_xlim(0, 100)
        axes.set_xlabel("training done, %", labelpad=1)
        axes.set_ylabel("accuracy, %")
        if len(panels) > 1:
            axes.set_title(panel)
        draw_legend(axes, figure)
    return Drawing(figure, {"lines": lines})


def accuracy_curve(run: Run) -> pd.Series:
    """Return the accuracy in percent at each evaluation, by step."""
    records = run.run_dir.read_metrics()
    points = {record[STEP]: record[TOP1] for record in records if TOP1 in record}
    return pd.Series(points, dtype=float)


def summarize_curves(curves: Sequence[pd.Series]) -> pd.DataFrame:
    """Return mean, min and max of several curves by the share of the training done, in percent.

    Between its evaluations a curve is interpolated; before the first one of any there is nothing.
    """
    shares = [pd.Series(curve.values, (100 * curve.index / curve.index[-1]).round(6))
              for curve in curves]  # fmt: skip
    table = pd.concat(shares, axis=1).sort_index().interpolate("index", limit_area="inside")
    return table.dropna().agg(["mean", "min", "max"], axis=1)
