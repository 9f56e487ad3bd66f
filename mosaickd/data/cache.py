"""Large image sets, decoded once: one file that every later run maps into memory.

The file holds the images as .npy, then the labels as raw int64, then, where images were left out
because they are broken, which and why: as JSON. It lies in `.mosaickd` under the
set's root or, where that can't be written, in the user's cache folder ($XDG_CACHE_HOME, else
~/.cache). Its name ends in a fingerprint of what it was made from: changed images get a new one.
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mosaickd.data.broken import escaped
from mosaickd.data.decoding import Decoded, kept
from mosaickd.data.pictures import in_threads
from mosaickd.files import user_cache, write_atomically
from mosaickd.locks import build_lock

log = logging.getLogger(__name__)

FOLDER = ".mosaickd"  # hidden: not a class of the images beside it
CACHE_FROM = 5_000  # images: fewer are decoded at every start, in a second
STAT_CHUNK = 1024  # files that a thread looks at in one go


class Made(NamedTuple):
    """What belongs to the images of a cache: labels [N], and the (index, reason) of each image of
    the set that is broken and not among them."""

    labels: np.ndarray
    broken: tuple[tuple[int, str], ...] = ()


class Cached(NamedTuple):
    """images: uint8 [N, 3, H, W]; labels: int64 [N]; broken as in `Made`."""

    images: Tensor
    labels: Tensor
    broken: tuple[tuple[int, str], ...]


def cached(
    root: Path, name: str, key: str, *, what: str, make: Callable[[IO[bytes]], Made]
) -> Cached | None:
    """The cache `name` of root, its images mapped into memory.

    make(file) writes the images (`reserve`, or `write_header` and then pixels) and returns what
    belongs to them. It is called only where the cache lacks `key`, by one process at a time;
    others wait, and take over from one that was killed. None where no folder takes a cache; what
    make raises, apart from OSError, is passed on.
    """
    places = _places(root)
    for place in places:
        found = _open(place / f"{name}-{key}.npy", logging.DEBUG)
        if found is not None:
            return found
    for place in places:
        path = place / f"{name}-{key}.npy"
        try:
            place.mkdir(parents=True, exist_ok=True)
            with build_lock(place / f".{name}.making", what):
                found = _open(path, logging.WARNING)  # another process may have made it
                if found is None:
                    for killed in place.glob(f".{name}-*.tmp"):
                        killed.unlink(missing_ok=True)
                    log.info("%s: decoding into %s, once", what, path)
                    _write(path, make)
                    found = _open(path, logging.WARNING)
                    _name_old(place, name, path)
        except OSError as error:
            log.info("%s: no cache in %s: %s", what, place, error)
        if found is not None:
            return found
    return None


def in_memory(decoded: Decoded, labels: np.ndarray) -> Cached:
    """The same without a file. labels: of all, also of those that are broken."""
    own = labels[kept(len(labels), decoded.broken)]
    return Cached(torch.from_numpy(decoded.images), torch.from_numpy(own), decoded.broken)


def _places(root: Path) -> list[Path]:
    """Folders that may hold the caches of root, the preferred one first."""
    root = root.absolute()
    # Where nobody may write, a superuser is not asked to either.
    places = [root / FOLDER] if root.stat().st_mode & 0o222 else []
    try:
        home = user_cache()
    except RuntimeError:  # a user without a home
        return places
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    return [*places, home / f"{root.name}-{digest}"]


def _write(path: Path, make: Callable[[IO[bytes]], Made]) -> None:
    def write(file: IO[bytes]) -> None:
        made = make(file)
        file.seek(0, os.SEEK_END)
        file.write(np.ascontiguousarray(made.labels, dtype="<i8").data)
        if made.broken:
            file.write(json.dumps(made.broken).encode())

    write_atomically(path, write)


def _open(path: Path, level: int) -> Cached | None:
    """What a cache file holds; None where there is none, or a bad one (logged at `level`)."""
    try:
        # Copy-on-write: pages are shared with other processes, and torch gets a writable array
        # without being able to change the file.
        images = np.load(path, mmap_mode="c", allow_pickle=False)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"{images.dtype} {list(images.shape)} instead of images")
        with open(path, "rb") as file:
            file.seek(images.offset + images.nbytes)
            labels = np.frombuffer(file.read(8 * len(images)), dtype="<i8").astype(np.int64)
            rest = file.read()
        if len(labels) != len(images):
            raise ValueError("its size is not what its header says")
        broken = tuple((int(i), escaped(reason)) for i, reason in json.loads(rest or b"[]"))
        edges = [-1, *(index for index, _ in broken), len(images) + len(broken)]
        if any(index >= after for index, after in itertools.pairwise(edges)):
            raise ValueError("its list of broken images is not in order")
    except FileNotFoundError:
        return None
    except PermissionError as error:
        log.log(level, "cannot read the cache %s: %s", path, error)
        return None
    except Exception as error:  # numpy raises nearly anything for a damaged header
        log.log(level, "the cache %s is damaged (%s): making it again", path, error)
        return None
    return Cached(torch.from_numpy(images), torch.from_numpy(labels), broken)


def _name_old(place: Path, name: str, current: Path) -> None:
    """Say what takes up space and is of no more use. Not removed: a run may have it mapped."""
    for path in sorted(place.glob(f"{name}-*.npy")):
        if path != current:
            log.info("%s is of other images, or read otherwise: delete it to free %.1f GB",
                     path, path.stat().st_size / 1e9)  # fmt: skip


def write_header(file: IO[bytes], shape: Sequence[int]) -> None:
    """The header of a .npy file of uint8 images, at the start of the file.

    It has the same length whatever the number of images, and may be written again when that
    number is known.
    """
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)


def after_header(file: io.BytesIO) -> np.ndarray:
    """The images of a .npy file that was written to memory; not a copy."""
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return np.frombuffer(file.getbuffer(), dtype, offset=file.tell()).reshape(shape)


def reserve(file: IO[bytes], shape: Sequence[int]) -> np.memmap:
    """Room for images of a known shape in an empty file, mapped for writing: uint8 `shape`."""
    write_header(file, shape)
    file.flush()
    start, size = file.tell(), math.prod(shape)
    try:
        # Without it a disk that fills up would end the process (SIGBUS) instead of raising.
        os.posix_fallocate(file.fileno(), start, size)
    except AttributeError:  # macOS
        file.truncate(start + size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        file.truncate(start + size)
    return np.memmap(file, np.uint8, "r+", start, tuple(shape))


def shorten(file: IO[bytes], shape: Sequence[int]) -> None:
    """Fewer images than were reserved: the first ones."""
    write_header(file, shape)
    file.flush()
    file.truncate(file.tell() + math.prod(shape))


def fingerprint(folder: Path, files: Sequence[str], *settings: object) -> str:
    """16 hex digits that change with the files' names below folder, sizes and times of change.

    settings: whatever else the cache depends on. A file that can't be looked at counts as such:
    reading it will say what is wrong.
    """
    facts = np.full((len(files), 2), -1, dtype="<i8")

    def look(indices: range, _: None) -> None:
        for index in indices:
            try:
                status = os.stat(files[index])
            except OSError:
                continue
            facts[index] = status.st_size, status.st_mtime_ns

    count = len(files)
    stretches = [(range(i, min(i + STAT_CHUNK, count)), None) for i in range(0, count, STAT_CHUNK)]
    in_threads(look, stretches, f"looking for changes in {folder}", count)
    prefix = len(os.path.join(folder, ""))
    digest = hashlib.sha256(repr(settings).encode(errors="surrogateescape"))
    digest.update("\0".join(file[prefix:] for file in files).encode(errors="surrogateescape"))
    digest.update(facts.data)
    return digest.hexdigest()[:16]
