"""Image files' bytes, decoded to RGB whatever they hold, in threads, with a bar.

Files come from anywhere: what is no image must not be run, must not take memory that its size
doesn't justify, and must not end a run. Without torch, so that `python -m mosaickd.data.prepare`
and its workers start at once.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from io import BytesIO
from threading import Condition
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mosaickd.data.broken import Unreadable, escaped

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
#: What is opened, whatever a file's name says. Of Pillow's others some start programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
MAX_PIXELS = 2**28 // 3  # of one picture; where Pillow begins to warn of decompression bombs
MAX_BYTES = 2**28  # of an image file: as many pixels, not compressed
SMALL = 2**20  # pixels: so many in every thread at once are no matter
PROGRESS_AFTER = 2.0  # seconds before a progress bar appears
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
ORIENTATION = 0x0112  # the EXIF tag

# A line for each odd file among a million: of those that matter we say more, and only once.
warnings.filterwarnings("ignore", module=r"PIL\.")

B = TypeVar("B")
R = TypeVar("R")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """An image file's bytes. Raises Unreadable for what is no file, or an impossible one; OSError
    where the disk, or its permissions, are at fault."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            raise
        raise Unreadable("a link that leads nowhere, or a file that is gone") from None
    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
        raise Unreadable("not a regular file")
    if status.st_size > MAX_BYTES:
        raise Unreadable(f"{status.st_size:,} bytes; an image file may have {MAX_BYTES:,}")
    with open(path, "rb") as file:
        return file.read(status.st_size)


def pixels(data: bytes, size: int | None, notes: Counter[str]) -> np.ndarray:
    """An image file's bytes -> uint8 [size, size, 3], or of the image's own size where None.

    Conversions are counted in notes. Raises Unreadable.
    """
    with in_rgb(data, notes) as picture:
        return np.asarray(picture if size is None else fit(picture, size, notes))


@contextmanager
def in_rgb(data: bytes, notes: Counter[str]) -> Iterator[Image.Image]:
    """An image file's bytes as a picture, upright and in RGB; conversions are counted in notes.

    Raises Unreadable. What reads as an image depends on its bytes alone. Work on large pictures
    inside of the context: other threads wait until there is room for theirs.
    """
    with _reasons():
        opened = _open(data)
    with _room.taken(opened.width * opened.height):
        with _reasons():
            opened.load()
            picture = _mode_to_rgb(_upright(opened), notes)
        if _is_first_of_several(opened):
            animated = opened.format in ("GIF", "PNG", "WEBP")
            notes["animated (first frame)" if animated else "of several pages (first)"] += 1
        yield picture


def _open(data: bytes) -> Image.Image:
    """SampleReport at the header: nothing is decoded yet."""
    if not data:
        raise Unreadable("an empty file")
    # Another library may have turned it on: half a picture would be grey below.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        opened = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise Unreadable(f"not an image, or none of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable(f"a decompression bomb: {error}") from None
    if opened.width * opened.height > MAX_PIXELS:
        raise Unreadable(
            f"a decompression bomb, or too large: {opened.width}x{opened.height} are more than "
            f"{MAX_PIXELS:,} pixels"
        )
    return opened


@contextmanager
def _reasons() -> Iterator[None]:
    """Decoders raise nearly anything for damaged bytes: an Unreadable instead, on one line.

    But not for want of memory, which is no fault of the image.
    """
    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        text = re.sub(r" ?<[^<>]* at 0x[0-9a-fA-F]+>", "", " ".join(str(error).split()))
        raise Unreadable(escaped(text)[:200] or type(error).__name__) from error


class Room:
    """So many pixels may be in work at once, in all threads; who needs more waits."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.changed = Condition()

    @contextmanager
    def taken(self, wanted: int) -> Iterator[None]:
        if wanted <= SMALL:
            yield
            return
        with self.changed:
            self.changed.wait_for(lambda: wanted <= self.left)
            self.left -= wanted
        try:
            yield
        finally:
            with self.changed:
                self.left += wanted
                self.changed.notify_all()


_room = Room(MAX_PIXELS)  # at 4 bytes a pixel; 1.7 GB with the copies of a transparent one


def _upright(picture: Image.Image) -> Image.Image:
    """Cameras store rotation as a tag, in EXIF, which any of the formats may hold."""
    try:
        turn = UPRIGHT.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # malformed EXIF is no reason to do without the picture
        return picture
    return picture if turn is None else picture.transpose(turn)


def _is_first_of_several(picture: Image.Image) -> bool:
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # the others are damaged, and not needed
        return True


def _mode_to_rgb(picture: Image.Image, notes: Counter[str]) -> Image.Image:
    mode = picture.mode
    if mode.startswith("I") or mode == "F":
        notes["floating point" if mode == "F" else "16-bit grey"] += 1
        return Image.fromarray(_to_bytes(np.asarray(picture))).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        notes["with transparency (put on black)"] += 1
        picture = (picture.convert("LA") if mode == "La" else picture).convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, picture).convert("RGB")
    if mode == "RGB":
        return picture
    if mode in ("1", "L"):
        notes["grey"] += 1
    elif mode == "P":
        notes["palette"] += 1
    else:
        notes[f"in {mode}"] += 1
    return picture.convert("RGB")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Grey in more than 8 bits -> uint8. Pillow's own conversion clips at 255, which turns most
    pictures white: whole numbers are taken for 0..65535; others for 0..1, 0..255 or 0..65535,
    the first that the largest is in."""
    if values.dtype.kind != "f":
        return (values.clip(0, 65535) >> 8).astype(np.uint8)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    largest = values.max()
    values *= 255.0 if largest <= 1 else 1.0 if largest <= 255 else 1 / 256  # in place: it is large
    return values.clip(0, 255, out=values).round(out=values).astype(np.uint8)


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


def in_threads(
    work: Callable[[range, B], R], batches: Iterable[tuple[range, B]], title: str, total: int
) -> list[R]:
    """What work(indices, of_batch) returns, in the order of the batches, which are taken a few
    ahead. A bar, of `total` indices, if it is slow and someone is watching."""
    results: list[R] = []
    threads = min(16, (os.cpu_count() or 1) + 1)
    with ExitStack() as stack:
        advance = stack.enter_context(progress(title, total))
        pool = ThreadPoolExecutor(max_workers=threads)
        # On an error, or Ctrl-C, what has not begun is dropped instead of waited for.
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        ahead: deque[tuple[range, Future[R]]] = deque()

        def take_first() -> None:
            indices, future = ahead.popleft()
            results.append(future.result())
            advance(indices.stop)

        for indices, of_batch in batches:
            ahead.append((indices, pool.submit(work, indices, of_batch)))
            if len(ahead) > 2 * threads:
                take_first()
        while ahead:
            take_first()
    return results


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
            elif time.monotonic() - began > PROGRESS_AFTER:
                show = stack.enter_context(counting(title, total))
                show(done)

        yield advance


@contextmanager
def _on_stderr(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """-> advance(done), with a bar where someone is watching."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


#: How a bar is shown. A program that draws on the terminal itself puts its own in its place: two
#: at once would write over each other.
counting: Callable[[str, int], AbstractContextManager[Callable[[int], None]]] = _on_stderr
