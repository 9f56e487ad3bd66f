"""Image files: finding them, decoding whatever they hold to RGB, in threads, with a bar.

Without torch, so that `python -m mosaickd.data.prepare` and its workers start at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
PROGRESS_AFTER = 2.0  # seconds before a progress bar appears


def image_files(folder: str | os.PathLike[str]) -> list[str]:
    """All image files under a folder, at any depth, in sorted order; hidden ones are left out."""
    files: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            os.path.join(place, name)
            for name in sorted(names)
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
        ]
    return files


def to_rgb(data: bytes, notes: Counter[str]) -> Image.Image:
    """Decode an image file's bytes, upright and in RGB; conversions are counted in notes.

    Raises whatever Pillow raises, which for damaged bytes is nearly anything.
    """
    picture: Image.Image = Image.open(BytesIO(data))
    if picture.format in ("JPEG", "TIFF"):
        picture = ImageOps.exif_transpose(picture)  # cameras store rotation as a tag
    if picture.mode != "RGB":
        picture = _mode_to_rgb(picture, notes)
    return picture


def fit(picture: Image.Image, size: int, notes: Counter[str]) -> Image.Image:
    """Scale the shorter side to size and crop the centre; counted in notes if needed."""
    if picture.size == (size, size):
        return picture
    notes["of another size"] += 1
    # ImageOps.fit scales and crops in one step; its box filter averages what a pixel covers, so
    # shrinking does not alias.
    enlarge = min(picture.size) < size
    method = Image.Resampling.BILINEAR if enlarge else Image.Resampling.BOX
    return ImageOps.fit(picture, (size, size), method=method)


def _mode_to_rgb(picture: Image.Image, notes: Counter[str]) -> Image.Image:
    mode = picture.mode
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        notes["with transparency (put on black)"] += 1
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, picture).convert("RGB")
    if mode.startswith("I"):
        # Pillow's own conversion clips 16-bit values at 255, which turns most pictures white.
        notes["16-bit grey"] += 1
        values = np.asarray(picture).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if mode in ("1", "L"):
        notes["grey"] += 1
    elif mode == "P":
        notes["palette"] += 1
    else:
        notes[f"in {mode}"] += 1
    return picture.convert("RGB")


def in_threads(
    work: Callable[[range], Counter[str]], stretches: Sequence[range], title: str
) -> Counter[str]:
    """Run work over all stretches and add up its notes; a bar if slow and someone is watching."""
    total: Counter[str] = Counter()
    with ExitStack() as stack:
        advance = stack.enter_context(progress(title, len(stretches)))
        pool = ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 1))
        # On an error, or Ctrl-C, what has not begun is dropped instead of waited for.
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        futures = [pool.submit(work, stretch) for stretch in stretches]
        for done, future in enumerate(futures, start=1):
            total += future.result()
            advance(done)
    return total


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """-> advance(done), which shows a bar if the work is slow and someone is watching."""
    began = time.monotonic()
    show: Callable[[int], None] | None = None
    with ExitStack() as stack:

        def advance(done: int) -> None:
            nonlocal show
            if show is not None:
                show(done)
            elif time.monotonic() - began > PROGRESS_AFTER and sys.stderr.isatty():
                show = _bar(stack, title, total)
                show(done)

        yield advance


def _bar(stack: ExitStack, title: str, total: int) -> Callable[[int], None]:
    from rich.console import Console
    from rich.progress import Progress

    bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
    task = bar.add_task(title, total=total)
    return lambda done: bar.update(task, completed=done)
