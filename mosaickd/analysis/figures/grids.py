"""The images in a run's sample pictures, by the layout that each PNG describes.

mosaickd/engine/samples.py writes the pictures, and documents that layout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mosaickd.errors import UserError


class SampleGrid(NamedTuple):
    """Images of one kind at a step. images: uint8 [n, H, W, 3]; classes: [n], the teacher's."""

    step: int
    images: np.ndarray
    classes: list[int]


def read_grid(path: Path, what: str = "synthetic") -> SampleGrid:
    """Read the images of one kind (synthetic, images) from a picture. Raises UserError."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            layout = json.loads(picture.info.get("mosaickd", "null"))
            pixels = np.asarray(picture.convert("RGB"))
        grids = {grid["what"]: grid for grid in layout["grids"]}
        if what not in grids:
            raise UserError(f"{path.name} has no {what} images")
        left, size, classes = (grids[what][name] for name in ("left", "size", "classes"))
        zoom, columns = layout["zoom"], layout["columns"]
        padding = layout["padding"] if len(classes) > 1 else 0  # as torchvision draws one image
        small = pixels[zoom // 2 :: zoom, zoom // 2 :: zoom]
        places = [divmod(i, columns) for i in range(len(classes))]
        corners = [(padding + row * (size + padding), left + padding + column * (size + padding))
                   for row, column in places]  # fmt: skip
        images = np.stack([small[y : y + size, x : x + size] for y, x in corners])
        return SampleGrid(layout["step"], images, classes)
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError,
            Image.DecompressionBombError) as error:  # fmt: skip
        raise UserError(f"{path.name} is no picture of samples ({error})") from error
