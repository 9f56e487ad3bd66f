"""Folders of image files, one sub-folder a class."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import IO

import numpy as np

from mosaickd.data import cache
from mosaickd.data.broken import Unreadable, alike, escaped, refuse_too_many
from mosaickd.data.decoding import Decoded, decode, kept, named, stretches
from mosaickd.data.finding import Found, Tree
from mosaickd.data.pictures import SUFFIXES, read_file
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError

log = logging.getLogger(__name__)

# "val" first: where a set has both, its test folder is often without labels (ImageNet).
FOLDERS = {"train": ("train",), "test": ("val", "test")}
VERSION = 2  # of the decoding: raise it when the pixels change, so that old caches are not read
ADVICE = "set dataset.root= (or ood.root=) to a folder that holds train/<class>/*.png"
LINKS = "dataset.reader.follow_links=true (or ood.reader.follow_links=true) follows it"


def read(
    *,
    root: Path,
    split: str,
    image_size: int,
    max_broken: float = 0.0,
    follow_links: bool = False,  # also to what lies outside of root
) -> ImageSet:
    """Read `root/train/<class>/...` or, for the test split, `root/val/...` or `root/test/...`.

    Without a train folder, the class folders (or bare images) in root itself are the training
    set. Images become RGB, the shorter side is resized to image_size, the centre is cropped. A
    large set is decoded once, into a cache in root, and then mapped into memory. Images that
    can't be read are left out, as long as they are no larger a share of all than max_broken.
    Raises UserError where they are, and for a missing or empty folder.
    """
    root = root.absolute()
    if not root.is_dir():
        raise UserError(f"no folder {escaped(root)}; {ADVICE}")
    folder, classes, found, labels = _find(Tree(root, follow_links, LINKS), root, split)
    files, count, what = found.files, len(found.files), escaped(folder)

    def content(index: int) -> bytes:
        if refusal := found.refused.get(files[index]):
            raise Unreadable(refusal)
        return read_file(files[index])

    def decoded(into: np.ndarray | None = None) -> Decoded:
        batches, place = stretches(count, content), files.__getitem__
        return decode(batches, count, place, image_size, max_broken, what, into)

    def make(file: IO[bytes]) -> cache.Made:
        pixels = cache.reserve(file, (count, 3, image_size, image_size))
        made = decoded(pixels)
        pixels.flush()
        if made.broken:
            cache.shorten(file, made.images.shape)
        return cache.Made(labels[kept(count, made.broken)], made.broken)

    images: cache.Cached | None = None
    if count >= cache.CACHE_FROM:
        refused = [index for index, file in enumerate(files) if file in found.refused]
        key = cache.fingerprint(folder, files, VERSION, image_size, classes, refused)
        name = f"folder-{split}-{image_size}px"
        images = cache.cached(root, name, key, what=what, make=make)
        if images is None:
            log.warning("%s is decoded into memory, at every start: make room for a cache, or set "
                        "XDG_CACHE_HOME to a folder that has it", what)  # fmt: skip
    if images is None:
        images = cache.in_memory(decoded(), labels)
    broken = named(images.broken, files.__getitem__)
    refuse_too_many(broken, count, max_broken, what)
    return ImageSet(images.images, images.labels, classes, broken)


def _find(tree: Tree, root: Path, split: str) -> tuple[Path, list[str], Found, np.ndarray]:
    """-> the split's folder, the classes, what lies in their folders, and int64 labels of it."""
    train_folder = root / "train" if (root / "train").is_dir() else root
    folder = train_folder if split == "train" else _test_folder(root)
    for entered in {train_folder, folder} - {root}:
        tree.enter(entered)
    classes, beside = tree.class_folders(
        train_folder, skip=() if train_folder != root else FOLDERS["test"]
    )
    if split != "train" and classes:
        of_test, beside = tree.class_folders(folder)
        if strangers := sorted(set(of_test) - set(classes)):
            raise UserError(
                f"{escaped(folder)} has class folders that {escaped(train_folder)} lacks: "
                f"{', '.join(map(escaped, strangers[:5]))}; both must have the same classes"
            )
    if doubles := alike(classes):
        pairs = "; ".join(", ".join(map(ascii, group)) for group in doubles[:5])
        log.warning("%s has classes that look alike and are kept apart: %s",
                    escaped(train_folder), pairs)  # fmt: skip

    found = Found()
    labels: list[int] = []
    for label, name in enumerate(classes):
        of_class = tree.image_files(folder / name)
        if not of_class.files:
            log.warning("%s has no images in its class folder %s",
                        escaped(folder), escaped(name))  # fmt: skip
        found.add(of_class)
        labels += [label] * len(of_class.files)
    if classes:
        found.strays += beside
    else:
        classes = ["all"]  # bare images: enough for an out-of-domain set
        found = tree.image_files(folder)
        labels = [0] * len(found.files)
    if not found.files:
        raise UserError(f"no images in {escaped(folder)} (looked for "
                        f"{', '.join(sorted(SUFFIXES))}); {ADVICE}")  # fmt: skip
    if found.strays:
        log.info("%s: no images, left alone: %s", escaped(folder), found.left_alone())
    return folder, classes, found, np.array(labels, dtype=np.int64)


def _test_folder(root: Path) -> Path:
    for name in FOLDERS["test"]:
        if (root / name).is_dir():
            return root / name
    raise UserError(
        f"no test images: neither {escaped(root / 'val')} nor {escaped(root / 'test')} "
        f"exists; {ADVICE} and val/<class>/*.png"
    )
