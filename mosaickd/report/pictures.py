"""Sample grids for a page: as they were made, small, and without what a file may do to a reader.

Grids are enlarged and side by side in a run's PNGs; a page shows each one by itself, at the size of
its pixels, and lets the browser enlarge it.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mosaickd.errors import printable
from mosaickd.report.run_files import content
from mosaickd.report.series import CLASSES

#: Bytes of a PNG, pixels of a picture, and pictures in a folder that are looked at.
LARGEST, PIXELS, FILES = 2**25, 2**24, 100_000
#: Pixels that a picture in a page has at most across, and from where on it isn't doubled.
WIDEST, DOUBLED = 1600, 700
QUALITY = 85
NAME = re.compile(r"step(\d{1,15})\.png", re.ASCII)


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


def samples(folder: Path) -> list[tuple[int, str]]:
    """Steps and names of the pictures in a run's folder, in order."""
    found = []
    try:
        with_names = sorted(path.name for path in (folder / "samples").iterdir())[:FILES]
    except (OSError, ValueError):
        return []
    for name in with_names:
        if match := NAME.fullmatch(name):
            found.append((int(match[1]), f"samples/{name}"))
    return sorted(found)


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
    except Exception as error:  # Pillow raises what it likes on bytes that are no picture
        found.broken.append(f"{name}: {printable(str(error) or type(error).__name__, 120)}")
        return []


@lru_cache(maxsize=512)
def _read(folder: Path, name: str, version: tuple[int, ...]) -> tuple[Grid, ...]:
    """Kept, for a page that is built again and again. version: of the file."""
    data = content(folder, name, LARGEST + 1)
    if data is None:
        raise ValueError("no file of this folder")
    if len(data) > LARGEST:
        raise ValueError("too large")
    picture, layout = opened(data)
    return tuple(
        encoded(what, np.ascontiguousarray(pixels).tobytes(), pixels.shape, zoom, classes)
        for what, pixels, zoom, classes in parts(picture, layout)
    )


def opened(data: bytes) -> tuple[np.ndarray, dict[str, Any] | None]:
    """Pixels [H, W, 3] of a PNG, and what it says of them."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.width * image.height > PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels are too many")
        said = image.info.get("mosaickd")
        pixels = np.asarray(image.convert("RGB"))
    try:
        layout = json.loads(said) if isinstance(said, str) else None
    except (ValueError, RecursionError):
        layout = None
    return pixels, layout if isinstance(layout, dict) else None


Part = tuple[
    str, np.ndarray, int, tuple[int, ...]
]  # what, RGBA, pixels of the page a pixel, classes


def parts(pixels: np.ndarray, layout: dict[str, Any] | None) -> list[Part]:
    """The grids of a picture, each without its enlargement and its white frame; where the file
    doesn't say how it is laid out, or says what can't be, the whole as it is."""
    if layout is not None and (found := _parts_as_said(pixels, layout)):
        return found
    zoom = enlargement(pixels)
    return [("", pixels[zoom // 2 :: zoom, zoom // 2 :: zoom], zoom, ())]


def _parts_as_said(pixels: np.ndarray, layout: dict[str, Any]) -> list[Part]:
    names = ("zoom", "padding", "columns")
    zoom, padding, columns = (layout.get(name, 0) for name in names)
    grids = layout.get("grids")
    if not (_between(zoom, 1, 64) and _between(padding, 0, 64) and _between(columns, 1, 1000)):
        return []
    if not isinstance(grids, list) or not 0 < len(grids) <= 8:
        return []
    small = pixels[zoom // 2 :: zoom, zoom // 2 :: zoom]
    found: list[Part] = []
    for grid in grids:
        if not isinstance(grid, dict):
            return []
        what, classes = grid.get("what"), grid.get("classes")
        left, size = grid.get("left", -1), grid.get("size", 0)
        if not (_between(left, 0, PIXELS) and _between(size, 1, 4096) and isinstance(classes, list)
                and 0 < len(classes) <= 10_000
                and all(_between(n, 0, CLASSES) for n in classes)):  # fmt: skip
            return []
        whole = _without_frame(small, left, size, padding, columns, len(classes))
        if whole is None:
            return []
        known = what if what in ("synthetic", "images") else ""
        found.append((known, whole, zoom, tuple(classes)))
    return found


def _between(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _without_frame(
    picture: np.ndarray, left: int, size: int, padding: int, columns: int, count: int
) -> np.ndarray | None:
    """Images one pixel apart, with nothing between: white would glare on a dark page."""
    columns = min(columns, count)
    rows = -(-count // columns)
    if left + columns * (size + padding) > picture.shape[1]:
        return None
    if rows * (size + padding) > picture.shape[0]:
        return None
    whole = np.zeros((rows * (size + 1) - 1, columns * (size + 1) - 1, 4), dtype=np.uint8)
    for i in range(count):
        row, column = divmod(i, columns)
        y, x = padding + row * (size + padding), left + padding + column * (size + padding)
        image = picture[y : y + size, x : x + size]
        if image.shape[:2] != (size, size):
            return None
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
