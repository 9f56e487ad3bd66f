"""How far apart the domains are by patch size: the observation that MosaicKD rests on.

Images of different domains differ as wholes and share small patterns. What is measured is the
Fréchet distance (Heusel et al., 2017) between the features that the run's teacher has of patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mosaickd.analysis.figures.drawing import COLOURS, COLUMN, MARKERS, MUTED, Drawing, draw_legend
from mosaickd.analysis.figures.runs import Run
from mosaickd.errors import UserError

#: uint8 images [n, 3, H, W] -> a teacher's features [n, D], and its classes [n].
Embed = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

#: A covariance of D features wants more images than that; ours have 64 to 512.
FEWEST = 100
PAIRS = (("domain", "ood"), ("domain", "synthetic"), ("ood", "synthetic"),
         ("domain", "itself"))  # fmt: skip


def draw(
    run: Run, pools: Mapping[str, np.ndarray], embed: Embed, *, sizes: Sequence[int] = ()
) -> Drawing:
    """Draw distances between images of a domain (twice as many), OOD and synthetic ones.

    pools: "domain", "ood" and "synthetic", uint8 [n, 3, H, W]. sizes: of the patches, in pixels;
    by default several up to the whole image. One patch of each image is taken. Raises UserError for
    sizes beyond the image and for fewer than 100 images.
    """
    side = pools["domain"].shape[-1]
    if wrong := [size for size in sizes if size > side]:
        raise UserError(f"--patches: {wrong[0]} is no patch of images of {side}x{side} pixels")
    sizes = sorted(set(sizes)) or [s for s in (2, 4, 8, 16, 32, 64, 128) if s < side] + [side]
    # Two halves of the domain: how far apart samples of one and the same domain come out.
    pools = {**pools, "domain": pools["domain"][::2], "itself": pools["domain"][1::2]}
    count = min(map(len, pools.values()))
    if count < FEWEST:
        few = min(pools, key=lambda name: len(pools[name]))
        raise UserError(
            f"{run.run_dir.path}: {count} images of {few}: at least {FEWEST} are needed"
        )
    names = names_of_pools(run) | {"itself": "itself"}
    lines: dict[str, list[float]] = {f"{names[a]} – {names[b]}": [] for a, b in PAIRS}
    rng = np.random.default_rng(run.result.seed)
    for size in sizes:
        features = {name: embed(crop(pool[:count], size, rng))[0] for name, pool in pools.items()}
        for line, (one, other) in zip(lines.values(), PAIRS, strict=True):
            line.append(frechet_distance(features[one], features[other]))
    figure = Figure(figsize=(COLUMN, 2.1))
    axes = figure.subplots()
    axes.grid(axis="y")
    for i, (label, distances) in enumerate(lines.items()):
        floor = PAIRS[i][1] == "itself"
        axes.plot(sizes, distances, label=label, color=MUTED if floor else COLOURS[i],
                  linestyle=(0, (3, 2)) if floor else "-", marker="" if floor else MARKERS[i],
                  markersize=3.5)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("patch size, pixels")
    axes.set_ylabel("Fréchet distance")
    draw_legend(axes, figure)
    numbers = {
        "run": str(run.run_dir.path),
        "features": f"the penultimate ones of the teacher {run.result.teacher}, of patches "
        f"enlarged to {side} pixels",
        "patches": count,
        "sizes": list(sizes),
        "distances": lines,
        "local": run.section("method").get("local"),
    }
    return Drawing(figure, numbers)


def names_of_pools(run: Run) -> dict[str, str]:
    """Return what the kinds of images are called: their sets' names, also where both are one."""
    dataset, ood = run.result.dataset, run.result.ood or "OOD"
    both = ood == dataset
    return {
        "domain": f"{dataset} (test)" if both else dataset,
        "ood": f"{ood} (train)" if both else ood,
        "synthetic": "synthetic",
    }


def crop(images: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random square patch of each image. uint8 [n, 3, H, W] -> [n, 3, size, size]."""
    n, _, height, width = images.shape
    tops = rng.integers(0, height - size + 1, n)
    lefts = rng.integers(0, width - size + 1, n)
    patches = [image[:, top : top + size, left : left + size]
               for image, top, left in zip(images, tops, lefts, strict=True)]  # fmt: skip
    return np.stack(patches)


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the distance of two normal distributions with these samples' means and covariances.

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al., 2017, Eq. 6). [n, D], [m, D].
    """
    m1, m2 = one.mean(0), other.mean(0)
    c1, c2 = np.atleast_2d(np.cov(one, rowvar=False)), np.atleast_2d(np.cov(other, rowvar=False))
    # C1 C2 has the eigenvalues of the symmetric R C2 R with R = C1^(1/2), which are not negative.
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ c2 @ root).clip(0)
    trace = np.trace(c1) + np.trace(c2) - 2 * np.sqrt(shared).sum()
    return float(((m1 - m2) ** 2).sum() + max(trace, 0.0))
