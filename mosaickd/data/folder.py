"""Folders of image files, one sub-folder a class; and the decoding that other readers share."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from mosaickd.data import cache
from mosaickd.data.pictures import SUFFIXES, fit, image_files, in_threads, to_rgb
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError

log = logging.getLogger(__name__)

# "val" first: where a set has both, its test folder is often without labels (ImageNet).
FOLDERS = {"train": ("train",), "test": ("val", "test")}
CHUNK = 256  # images a thread decodes at a stretch
VERSION = 1  # of the decoding: raise it when the pixels change, so that old caches are not read
ADVICE = "set dataset.root= (or ood.root=) to a folder that holds train/<class>/*.png"


def read(*, root: Path, split: str, image_size: int) -> ImageSet:
    """Read `root/train/<class>/...` or, for the test split, `root/val/...` or `root/test/...`.

    Without a train folder, the class folders (or bare images) in root itself are the training
    set. Images become RGB, the shorter side is resized to image_size, the centre is cropped. A
    large set is decoded once, into a cache in root, and then mapped into memory.
    Raises UserError for a missing or empty folder and for a file that is not a readable image.
    """
    root = root.absolute()
    if not root.is_dir():
        raise UserError(f"no folder {root}; {ADVICE}")
    train_folder = root / "train" if (root / "train").is_dir() else root
    folder = train_folder if split == "train" else _test_folder(root)
    classes = _class_names(train_folder, skip=() if train_folder != root else FOLDERS["test"])
    strangers = set(_class_names(folder)) - set(classes) if split != "train" else set()
    if strangers and classes:
        raise UserError(
            f"{folder} has class folders that {train_folder} lacks: "
            f"{', '.join(sorted(strangers)[:5])}; both must have the same classes"
        )

    files: list[str] = []
    labels: list[int] = []
    if classes:
        for label, name in enumerate(classes):
            found = image_files(folder / name)
            if not found:
                log.warning("%s has no images in its class folder %s", folder, name)
            files += found
            labels += [label] * len(found)
    else:
        classes = ["all"]  # bare images: enough for an out-of-domain set
        files = image_files(folder)
        labels = [0] * len(files)
    if not files:
        raise UserError(
            f"no images in {folder} (looked for {', '.join(sorted(SUFFIXES))}); {ADVICE}"
        )

    def content(index: int) -> bytes:
        with open(files[index], "rb") as file:
            return file.read()

    def decoded(into: np.ndarray | None = None) -> Tensor:
        place = files.__getitem__
        return decode(len(files), content, place, image_size, what=str(folder), into=into)

    def make(file: IO[bytes]) -> np.ndarray:
        pixels = cache.reserve(file, (len(files), 3, image_size, image_size))
        decoded(pixels)
        pixels.flush()
        return np.asarray(labels)

    if len(files) >= cache.CACHE_FROM:
        key = cache.fingerprint(folder, files, VERSION, image_size, classes)
        name = f"folder-{split}-{image_size}px"
        mapped = cache.cached(root, name, key, what=str(folder), make=make)
        if mapped is not None:
            return ImageSet(*mapped, classes)
        log.warning("%s is decoded into memory, at every start: make room for a cache, or set "
                    "XDG_CACHE_HOME to a folder that has it", folder)  # fmt: skip
    return ImageSet(decoded(), torch.tensor(labels, dtype=torch.int64), classes)


def decode(
    count: int,
    content: Callable[[int], bytes],
    place: Callable[[int], str],
    image_size: int | None,
    what: str,
    into: np.ndarray | None = None,
) -> Tensor:
    """Decode encoded images (any format Pillow reads) in a thread pool -> uint8 [N, 3, S, S].

    content(i): the i-th image's bytes; place(i): where it is, for error messages. image_size
    None keeps the images' own size [N, 3, H, W], which must then be the same for all. into: where
    the pixels go, instead of new memory. What had to be converted is logged once, with counts.
    Raises UserError naming the place of a bad image.
    """

    def one(index: int, notes: Counter[str]) -> np.ndarray:
        try:
            picture = to_rgb(content(index), notes)
            return np.asarray(picture if image_size is None else fit(picture, image_size, notes))
        except Exception as error:  # decoders raise nearly anything for damaged bytes
            raise UserError(
                f"cannot read the image {place(index)}: {error}; the file is damaged or not an "
                "image: remove it, or get it again"
            ) from error

    first = one(0, Counter())
    images = np.empty((count, 3, *first.shape[:2]), dtype=np.uint8) if into is None else into

    def stretch(indices: range) -> Counter[str]:
        notes: Counter[str] = Counter()
        for index in indices:
            picture = one(index, notes)
            if picture.shape != first.shape:
                raise UserError(
                    f"the image {place(index)} is {picture.shape[1]}x{picture.shape[0]}, others "
                    f"are {first.shape[1]}x{first.shape[0]}; all must have one size"
                )
            images[index] = picture.transpose(2, 0, 1)
        return notes

    stretches = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    notes = in_threads(stretch, stretches, f"reading {what}")
    if notes:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(notes.items()))
        log.info("%s: of %d images, converted %s", what, count, kinds)
    return torch.from_numpy(images)


def _test_folder(root: Path) -> Path:
    for name in FOLDERS["test"]:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"no test images: neither {root / 'val'} nor {root / 'test'} exists; {ADVICE}"
                    " and val/<class>/*.png")  # fmt: skip


def _class_names(folder: Path, skip: Sequence[str] = ()) -> list[str]:
    """Sub-folders' names, sorted: the classes. Empty where the folder holds bare images."""
    with os.scandir(folder) as entries:
        return sorted(
            e.name
            for e in entries
            if e.is_dir() and not e.name.startswith((".", "__")) and e.name not in skip
        )
