"""Encoded images to RGB pixels, in threads; what can't be decoded is left out, counted and listed.

Without torch, so that `python -m mosaickd.data.prepare` starts at once.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BytesIO
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mosaickd.errors import UserError, printable

log = logging.getLogger(__name__)

#: What is opened, whatever a file's name says. Of Pillow's others some start programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
CHUNK = 64  # images that a thread decodes at a stretch
MOVED = 4096  # images moved at once
SHOWN = 3  # broken images in a message

#: (place, reason) of each image that can't be used, in the set's order.
Broken = tuple[tuple[str, str], ...]
#: Returns the bytes of an encoded image. Raises Unreadable, or OSError where the disk fails.
Read = Callable[[], bytes]
#: Returns room for uint8 images of a shape.
Allocate = Callable[[tuple[int, ...]], np.ndarray]
#: progress(title, total) is a context in which advance(done) shows how far a long pass is.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Unreadable(ValueError):
    """An image that can't be used; the message says why."""


class Decoded(NamedTuple):
    """images: uint8 [K, 3, H, W]; labels: int64 [K]; broken: (index in the whole set, reason) of
    those that are not among them."""

    images: np.ndarray
    labels: np.ndarray
    broken: list[tuple[int, str]]


@contextmanager
def no_progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show nothing."""
    yield lambda done: None


def allocate_memory(shape: tuple[int, ...]) -> np.ndarray:
    """Return room in memory for uint8 images."""
    return np.empty(shape, dtype=np.uint8)


# -------------------------------------------------------------------------------------- one image


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a file. Raises Unreadable for a link that leads nowhere, OSError for a failing disk."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise Unreadable("a link that leads nowhere, or a file that is gone") from None


def decode_image(data: bytes, notes: Counter[str]) -> Image.Image:
    """Return an encoded image in RGB and upright; count its conversion in `notes`.

    Raises Unreadable.
    """
    if not data:
        raise Unreadable("an empty file")
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
        image.load()
        with suppress(Exception):  # malformed EXIF is no reason to do without the image
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, notes)
    except UnidentifiedImageError:
        raise Unreadable(f"not an image, or none of {', '.join(FORMATS)}") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything for damaged bytes
        raise Unreadable(printable(str(error), 200) or type(error).__name__) from error


def _to_rgb(image: Image.Image, notes: Counter[str]) -> Image.Image:
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        notes["floating point" if mode == "F" else "16-bit grey"] += 1
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        notes["with transparency (put on black)"] += 1
        image = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    if mode == "RGB":
        return image
    notes[{"1": "grey", "L": "grey", "P": "palette"}.get(mode, f"in {mode}")] += 1
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale grey of more than 8 bits to uint8; Pillow's own conversion clips at 255.

    Whole numbers are taken for 0..65535; others for the first of 0..1, 0..255 and 0..65535 that
    the largest is in.
    """
    if values.dtype.kind != "f":
        return (values.clip(0, 65535) >> 8).astype(np.uint8)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    scale = 255.0 if values.max() <= 1 else 1.0 if values.max() <= 255 else 1 / 256
    return (values * scale).clip(0, 255).round().astype(np.uint8)


def fit_image(image: Image.Image, size: int, notes: Counter[str]) -> Image.Image:
    """Scale the shorter side to `size` and crop the centre; count it in `notes` if needed."""
    if image.size == (size, size):
        return image
    notes["of another size"] += 1
    # The box filter averages what a pixel covers, so that shrinking does not alias.
    enlarge = min(image.size) < size
    method = Image.Resampling.BILINEAR if enlarge else Image.Resampling.BOX
    return ImageOps.fit(image, (size, size), method=method)


# ------------------------------------------------------------------------------------ many images


