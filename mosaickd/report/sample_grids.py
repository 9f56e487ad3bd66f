"""The sample grids that a run has kept, taken apart into images, and not believed.

A PNG of a run's says what it shows (`mosaickd/engine/samples.py`); those of older versions don't.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mosaickd.report.contents import content
from mosaickd.report.page.series import CLASSES

#: Bytes of a PNG, pixels of a picture, and pictures in a folder that are looked at.
LARGEST, PIXELS, FILES = 2**25, 2**24, 100_000
NAME = re.compile(r"step(\d{1,15})\.png", re.ASCII)


class Unreadable(ValueError):
    """A file that is no sample grid, or that doesn't say what it shows."""


@dataclass(frozen=True)
class Images:
    """One of the grids in a picture. pixels: uint8 [n, H, W, 3]; classes: [n], the teacher's."""

    what: str  # synthetic, images or, of another version, empty
    pixels: np.ndarray
    classes: tuple[int, ...]
    zoom: int  # how many times each pixel was repeated in the picture
    columns: int  # that a row has there


@dataclass(frozen=True)
class Picture:
    """A PNG. grids: as it says they are; none where it doesn't, or says what can't be."""

    pixels: np.ndarray  # uint8 [H, W, 3]
    grids: tuple[Images, ...]


def samples(folder: Path) -> list[tuple[int, str]]:
    """Steps and names of the pictures in a run's folder, in order."""
    found = []
    try:
        names = sorted(path.name for path in (folder / "samples").iterdir())[:FILES]
    except (OSError, ValueError):
        return []
    for name in names:
        if match := NAME.fullmatch(name):
            found.append((int(match[1]), f"samples/{name}"))
    return sorted(found)


def read(folder: Path, name: str) -> Picture:
    """A picture of the run in `folder`. Raises Unreadable."""
    from PIL import Image

    data = content(folder, name, LARGEST + 1)
    if data is None:
        raise Unreadable("no file of this folder")
    if len(data) > LARGEST:
        raise Unreadable("too large")
    try:
        with warnings.catch_warnings():  # what is too large is said below
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=["PNG"])
        with image:
            if image.width * image.height > PIXELS:
                raise Unreadable(f"{image.width}x{image.height} pixels are too many")
            said = image.info.get("mosaickd")
            pixels = np.asarray(image.convert("RGB"))
    except Unreadable:
        raise
    except Exception as error:  # Pillow raises what it likes on bytes that are no picture
        raise Unreadable(f"no picture ({type(error).__name__})") from error
    try:
        layout = json.loads(said) if isinstance(said, str) else None
    except (ValueError, RecursionError):
        layout = None
    return Picture(pixels, _grids(pixels, layout) if isinstance(layout, dict) else ())


def newest(folder: Path, what: str = "synthetic") -> tuple[int, Images]:
    """The step of a run's last evaluation, and what was drawn then. Raises Unreadable."""
    found = samples(folder)
    if not found:
        raise Unreadable("it has no samples")
    step, name = found[-1]
    return step, of_kind(folder, name, what)


def of_kind(folder: Path, name: str, what: str = "synthetic") -> Images:
    """The images of one kind in a picture. Raises Unreadable, which names the file."""
    try:
        picture = read(folder, name)
    except Unreadable as error:
        raise Unreadable(f"{name}: {error}") from error
    if not picture.grids:
        raise Unreadable(f"{name} doesn't say what it shows, as older versions' don't")
    for grid in picture.grids:
        if grid.what == what:
            return grid
    raise Unreadable(f"{name} has no {what} images")


def _grids(pixels: np.ndarray, layout: dict[str, Any]) -> tuple[Images, ...]:
    names = ("zoom", "padding", "columns")
    zoom, padding, columns = (layout.get(name, 0) for name in names)
    grids = layout.get("grids")
    if not (_between(zoom, 1, 64) and _between(padding, 0, 64) and _between(columns, 1, 1000)):
        return ()
    if not isinstance(grids, list) or not 0 < len(grids) <= 8:
        return ()
    small = pixels[zoom // 2 :: zoom, zoom // 2 :: zoom]
    found = []
    for grid in grids:
        if not isinstance(grid, dict):
            return ()
        what, classes = grid.get("what"), grid.get("classes")
        left, size = grid.get("left", -1), grid.get("size", 0)
        if not (_between(left, 0, PIXELS) and _between(size, 1, 4096) and isinstance(classes, list)
                and 0 < len(classes) <= 10_000
                and all(_between(n, 0, CLASSES) for n in classes)):  # fmt: skip
            return ()
        images = _cut(small, left, size, padding, columns, len(classes))
        if images is None:
            return ()
        known = what if what in ("synthetic", "images") else ""
        found.append(Images(known, images, tuple(classes), zoom, columns))
    return tuple(found)


def _between(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _cut(
    picture: np.ndarray, left: int, size: int, padding: int, columns: int, count: int
) -> np.ndarray | None:
    """-> [count, size, size, 3]; None where the picture has no room for them."""
    if count == 1:
        padding = 0  # how torchvision draws a grid of one
    columns = min(columns, count)
    if left + columns * (size + padding) > picture.shape[1]:
        return None
    if -(-count // columns) * (size + padding) > picture.shape[0]:
        return None
    images = np.zeros((count, size, size, 3), dtype=np.uint8)
    for i in range(count):
        row, column = divmod(i, columns)
        y, x = padding + row * (size + padding), left + padding + column * (size + padding)
        image = picture[y : y + size, x : x + size]
        if image.shape[:2] != (size, size):
            return None
        images[i] = image
    return images
