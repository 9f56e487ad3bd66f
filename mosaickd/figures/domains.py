"""How far apart the domains are by patch size: the observation that MosaicKD rests on.

Images of different domains differ as wholes and share small patterns. Measured is the Fréchet
distance (Heusel et al., 2017) between the features that the run's teacher has of patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mosaickd.errors import UserError
from mosaickd.figures.drawing import COLOURS, MARKERS, MUTED, Drawing, legend, new_figure, styled
from mosaickd.figures.runs import Chosen, number, only_one, section
from mosaickd.report.labels import shown
from mosaickd.report.results import Run

#: A covariance of D features wants more images than that; ours have 64 to 512.
FEWEST = 100
PAIRS = (("domain", "ood"), ("domain", "synthetic"), ("ood", "synthetic"))


def draw(
    chosen: Chosen,
    *,
    sizes: Sequence[int] = (),
    images: int = 2000,
    device: str = "auto",
    allow_targets: Sequence[str] = (),
) -> Drawing:
    """Of the first run. sizes: of the patches, in pixels; none: a few up to the whole image.

    images: at most so many of each domain, one patch of each.
    """
    from mosaickd.loaded_run import LoadedRun  # imports torch

    run, notes = only_one(chosen)
    revived = LoadedRun(run.folder, device=device, allow_targets=allow_targets)
    pools = {
        "domain": revived.domain(2 * images),
        "ood": revived.ood(images),
        "synthetic": revived.synthetic(images),
    }
    side = pools["domain"].shape[-1]
    if wrong := [size for size in sizes if not 1 <= size <= side]:
        raise UserError(f"--patches: {wrong[0]} is no patch of images of {side}x{side} pixels")
    sizes = sorted(set(sizes)) or [s for s in (2, 4, 8, 16, 32, 64, 128) if s < side] + [side]
    # Two halves of the domain: how far apart samples of one and the same domain come out.
    pools["domain"], pools["domain again"] = pools["domain"][::2], pools["domain"][1::2]
    count = min(map(len, pools.values()))
    if count < FEWEST:
        few = min(pools, key=lambda name: len(pools[name]))
        raise UserError(
            f"{shown(run.folder)}: {count} images of {few}: at least {FEWEST} are needed"
        )
    names = called(run) | {"domain again": "itself"}
    lines: dict[str, list[float]] = {}
    rng = np.random.default_rng(run.seed)
    for size in sizes:
        features = {
            name: revived.embed(crops(pool[:count], size, rng))[0] for name, pool in pools.items()
        }
        for one, other in (*PAIRS, ("domain", "domain again")):
            label = f"{names[one]} – {names[other]}"
            lines.setdefault(label, []).append(frechet_distance(features[one], features[other]))
    with styled():
        figure = new_figure(2.1)
        axes = figure.subplots()
        axes.grid(axis="y")
        for i, (label, distances) in enumerate(lines.items()):
            floor = label.endswith("itself")
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
        legend(axes, figure)
    numbers = {
        "run": shown(run.folder),
        "features": f"the penultimate ones of the teacher {run.teacher}, of patches enlarged to "
        f"{side} pixels",
        "patches": count,
        "sizes": list(sizes),
        "distances": lines,
        "local": number(section(run, "method").get("local")),
    }
    return Drawing(figure, numbers, notes)


def called(run: Run) -> dict[str, str]:
    """The kinds of images by the names of their sets, also where both are one set."""
    ood = run.ood or "OOD"
    both = ood == run.dataset
    return {
        "domain": f"{run.dataset} (test)" if both else run.dataset,
        "ood": f"{ood} (train)" if both else ood,
        "synthetic": "synthetic",
    }


def crops(images: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """One square patch of each image, anywhere in it. uint8 [n, 3, H, W] -> [n, 3, size, size]."""
    n, _, height, width = images.shape
    tops = rng.integers(0, height - size + 1, n)
    lefts = rng.integers(0, width - size + 1, n)
    cut = [images[i, :, t : t + size, left : left + size]
           for i, (t, left) in enumerate(zip(tops, lefts, strict=True))]  # fmt: skip
    return np.stack(cut)


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Between two normal distributions with these samples' means and covariances.

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al., 2017, Eq. 6). [n, D], [m, D].
    """
    m1, m2 = one.mean(0), other.mean(0)
    c1, c2 = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # C1 C2 has the eigenvalues of the symmetric R C2 R with R = C1^(1/2), which are not negative.
    values, vectors = np.linalg.eigh(np.atleast_2d(c1))
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ np.atleast_2d(c2) @ root).clip(0)
    trace = np.trace(np.atleast_2d(c1)) + np.trace(np.atleast_2d(c2)) - 2 * np.sqrt(shared).sum()
    return float(((m1 - m2) ** 2).sum() + max(trace, 0.0))
