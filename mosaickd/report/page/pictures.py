"""Sample grids for a page: as they were made, small, and without what a file may do to a reader.

Grids are enlarged and side by side in a run's PNGs; a page shows each one by itself, at the size of
its pixels, and lets the browser enlarge it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mosaickd.errors import printable
from mosaickd.report.sample_grids import read, samples

#: Pixels that a picture in a page has at most across, and from where on it isn't doubled.
WIDEST, DOUBLED = 1600, 700
QUALITY = 85


@dataclass
class Budget:
    """Characters that pictures may still take of a page."""

    left: int

    def takes(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


@dataclass(frozen=True)
class Grid:
    """A picture in a page. what: synthetic, images or, where the PNG doesn't say, empty."""

    what: str
    source: str  # a data: URI
    size: tuple[int, int]  # as it should lie in the page, in pixels
    classes: tuple[int, ...]  # what the teacher takes each image for


@dataclass
class Frames:
    """Sample grids of a run over its steps. of: how many there are in its folder."""

    frames: list[tuple[int, list[Grid]]] = field(default_factory=list)
    fixed: Grid | None = None  # what was the same at each step
    of: int = 0
    broken: list[str] = field(default_factory=list)


def frames(folder: Path, most: int, budget: Budget) -> Frames:
    """At most `most` steps, spread evenly, the last one among them if there is room for one."""
    paths = samples(folder)
    found = Frames(of=len(paths))
    if not paths:
        return found
    newest: Sequence[Grid] = []
    while paths and not newest:  # the last that can be read says how large the others are
        newest = _grids(folder, paths[-1][1], found)
        last = paths.pop()
    cost = sum(len(grid.source) for grid in newest)
    if not newest or not budget.takes(cost):
        return found
    changing = sum(len(grid.source) for grid in newest if grid.what != "images")
    affordable = 1 + budget.left // max(1, changing)
    taken = [(last[0], list(newest))]
    for step, name in evenly(paths, min(most, affordable) - 1):
        grids = _grids(folder, name, found)
        new = sum(len(grid.source) for grid in grids if grid not in newest)
        if grids and budget.takes(new):
            taken.append((step, list(grids)))
    found.frames = sorted(taken, key=lambda frame: frame[0])
    _set_apart(found)
    return found


def evenly(items: Sequence[Any], number: int) -> list[Any]:
    """`number` of them from the first on, the gaps as equal as can be."""
    if number >= len(items):
        return list(items)
    return [items[i * len(items) // number] for i in range(max(0, number))]


def _set_apart(found: Frames) -> None:
    """Real images are the same at each step: they are shown once, and count once."""
    last = [[grid for grid in grids if grid.what == "images"] for _, grids in found.frames]
    if len(last) > 1 and all(len(grids) == 1 and grids[0] == last[0][0] for grids in last):
        found.fixed = last[0][0]
        found.frames = [
            (step, [grid for grid in grids if grid.what != "images"])
            for step, grids in found.frames
        ]


def _grids(folder: Path, name: str, found: Frames) -> Sequence[Grid]:
    """A file's grids. One that can't be read has none, and is named."""
    try:
        status = (folder / name).stat()
        return _read(folder, name, (status.st_mtime_ns, status.st_size, status.st_ino))
    except (OSError, ValueError) as error:
        found.broken.append(f"{name}: {printable(str(error) or type(error).__name__, 120)}")
        return []


@lru_cache(maxsize=512)
def _read(folder: Path, name: str, version: tuple[int, ...]) -> tuple[Grid, ...]:
    """Kept, for a page that is built again and again. version: of the file."""
    picture = read(folder, name)
    if not picture.grids:  # the whole as it is, but for its enlargement
        zoom = enlargement(picture.pixels)
        small = picture.pixels[zoom // 2 :: zoom, zoom // 2 :: zoom]
        return (encoded("", np.ascontiguousarray(small).tobytes(), small.shape, zoom, ()),)
    drawn = [(images, side_by_side(images.pixels, images.columns)) for images in picture.grids]
    return tuple(
        encoded(images.what, whole.tobytes(), whole.shape, images.zoom, images.classes)
        for images, whole in drawn
    )


def side_by_side(images: np.ndarray, columns: int) -> np.ndarray:
    """One pixel apart, with nothing between: white would glare on a dark page. RGBA [H, W, 4]."""
    count, size = len(images), images.shape[1]
    columns = min(columns, count)
    rows = -(-count // columns)
    whole = np.zeros((rows * (size + 1) - 1, columns * (size + 1) - 1, 4), dtype=np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        cell = whole[row * (size + 1) :, column * (size + 1) :][:size, :size]
        cell[..., :3], cell[..., 3] = image, 255
    return whole


def enlargement(pixels: np.ndarray) -> int:
    """How many times each pixel was repeated, as far as can be seen."""
    for zoom in (8, 4, 3, 2):
        height, width = pixels.shape[0] // zoom * zoom, pixels.shape[1] // zoom * zoom
        if (height, width) != pixels.shape[:2] or not height or not width:
            continue
        blocks = pixels.reshape(height // zoom, zoom, width // zoom, zoom, 3)
        if (blocks == blocks[:, :1, :, :1]).all():
            return zoom
    return 1


@lru_cache(maxsize=4)  # real images come again at each step
def encoded(
    what: str, data: bytes, shape: tuple[int, ...], zoom: int, classes: tuple[int, ...]
) -> Grid:
    """As WebP, each pixel twice where that is small: its colours are stored at half the size."""
    from PIL import Image

    height, width = shape[:2]
    image = Image.fromarray(np.frombuffer(data, np.uint8).reshape(shape))
    if max(height, width) > WIDEST:
        image.thumbnail((WIDEST, WIDEST))
    elif max(height, width) <= DOUBLED:
        image = image.resize((2 * width, 2 * height), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=QUALITY)
    source = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Grid(what, source, (width * min(zoom, 3), height * min(zoom, 3)), classes)
