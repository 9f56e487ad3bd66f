"""Encoded images -> one array, decoded in threads; those that can't be are left out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from mosaickd.data.broken import ADVICE, Broken, Unreadable, escaped, refuse_too_many
from mosaickd.data.pictures import in_threads, pixels
from mosaickd.errors import UserError

log = logging.getLogger(__name__)

CHUNK = 256  # images a thread decodes at a stretch
MOVE = 4096  # images moved at once

#: Of one image: its bytes, or Unreadable.
Content = Callable[[int], bytes]


@dataclass(frozen=True)
class Decoded:
    """images: uint8 [K, 3, H, W]; broken: (index, reason) of those that were left out."""

    images: np.ndarray
    broken: tuple[tuple[int, str], ...]


def stretches(count: int, content: Content) -> list[tuple[range, Content]]:
    """Batches for `decode` of what can be read in any order."""
    starts = range(0, count, CHUNK)
    return [(range(start, min(start + CHUNK, count)), content) for start in starts]


def decode(
    batches: Iterable[tuple[range, Content]],
    count: int,
    place: Callable[[int], str],
    image_size: int | None,
    max_broken: float,
    what: str,
    into: np.ndarray | None = None,
) -> Decoded:
    """Decode `count` images, which the batches hold in their order.

    place(i): where the i-th is, for messages. image_size None keeps the images' own size, which
    must then be the same for all. into: where the pixels go, instead of new memory. What had to
    be converted is logged once, with counts. Raises UserError if a larger share than max_broken
    can't be decoded; with 0, at the first.
    """

    def one(index: int, content: Content, notes: Counter[str]) -> np.ndarray:
        """[H, W, 3]. Raises Unreadable."""
        try:
            return pixels(content(index), image_size, notes)
        except Unreadable as error:
            if max_broken > 0:
                raise
            raise UserError(
                f"cannot read the image {escaped(place(index))}: {error}; {ADVICE}, or leave "
                "such images out with dataset.max_broken=0.01 (or ood.max_broken=)"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot read {escaped(place(index))}: {error.strerror or error}; the disk or "
                "its permissions are at fault, not the image"
            ) from error
        except MemoryError as error:
            raise UserError(f"not enough memory to decode {escaped(place(index))}") from error

    if image_size is None:
        batches, shape = _look_ahead(batches, one)
    else:
        shape = (image_size, image_size, 3)
    images = _new((count, 3, *shape[:2]), what) if into is None else into

    def stretch(indices: range, content: Content) -> tuple[Counter[str], list[tuple[int, str]]]:
        notes: Counter[str] = Counter()
        broken = []
        for index in indices:
            try:
                picture = one(index, content, notes)
            except Unreadable as error:
                broken.append((index, str(error)))
                continue
            if picture.shape != shape:
                raise UserError(
                    f"the image {escaped(place(index))} is {picture.shape[1]}x"
                    f"{picture.shape[0]}, others are {shape[1]}x{shape[0]}; all must have one size"
                )
            images[index] = picture.transpose(2, 0, 1)
        return notes, broken

    notes: Counter[str] = Counter()
    broken: list[tuple[int, str]] = []
    for of_stretch, broken_of_stretch in in_threads(stretch, batches, f"reading {what}", count):
        notes += of_stretch
        broken += broken_of_stretch
    refuse_too_many(named(broken, place), count, max_broken, what)
    if notes:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(notes.items()))
        log.info("%s: of %d images, converted %s", escaped(what), count, kinds)
    return Decoded(_without(images, broken), tuple(broken))


def named(broken: Iterable[tuple[int, str]], place: Callable[[int], str]) -> Broken:
    """Places instead of indices."""
    return tuple((place(index), reason) for index, reason in broken)


def kept(count: int, broken: Sequence[tuple[int, str]]) -> np.ndarray:
    """Of count images, the indices of those that are not broken: int64, ascending."""
    return np.delete(np.arange(count), [index for index, _ in broken])


def _look_ahead(
    batches: Iterable[tuple[range, Content]],
    one: Callable[[int, Content, Counter[str]], np.ndarray],
) -> tuple[Iterable[tuple[range, Content]], tuple[int, ...]]:
    """The same batches; and what size the first readable image has, for the others to have."""
    batches = iter(batches)
    seen = []
    for indices, content in batches:
        seen.append((indices, content))
        for index in indices:
            try:
                return chain(seen, batches), one(index, content, Counter()).shape
            except Unreadable:
                continue
    return seen, (0, 0, 3)


def _new(shape: tuple[int, ...], what: str) -> np.ndarray:
    try:
        return np.empty(shape, dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        raise UserError(
            f"{escaped(what)}: no memory for {shape[0]} images of {shape[3]}x{shape[2]} pixels"
        ) from error


def _without(images: np.ndarray, broken: list[tuple[int, str]]) -> np.ndarray:
    """The others moved to the front, in their order and in place."""
    indices = kept(len(images), broken)
    for start in range(broken[0][0] if broken else len(indices), len(indices), MOVE):
        part = indices[start : start + MOVE]
        images[start : start + len(part)] = images[part]
    return images[: len(indices)]
