"""The sample grids that a run has kept, cut into images again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mosaickd.report.words import shown

PIXELS = 2**26  # of a grid; ours have some million
BYTES = 2**27


class Unreadable(Exception):
    """A file that is no sample grid, or that doesn't say what it shows."""


@dataclass(frozen=True)
class SampleGrid:
    """What one evaluation has drawn. images: uint8 [n, H, W, 3]; classes: [n], the teacher's."""

    step: int
    images: Any
    classes: list[int]


def grids(folder: Path) -> list[Path]:
    """A run's, in the order of their steps."""
    return sorted(path for path in (folder / "samples").glob("step*.png") if path.is_file())


def read(path: Path, what: str = "synthetic") -> SampleGrid:
    """The images of one kind in it. Raises Unreadable."""
    from PIL import Image

    try:
        if path.stat().st_size > BYTES:
            raise Unreadable(f"{shown(path)}: too large for a sample grid")
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > PIXELS:
                raise Unreadable(f"{shown(path)}: too large for a sample grid")
            said = getattr(image, "text", {}).get("mosaickd")
            if said is None:
                raise Unreadable(
                    f"{shown(path)}: doesn't say what it shows, as older versions' grids don't"
                )
            pixels = np.asarray(image.convert("RGB"))
        layout = json.loads(said)
        return _cut(pixels, layout, what)
    except Unreadable:
        raise
    except Exception as error:  # of a file that holds anything
        raise Unreadable(f"{shown(path)}: no sample grid ({type(error).__name__})") from error


def _cut(pixels: Any, layout: dict[str, Any], what: str) -> SampleGrid:
    found = [grid for grid in layout["grids"] if grid["what"] == what]
    if not found:
        raise Unreadable(f"no {what} images in the sample grids")
    (grid,) = found
    zoom, padding, columns = layout["zoom"], layout["padding"], layout["columns"]
    size, classes = grid["size"], grid["classes"]
    small = pixels[zoom // 2 :: zoom, zoom // 2 :: zoom]
    if len(classes) == 1:
        padding = 0  # how torchvision draws a grid of one
    images = np.zeros((len(classes), size, size, 3), np.uint8)
    for i in range(len(classes)):
        top = padding + (i // columns) * (size + padding)
        left = grid["left"] + padding + (i % columns) * (size + padding)
        images[i] = small[top : top + size, left : left + size]
    return SampleGrid(int(layout["step"]), images, [int(c) for c in classes])


def newest(folder: Path, what: str = "synthetic") -> SampleGrid:
    """Of a run's last evaluation. Raises Unreadable, which says what is wrong."""
    paths = grids(folder)
    if not paths:
        raise Unreadable("it has no samples")
    return read(paths[-1], what)
