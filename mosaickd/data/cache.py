"""Large image sets, decoded once: files that every later run maps into memory.

An entry is a folder with the pixels, the labels and the list of broken images. It lies in
`.mosaickd` under the set's root or, where that can't be written, in the user's cache folder
($XDG_CACHE_HOME, else ~/.cache). Its name ends in a key of what it was made from: changed images
get a new entry.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mosaickd.data.decode import (
    Allocate,
    Decoded,
    Progress,
    Read,
    allocate_memory,
    decode_images,
    map_in_threads,
    name_broken,
    no_progress,
    refuse_too_many,
    split_chunks,
)
from mosaickd.data.source import ImageSet
from mosaickd.utils.files import user_cache
from mosaickd.utils.locks import build_lock

log = logging.getLogger(__name__)

FOLDER = ".mosaickd"  # hidden: not a class of the images beside it
CACHE_FROM = 5_000  # images: fewer are decoded at every start, in a second
STAT_CHUNK = 1024  # files that a thread looks at in one go


def load_images(
    reads: Callable[[], Iterable[Read]],
    labels: np.ndarray,
    classes: list[str],
    *,
    root: Path,
    name: str,
    files: Sequence[str],
    settings: Sequence[object],
    place: Callable[[int], str],
    max_broken: float,
    title: str,
    progress: Progress,
    **options: Any,
) -> ImageSet:
    """Decode the images that reads() yields, with `decode_images`; of a large set only once.

    labels: int64 [N]. root, name: of the cache's entry. files, settings: what else than the labels'
    number the images depend on. Raises UserError for too many broken ones.
    """
    options |= {"place": place, "max_broken": max_broken, "title": title, "progress": progress}

    def make(allocate: Allocate) -> Decoded:
        return decode_images(reads(), labels, allocate=allocate, **options)

    if len(labels) < CACHE_FROM:
        images, own_labels, indices = make(allocate_memory)
    else:
        key = fingerprint_files(root, files, *settings, progress=progress)
        images, own_labels, indices = cached(root, name, key, title=title, make=make)
    broken = name_broken(indices, place)
    refuse_too_many(broken, len(labels), max_broken, title)  # a cache may be a more lenient run's
    return ImageSet(torch.from_numpy(images), torch.from_numpy(own_labels), classes, broken)


def cached(
    root: Path, name: str, key: str, *, title: str, make: Callable[[Allocate], Decoded]
) -> Decoded:
    """Return what make(allocate) returns, its images mapped from a file.

    `make` decodes into the array that `allocate` returns. It is called only where no entry `name`
    has this `key`, by one process at a time; the others wait, and take over from one that was
    killed. Where no folder takes a cache it decodes into memory. What `make` raises is passed on.
    """
    places = _places(root)
    for place in places:
        if (entry := _open(place / f"{name}-{key}")) is not None:
            return entry
    for place in places:
        path = place / f"{name}-{key}"
        try:
            place.mkdir(parents=True, exist_ok=True)
            with build_lock(place / f".{name}.making", title):
                entry = _open(path)  # another process may have made it meanwhile
                if entry is None:
                    _make(path, name, make, title)
                    entry = _open(path)
            if entry is not None:
                return entry
        except OSError as error:
            log.info("%s: no cache in %s: %s", title, place, error)
    log.warning("%s is decoded into memory, at every start: make room for a cache, or set "
                "XDG_CACHE_HOME to a folder that has it", title)  # fmt: skip
    return make(allocate_memory)


def _places(root: Path) -> list[Path]:
    """Return the folders that may hold the caches of `root`, the preferred one first."""
    root = root.absolute()
    # Where nobody may write, a superuser is not asked to either.
    places = [root / FOLDER] if root.stat().st_mode & 0o222 else []
    try:
        home = user_cache()
    except RuntimeError:  # a user without a home
        return places
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    return [*places, home / f"{root.name}-{digest}"]


def _make(path: Path, name: str, make: Callable[[Allocate], Decoded], title: str) -> None:
    """Write an entry: under its name there is all of it, or nothing."""
    if path.exists():
        log.warning("the cache %s is damaged: making it again", path)
        shutil.rmtree(path)
    for unfinished in path.parent.glob(f".{name}-*.tmp"):  # of a maker that was killed
        shutil.rmtree(unfinished)
    log.info("%s: decoding into %s, once", title, path)
    folder = path.with_name(f".{path.name}.tmp")
    folder.mkdir()
    try:
        images, labels, broken = make(partial(_reserve, folder / "images"))
        assert isinstance(images, np.memmap)
        images.flush()
        os.truncate(folder / "images", images.nbytes)  # fewer than there was room for
        np.save(folder / "labels.npy", labels)
        (folder / "set.json").write_text(json.dumps({"shape": images.shape, "broken": broken}))
        folder.rename(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    for old in sorted(path.parent.glob(f"{name}-*")):
        if old != path:  # not removed: a run may have it mapped
            log.info("%s is of other images, or read otherwise: delete it to free its room", old)


def _reserve(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return a new file's room for uint8 images, mapped for writing."""
    images = np.memmap(path, np.uint8, "w+", shape=shape)
    if hasattr(os, "posix_fallocate"):  # else a disk that fills up would end the process (SIGBUS)
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
    return images


def _open(path: Path) -> Decoded | None:
    """Return what an entry holds; None where there is none, or a damaged one."""
    try:
        content = json.loads((path / "set.json").read_text())
        shape = tuple(content["shape"])
        broken = [(int(index), str(reason)) for index, reason in content["broken"]]
        labels = np.load(path / "labels.npy", allow_pickle=False)
        if (path / "images").stat().st_size != math.prod(shape) or len(labels) != shape[0]:
            return None
        # Copy-on-write: pages are shared with other processes, and torch gets a writable array
        # without being able to change the file.
        return Decoded(np.memmap(path / "images", np.uint8, "c", shape=shape), labels, broken)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def fingerprint_files(
    folder: Path, files: Sequence[str], *settings: object, progress: Progress = no_progress
) -> str:
    """Return 16 hex digits that change with the files' names below folder, sizes and times.

    settings: whatever else the cache depends on. A missing file counts as such: reading it will
    say what is wrong.
    """

    def stat_chunk(chunk: list[str]) -> list[tuple[int, int]]:
        facts = []
        for file in chunk:
            try:
                status = os.stat(file)
            except OSError:
                facts.append((-1, -1))
            else:
                facts.append((status.st_size, status.st_mtime_ns))
        return facts

    facts: list[tuple[int, int]] = []
    with progress(f"looking for changes in {folder}", len(files)) as advance:
        for chunk in map_in_threads(stat_chunk, split_chunks(files, STAT_CHUNK)):
            facts += chunk
            advance(len(facts))
    prefix = len(os.path.join(folder, ""))
    digest = hashlib.sha256(repr(settings).encode(errors="surrogateescape"))
    digest.update("\0".join(file[prefix:] for file in files).encode(errors="surrogateescape"))
    digest.update(np.array(facts, dtype="<i8").data)
    return digest.hexdigest()[:16]
