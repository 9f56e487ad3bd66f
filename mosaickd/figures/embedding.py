"""Where the teacher sees in-domain, OOD and synthetic images: its features in a plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mosaickd.errors import UserError
from mosaickd.figures.domains import called
from mosaickd.figures.drawing import COLOURS, COLUMN, MARKERS, Drawing, new_figure, styled
from mosaickd.figures.runs import Chosen, only_one
from mosaickd.report.labels import shown

Projection = Literal["tsne", "pca"]


def draw(
    chosen: Chosen,
    *,
    projection: Projection = "tsne",
    images: int = 500,
    device: str = "auto",
    allow_targets: Sequence[str] = (),
) -> Drawing:
    """Of the first run. images: at most so many of each kind."""
    from mosaickd.loaded_run import LoadedRun  # imports torch

    run, notes = only_one(chosen)
    revived = LoadedRun(run.folder, device=device, allow_targets=allow_targets)
    names, pools = called(run), {}
    kinds = {"domain": revived.domain, "ood": revived.ood, "synthetic": revived.synthetic}
    for which, images_of in kinds.items():
        try:
            pools[names[which]] = images_of(images)
        except UserError as error:  # a method may do without
            notes.append(str(error))
    embedded = {name: revived.embed(pool) for name, pool in pools.items()}
    features = np.concatenate([features for features, _ in embedded.values()])
    placed = project(features, projection, run.seed)
    points = np.split(placed, np.cumsum([len(f) for f, _ in embedded.values()])[:-1])
    with styled():
        figure = new_figure(COLUMN)
        axes = figure.subplots()
        for name, where in zip(embedded, points, strict=True):
            i = [*names.values()].index(name)
            axes.scatter(*where.T, s=5, marker=MARKERS[i], color=COLOURS[(1, 2, 0)[i]],
                         alpha=0.6, linewidths=0, label=name, rasterized=True)  # fmt: skip
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, markerscale=2, handletextpad=0.1)
    numbers = {
        "run": shown(run.folder),
        "projection": projection,
        "features": f"the teacher {run.teacher}'s penultimate ones",
        "points": {
            name: {"at": np.round(where, 3).tolist(), "class": classes.tolist()}
            for (name, (_, classes)), where in zip(embedded.items(), points, strict=True)
        },
    }
    return Drawing(figure, numbers, notes)


def project(features: np.ndarray, projection: Projection, seed: int) -> np.ndarray:
    """[n, D] -> [n, 2]. Raises UserError where scikit-learn is missing."""
    if projection == "pca":
        centred = features - features.mean(0)
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        return centred @ axes[:2].T
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UserError(
            't-SNE needs scikit-learn: pip install "mosaickd[figures]", or --projection pca'
        ) from error
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
