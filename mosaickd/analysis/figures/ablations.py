"""What a part of the game is worth: accuracy by patch size, and without one loss at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mosaickd.analysis.figures import drawing
from mosaickd.analysis.figures.drawing import COLOURS, MARKERS, MUTED, Drawing
from mosaickd.analysis.figures.runs import LOSSES, Run, drawable, log
from mosaickd.analysis.labels import percent

#: Bars of the ablation, by the losses that are left out.
BARS: dict[tuple[str, ...], str] = {(): "all losses", **{(name,): f"no {name}" for name in LOSSES}}


def draw_patch(runs: Sequence[Run], *, evaluation: str = "last") -> Drawing:
    """Draw accuracy against the discriminator's patch size, a line for each setting."""

    def problem(run: Run) -> str | None:
        if run.plays_mosaic and run.missing_losses:
            return f"it plays without {', '.join(run.missing_losses)}"
        return None if run.plays_mosaic else f"method={run.result.method} has no patches"

    runs = drawable(runs, problem)
    frame = accuracies(runs, evaluation, group=[run.patch_size for run in runs])
    lines = list(frame.groupby("setting", sort=False))
    sizes = sorted(set(frame["group"]))
    figure = Figure(figsize=(drawing.COLUMN, 2.1))
    axes = figure.subplots()
    axes.grid(axis="y")
    for i, (name, line) in enumerate(lines):
        groups = line.groupby("group")["accuracy"]
        axes.errorbar(groups.mean().index, groups.mean(), yerr=groups.std().fillna(0.0),
                      color=COLOURS[i % 8], marker=MARKERS[i % 8], markersize=3.5, capsize=2,
                      elinewidth=0.8, label=name)  # fmt: skip
    draw_teacher(axes, runs)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, map(str, sizes))
    axes.minorticks_off()
    axes.set_xlabel("patch size, pixels (the largest: the whole image)")
    axes.set_ylabel("accuracy, %")
    if len(lines) > 1:
        drawing.draw_legend(axes, figure)
    numbers = {name: by_group(line, sizes) for name, line in lines}
    return Drawing(figure, {"evaluation": evaluation, "lines": numbers})


def draw_losses(runs: Sequence[Run], *, evaluation: str = "last") -> Drawing:
    """Draw accuracy with all losses and without one at a time, as bars; dots are seeds."""
    first = max(runs, key=lambda run: (run.plays_mosaic, run.patch_size is not None))

    def problem(run: Run) -> str | None:
        if not run.plays_mosaic:
            return f"method={run.result.method} has other losses"
        if len(run.missing_losses) > 1:
            return f"it plays without {' and '.join(run.missing_losses)}: one at a time is drawn"
        if run.patch_size not in (None, first.patch_size):
            return f"patches of {run.patch_size} pixels, where the first has {first.patch_size}"
        return None if run.setting == first.setting else f"{run.setting}, not {first.setting}"

    runs = drawable(runs, problem)
    frame = accuracies(runs, evaluation, group=[BARS[run.missing_losses] for run in runs])
    means = frame.groupby("group")["accuracy"].mean()
    names = [name for name in BARS.values() if name in means]
    for name in BARS.values():
        if name not in names:
            log.warning("no run with %s", name)
    figure = Figure(figsize=(drawing.COLUMN, 0.55 + 0.24 * len(names)))
    axes = figure.subplots()
    axes.grid(axis="x")
    colours = [COLOURS[0] if name == BARS[()] else COLOURS[1] for name in names]
    axes.barh(names, means[names], height=0.62, color=colours, alpha=0.9)
    several = frame[frame.groupby("group")["seed"].transform("size") > 1]
    axes.plot(several["accuracy"], several["group"], "o", markersize=2, color="white",
              markeredgecolor="black", markeredgewidth=0.4)  # fmt: skip
    for name in names:
        axes.annotate(f"{means[name]:.2f}", (means[name], name), xytext=(3, 0), va="center",
                      textcoords="offset points", fontsize=7)  # fmt: skip
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, max(frame["accuracy"]) * 1.14 or 1.0)
    axes.set_xlabel("accuracy, %")
    numbers = {"evaluation": evaluation, "setting": first.setting, "bars": by_group(frame, names)}
    return Drawing(figure, numbers)


def accuracies(runs: Sequence[Run], evaluation: str, group: Sequence[Any]) -> pd.DataFrame:
    """Return a line a run: run, seed, accuracy in percent, setting, group."""
    lines = [(str(run.run_dir.path), run.result.seed, run.result.accuracy[evaluation], run.setting)
             for run in runs]  # fmt: skip
    frame = pd.DataFrame(lines, columns=["run", "seed", "accuracy", "setting"])
    return frame.astype({"accuracy": float}).assign(group=group)


def by_group(frame: pd.DataFrame, names: Sequence[Any]) -> dict[str, Any]:
    """Return the runs, seeds and accuracies of each group, in the order of `names`."""
    groups = {name: frame[frame["group"] == name] for name in names}
    return {str(name): group[["run", "seed", "accuracy"]].to_dict("records")
            for name, group in groups.items() if len(group)}  # fmt: skip


def draw_teacher(axes: Any, runs: Sequence[Run]) -> None:
    """Draw the teacher's accuracy as a dashed line, where all runs have one teacher."""
    known = {run.result.teacher_accuracy for run in runs if run.result.teacher_accuracy is not None}
    if len(known) == 1:
        (accuracy,) = known
        axes.axhline(accuracy, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.annotate(f"teacher {percent(accuracy)}", (1, accuracy), xytext=(-2, -2), ha="right",
                      va="top", xycoords=("axes fraction", "data"), textcoords="offset points",
                      color=MUTED, fontsize=7)  # fmt: skip
