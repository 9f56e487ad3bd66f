"""Synthetic images by class, the runs side by side: Figure 6 of the paper."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mosaickd.analysis.figures.drawing import COLUMN, MUTED, Drawing, hide_frame
from mosaickd.analysis.figures.grids import SampleGrid, read_grid
from mosaickd.analysis.figures.runs import Run, drawable, label_runs
from mosaickd.analysis.labels import percent

MOST_RUNS = 6


def draw(
    runs: Sequence[Run], *, rows: int = 8, columns: int = 4, what: str = "synthetic"
) -> Drawing:
    """Draw a block of images a run, from its last evaluation; a row a class that the teacher sees.

    rows, columns: at most so many classes, and images of each. Shown are the classes that most
    runs have images of; a place stays empty where a run has no image of that class.
    """
    grids: list[SampleGrid] = []
    dataset = runs[0].result.dataset

    def problem(run: Run) -> str | None:
        if run.result.dataset != dataset:
            return f"its classes are those of {run.result.dataset}, the first run's {dataset}'s"
        if len(grids) == MOST_RUNS:
            return f"{MOST_RUNS} runs fill the figure"
        if not (paths := run.run_dir.sample_paths()):
            return "it has no samples"
        grids.append(read_grid(paths[-1], what))
        return None

    runs = drawable(runs, problem)
    classes = shared_classes(grids, rows)
    per_class = next(filter(None, (run.run_dir.read_per_class() for run in runs)), [])
    names = [str(per_class[c]["class"]) if c < len(per_class) else str(c) for c in classes]
    labels = label_runs(runs)
    titles = [f"{label}, seed {run.result.seed}" if labels.count(label) > 1 else label
              for run, label in zip(runs, labels, strict=True)]  # fmt: skip

    width = COLUMN if len(runs) < 4 else 2 * COLUMN
    side = width / (len(runs) * (columns + 0.4) + 0.8)  # inches of an image
    figure = Figure(figsize=(width, side * (len(classes) + 0.4) + 0.7))
    plots = figure.subplots(1, len(runs), squeeze=False)[0]
    for axes, grid, run, title in zip(plots, grids, runs, titles, strict=True):
        hide_frame(axes)
        axes.imshow(arrange(grid, classes, columns), interpolation="nearest")
        lines = re.sub(" (?=discriminator)|(?<=without) |, (?=seed)", "\n", title)
        axes.set_title(lines, fontsize=7)
        if run.result.last is not None:
            axes.set_xlabel(percent(run.result.last), color=MUTED)
    stride = grids[0].images.shape[1] + 1
    plots[0].set_yticks([stride * (i + 0.5) for i in range(len(classes))],
                        [name[:24] for name in names])  # fmt: skip
    plots[0].tick_params(length=0, pad=2)
    numbers = {
        "classes": [{"index": c, "name": name} for c, name in zip(classes, names, strict=True)],
        "runs": [
            {"run": str(run.run_dir.path), "label": title, "step": grid.step,
             "accuracy": run.result.last, "images": len(grid.classes),
             "images_by_class": {str(c): n for c, n in sorted(Counter(grid.classes).items())}}
            for run, title, grid in zip(runs, titles, grids, strict=True)
        ],
    }  # fmt: skip
    return Drawing(figure, numbers)


def shared_classes(grids: Sequence[SampleGrid], most: int) -> list[int]:
    """Return the classes with most images in the run that has the fewest of them, sorted."""
    counts = [Counter(grid.classes) for grid in grids]
    classes = sorted(set().union(*counts))
    fewest = {c: min(count[c] for count in counts) for c in classes}
    total = {c: sum(count[c] for count in counts) for c in classes}
    return sorted(sorted(classes, key=lambda c: (-fewest[c], -total[c], c))[:most])


def arrange(grid: SampleGrid, classes: Sequence[int], columns: int) -> np.ndarray:
    """Return a picture with a row of images a class, white where there is none: uint8 [H, W, 3]."""
    size = grid.images.shape[1]
    picture = np.full((len(classes), columns, size + 1, size + 1, 3), 255, np.uint8)
    for row, wanted in enumerate(classes):
        places = [i for i, c in enumerate(grid.classes) if c == wanted][:columns]
        picture[row, : len(places), :size, :size] = grid.images[places]
    height, width = len(classes) * (size + 1), columns * (size + 1)
    return picture.swapaxes(1, 2).reshape(height, width, 3)
