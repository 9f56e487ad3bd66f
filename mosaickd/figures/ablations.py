"""What a part of the game is worth: accuracy by patch size, and without one loss at a time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mosaickd.figures.drawing import COLOURS, MARKERS, MUTED, Drawing, legend, new_figure, styled
from mosaickd.figures.runs import (
    LOSSES,
    Chosen,
    keep,
    learned_from,
    missing_losses,
    otherwise,
    patch_size,
    section,
)
from mosaickd.report.labels import percent, shown
from mosaickd.report.results import Run

#: Bars of the ablation, by what is left out.
NAMES: dict[tuple[str, ...], str] = {(): "all losses", **{(name,): f"no {name}" for name in LOSSES}}


def draw_patch(chosen: Chosen, *, evaluation: str = "last") -> Drawing:
    """Accuracy against the discriminator's patch size, a line for each domain and pair."""

    def problem(run: Run) -> str | None:
        if run.method != "mosaic":
            return f"method={run.method} has no patches"
        if missing_losses(run):
            return f"it plays without {', '.join(missing_losses(run))}"
        return None if patch_size(run) else "its config.json doesn't say the patch size"

    drawn = keep(chosen, problem)
    notes = list(drawn.notes)
    groups: dict[str, dict[int, list[Run]]] = {}
    for run in drawn.runs:
        groups.setdefault(setting(run), {}).setdefault(patch_size(run) or 0, []).append(run)
    groups = {name: dict(sorted(by_size.items())) for name, by_size in groups.items()}
    with styled():
        figure = new_figure(2.1)
        axes = figure.subplots()
        axes.grid(axis="y")
        ticks: set[int] = set()
        for i, (name, by_size) in enumerate(groups.items()):
            sizes = [*by_size]
            ticks.update(sizes)
            means, spreads = measured(by_size, evaluation)
            axes.errorbar(sizes, means, yerr=spreads, color=COLOURS[i % 8], marker=MARKERS[i % 8],
                          markersize=3.5, capsize=2, elinewidth=0.8, label=name)  # fmt: skip
        teach(axes, drawn.runs)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(ticks), [str(size) for size in sorted(ticks)])
        axes.minorticks_off()
        axes.set_xlabel("patch size, pixels (the largest: the whole image)")
        axes.set_ylabel("accuracy, %")
        if len(groups) > 1:
            legend(axes, figure)
    numbers = {
        "evaluation": evaluation,
        "lines": {name: values(by_size, evaluation) for name, by_size in groups.items()},
    }
    return Drawing(figure, numbers, notes)


def draw_losses(chosen: Chosen, *, evaluation: str = "last") -> Drawing:
    """Accuracy with all losses and without one at a time, as bars; dots are seeds."""
    sizes = [patch_size(run) for run in chosen.runs if run.method == "mosaic"]
    usual = statistics.mode(sizes) if sizes else None

    def problem(run: Run) -> str | None:
        if run.method != "mosaic":
            return f"method={run.method} has other losses"
        if not section(run, "method"):
            return "its config.json doesn't say its losses"
        without = missing_losses(run)
        if len(without) > 1:
            return f"it plays without {' and '.join(without)}: one at a time is drawn"
        if not without and patch_size(run) != usual:
            return f"its discriminator's patches are {patch_size(run)} pixels, the others' {usual}"
        return None

    drawn = keep(chosen, problem)
    notes = list(drawn.notes)
    first = setting(drawn.runs[0])
    for run in drawn.runs:
        if setting(run) != first:
            notes.append(
                f"left out: {shown(run.folder)}: {setting(run)}, where the first is {first}"
            )
    runs = [run for run in drawn.runs if setting(run) == first]
    by_loss: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        by_loss.setdefault(missing_losses(run), []).append(run)
    order = [key for key in NAMES if key in by_loss]
    notes += [f"no run with {NAMES[key]}" for key in NAMES if key not in by_loss]
    with styled():
        figure = new_figure(0.55 + 0.24 * len(order))
        axes = figure.subplots()
        axes.grid(axis="x")
        means, _ = measured({key: by_loss[key] for key in order}, evaluation)
        places = range(len(order))
        colours = [COLOURS[0] if key == () else COLOURS[1] for key in order]
        axes.barh(places, means, height=0.62, color=colours, alpha=0.9)
        for place, key, mean in zip(places, order, means, strict=True):
            seeds = [run.accuracy(evaluation) for run in by_loss[key]]
            if len(seeds) > 1:
                axes.plot(seeds, [place] * len(seeds), "o", markersize=2, color="white",
                          markeredgecolor="black", markeredgewidth=0.4)  # fmt: skip
            axes.annotate(f"{mean:.2f}", (mean, place), xytext=(3, 0), va="center",
                          textcoords="offset points", fontsize=7)  # fmt: skip
        axes.set_yticks(places, [NAMES[key] for key in order])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, max(means) * 1.14)
        axes.set_xlabel("accuracy, %")
    numbers = {
        "evaluation": evaluation,
        "setting": first,
        "bars": values({NAMES[key]: by_loss[key] for key in order}, evaluation),
    }
    return Drawing(figure, numbers, notes)


def setting(run: Run) -> str:
    """What runs of one line have in common: they differ in what is drawn, and in their seeds."""
    ood = f" from {learned_from(run)}" if run.ood else ""
    other = f" ({otherwise(run)})" if otherwise(run) else ""
    return f"{run.dataset}{ood}, {run.teacher} to {run.student}{other}"


def measured(
    groups: Mapping[Any, Sequence[Run]], evaluation: str
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (0 of a single run) of each group's accuracies, in percent."""
    numbers = [[a for r in runs if (a := r.accuracy(evaluation)) is not None]
               for runs in groups.values()]  # fmt: skip
    means = [statistics.fmean(values) for values in numbers]
    return means, [statistics.stdev(values) if len(values) > 1 else 0.0 for values in numbers]


def values(groups: Mapping[Any, Sequence[Run]], evaluation: str) -> dict[str, Any]:
    """By group: the accuracy of each of its runs."""
    return {
        str(key): [
            {"run": shown(run.folder), "seed": run.seed, "accuracy": run.accuracy(evaluation)}
            for run in runs
        ]
        for key, runs in groups.items()
    }


def teach(axes: Any, runs: Sequence[Run]) -> None:
    """The teacher's accuracy as a dashed line, where all runs have one teacher."""
    known = {run.teacher_accuracy for run in runs if run.teacher_accuracy is not None}
    if len(known) == 1:
        (accuracy,) = known
        axes.axhline(accuracy, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.annotate(f"teacher {percent(accuracy)}", (1, accuracy), xytext=(-2, -2), ha="right",
                      va="top", xycoords=("axes fraction", "data"), textcoords="offset points",
                      color=MUTED, fontsize=7)  # fmt: skip