def decode_images(
    reads: Iterable[Read],
    labels: np.ndarray,
    *,
    place: Callable[[int], str],
    image_size: int | None,
    max_broken: float,
    title: str,
    allocate: Allocate = allocate_memory,
    progress: Progress = no_progress,
) -> Decoded:
    """Decode one image for each of `reads` and `labels`, in their order.

    place(i): where the i-th image is, for messages. image_size None keeps the images' own size,
    which must then be the same for all. Conversions are logged once, with counts. Raises UserError
    where a larger share than max_broken can't be decoded, and where the disk fails.
    """
    count, reads = len(labels), iter(reads)
    if image_size is None:
        shape, reads = _first_shape(reads)
    else:
        shape = (image_size, image_size)
    images = allocate((count, 3, *shape))

    def decode_chunk(
        chunk: list[tuple[int, Read]],
    ) -> tuple[Counter[str], list[tuple[int, str]], int]:
        notes: Counter[str] = Counter()
        broken = []
        for index, read in chunk:
            try:
                image = decode_image(read(), notes)
            except Unreadable as error:
                broken.append((index, str(error)))
                continue
            except OSError as error:
                raise UserError(
                    f"cannot read {printable(place(index))}: {error.strerror or error}; the disk "
                    "or its permissions are at fault, not the image"
                ) from error
            if image_size is not None:
                image = fit_image(image, image_size, notes)
            elif image.size != shape[::-1]:
                raise UserError(
                    f"the image {printable(place(index))} is {image.width}x{image.height}, others "
                    f"are {shape[1]}x{shape[0]}; all must have one size"
                )
            images[index] = np.asarray(image).transpose(2, 0, 1)
        return notes, broken, chunk[-1][0] + 1

    notes: Counter[str] = Counter()
    broken: list[tuple[int, str]] = []
    with progress(f"reading {title}", count) as advance:
        chunks = split_chunks(enumerate(reads), CHUNK)
        for chunk_notes, chunk_broken, done in map_in_threads(decode_chunk, chunks):
            notes += chunk_notes
            broken += chunk_broken
            advance(done)
    refuse_too_many(name_broken(broken, place), count, max_broken, title)
    if notes:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(notes.items()))
        log.info("%s: of %d images, converted %s", title, count, kinds)
    good = np.delete(np.arange(count), [index for index, _ in broken])
    for start in range(broken[0][0] if broken else count, len(good), MOVED):
        part = good[start : start + MOVED]
        images[start : start + len(part)] = images[part]
    return Decoded(images[: len(good)], labels[good], broken)


def _first_shape(reads: Iterator[Read]) -> tuple[tuple[int, int], Iterator[Read]]:
    """Return height and width of the first readable image, and all of the reads again."""
    ahead = []
    for read in reads:
        ahead.append(read)
        with suppress(Unreadable):
            width, height = decode_image(read(), Counter()).size
            return (height, width), chain(ahead, reads)
    return (1, 1), iter(ahead)


def split_chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`; the last may be shorter."""
    items = iter(items)
    return iter(lambda: list(islice(items, size)), [])


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Generator[Result, None, None]:
    """Yield function(item) for each item, in order. Items are taken a few ahead."""
    threads = threads or min(16, (os.cpu_count() or 1) + 1)
    pool = ThreadPoolExecutor(threads)
    ahead: deque[Future[Result]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:  # on an error, or Ctrl-C, what has not begun is dropped
        pool.shutdown(wait=True, cancel_futures=True)


# ------------------------------------------------------------------------------------ broken ones


def name_broken(broken: Iterable[tuple[int, str]], place: Callable[[int], str]) -> Broken:
    """Return places instead of indices."""
    return tuple((place(index), reason) for index, reason in broken)


def refuse_too_many(broken: Broken, count: int, max_broken: float, title: str) -> None:
    """Raise UserError where all of `count` images are broken, or a larger share than max_broken."""
    if not broken or (len(broken) < count and len(broken) / count <= max_broken):
        return
    share = math.ceil(len(broken) / count * 1000) / 1000
    leave = f", or leave them out with dataset.max_broken={share:g} (or ood.max_broken=)"
    raise UserError(
        f"{len(broken)} of {count} images of {title} are broken, more than "
        f"max_broken={max_broken:g} of them: {summarize_broken(broken)}; repair or remove what is "
        f"broken, or get it again{leave if len(broken) < count else ''}"
    )


def summarize_broken(broken: Broken) -> str:
    """Return the first few with their reasons, on one line."""
    first = ", ".join(f"{printable(place)} ({reason})" for place, reason in broken[:SHOWN])
    return first + (f", and {len(broken) - SHOWN} more" if len(broken) > SHOWN else "")


def format_broken(by_split: Mapping[str, Broken]) -> str:
    """Return a line for each broken image: split, place and reason, with tabs between them."""
    return "".join(
        f"{split}\t{escape_name(place)}\t{reason}\n"
        for split, broken in by_split.items()
        for place, reason in broken
    )


def escape_name(name: str) -> str:
    """Write what would break a line or steer a terminal as Python does: \\n, \\x1b, \\udcff."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name)
