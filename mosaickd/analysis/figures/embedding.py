"""Where the teacher sees in-domain, OOD and synthetic images: its features in a plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from mosaickd.analysis.figures.domains import Embed, names_of_pools
from mosaickd.analysis.figures.drawing import COLOURS, COLUMN, MARKERS, Drawing, hide_frame
from mosaickd.analysis.figures.runs import Run
from mosaickd.errors import UserError

Projection = Literal["tsne", "pca"]
#: Of each kind of images: colour and marker.
LOOK = {
    "domain": (COLOURS[1], MARKERS[0]),
    "ood": (COLOURS[2], MARKERS[1]),
    "synthetic": (COLOURS[0], MARKERS[2]),
}


def draw(
    run: Run, pools: Mapping[str, np.ndarray], embed: Embed, *, projection: Projection = "tsne"
) -> Drawing:
    """Draw a point an image. pools: those of "domain", "ood", "synthetic" that there are."""
    names = names_of_pools(run)
    embedded = {kind: embed(images) for kind, images in pools.items()}
    features = np.concatenate([features for features, _ in embedded.values()])
    plane = project(features, projection, run.result.seed)
    points = np.split(plane, np.cumsum([len(images) for images in pools.values()])[:-1])
    figure = Figure(figsize=(COLUMN, COLUMN))
    axes = figure.subplots()
    hide_frame(axes)
    for kind, places in zip(pools, points, strict=True):
        colour, marker = LOOK[kind]
        axes.scatter(places[:, 0], places[:, 1], s=5, marker=marker, color=colour, alpha=0.6,
                     linewidths=0, label=names[kind], rasterized=True)  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    figure.legend(loc="outside lower center", ncols=3, markerscale=2, handletextpad=0.1)
    numbers = {
        "run": str(run.run_dir.path),
        "projection": projection,
        "features": f"the teacher {run.result.teacher}'s penultimate ones",
        "points": {
            names[kind]: {"at": places.astype(float).round(3).tolist(), "class": classes.tolist()}
            for (kind, (_, classes)), places in zip(embedded.items(), points, strict=True)
        },
    }
    return Drawing(figure, numbers)


def project(features: np.ndarray, projection: Projection, seed: int) -> np.ndarray:
    """Return features [n, D] in a plane [n, 2]. Raises UserError where scikit-learn is missing."""
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
