"""Synthetic images by class, the runs side by side: Figure 6 of the paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mosaickd.figures.drawing import COLUMN, MUTED, Drawing, new_figure, styled
from mosaickd.figures.runs import Chosen, class_names, keep, labels
from mosaickd.report.labels import percent, shown
from mosaickd.report.results import Run
from mosaickd.report.sample_grids import Images, Unreadable, newest

MOST = 6  # runs in a figure


def draw(chosen: Chosen, *, rows: int = 8, columns: int = 4, what: str = "synthetic") -> Drawing:
    """A block of images a run, a row a class that the teacher sees in them.

    rows, columns: at most so many classes, and images of each. Shown are the classes that most
    runs have images of; a place stays empty where a run's grid has no image of that class.
    """
    steps: dict[Run, int] = {}
    grids: dict[Run, Images] = {}

    def problem(run: Run) -> str | None:
        try:
            steps[run], grids[run] = newest(run.folder, what)
        except Unreadable as error:
            return str(error)
        return None

    drawn = keep(chosen, problem)
    first = drawn.runs[0]
    drawn = keep(
        drawn,
        lambda run: (
            None
            if run.dataset == first.dataset
            else f"its classes are those of {run.dataset}, the others' {first.dataset}'s"
        ),
    )
    runs, notes = drawn.runs[:MOST], list(drawn.notes)
    notes += [f"left out: {shown(run.folder)}: {MOST} runs fill it" for run in drawn.runs[MOST:]]
    classes = common(list(map(grids.__getitem__, runs)), rows)
    names = next((found for run in runs if (found := class_names(run))), [])
    called = titles(runs)
    with styled():
        width = COLUMN if len(runs) < 4 else 2 * COLUMN
        side = width / (len(runs) * (columns + 0.4) + 0.8)
        figure = new_figure(side * (len(classes) + 0.4) + 0.6, width)
        axes = figure.subplots(1, len(runs), squeeze=False)[0]
        for place, (axis, run) in enumerate(zip(axes, runs, strict=True)):
            axis.imshow(block(grids[run], classes, columns), interpolation="nearest")
            axis.set_title(called[run], fontsize=7)
            axis.set_xticks([])
            size = grids[run].pixels.shape[1] + 1
            where = [size * (i + 0.5) for i in range(len(classes))]
            shown_names = [names[c] if c < len(names) else str(c) for c in classes]
            axis.set_yticks(where, shown_names if place == 0 else [])
            axis.tick_params(length=0, pad=2)
            axis.set_xlabel(percent(run.last) if run.last is not None else "", color=MUTED)
            for spine in axis.spines.values():
                spine.set_visible(False)
    numbers = {
        "classes": [{"index": c, "name": names[c] if c < len(names) else None} for c in classes],
        "runs": [
            {
                "run": shown(run.folder),
                "label": called[run],
                "step": steps[run],
                "accuracy": run.last,
                "images": len(grids[run].classes),
                "images_by_class": {str(c): n for c, n in sorted(counts(grids[run]).items())},
            }
            for run in runs
        ],
    }  # fmt: skip
    return Drawing(figure, numbers, notes)


def counts(grid: Images) -> Counter[int]:
    """How many images of each class there are."""
    return Counter(grid.classes)


def common(grids: Sequence[Images], most: int) -> list[int]:
    """The classes that the runs have the most images of, in the run that has the fewest; sorted."""
    found = [counts(grid) for grid in grids]
    classes = sorted(set().union(*found))
    fewest = {c: min(count[c] for count in found) for c in classes}
    total = {c: sum(count[c] for count in found) for c in classes}
    return sorted(sorted(classes, key=lambda c: (-fewest[c], -total[c], c))[:most])


def block(grid: Images, classes: Sequence[int], columns: int) -> np.ndarray:
    """White between the images, and where there is none. -> uint8 [H, W, 3]."""
    size = grid.pixels.shape[1]
    pixels = np.full((len(classes) * (size + 1), columns * (size + 1), 3), 255, np.uint8)
    for row, wanted in enumerate(classes):
        places = [i for i, c in enumerate(grid.classes) if c == wanted][:columns]
        for column, i in enumerate(places):
            top, left = row * (size + 1), column * (size + 1)
            pixels[top : top + size, left : left + size] = grid.pixels[i]
    return pixels


def titles(runs: Sequence[Run]) -> dict[Run, str]:
    """What tells the runs apart."""
    words = labels(runs)
    several = Counter(words.values())
    return {
        run: text.replace(" discriminator", "\ndiscriminator").replace("without ", "without\n")
        + (f", seed {run.seed}" if several[text] > 1 else "")
        for run, text in words.items()
    }
