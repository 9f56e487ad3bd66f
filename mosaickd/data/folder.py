"""Folders of image files, one sub-folder a class."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from mosaickd.data import image_files
from mosaickd.data.cache import load_images
from mosaickd.data.decode import Progress, Read, Unreadable, no_progress, read_bytes
from mosaickd.data.image_files import ImageFiles, leads_outside
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError, printable

log = logging.getLogger(__name__)

TEST_FOLDERS = ("val", "test")  # "val" first: ImageNet's test folder is without labels
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
    progress: Progress = no_progress,
) -> ImageSet:
    """Read `root/train/<class>/...` or, for the test split, `root/val/...` or `root/test/...`.

    Without a train folder, the class folders (or bare images) in root itself are the training
    set. Images become RGB, the shorter side is resized to image_size, the centre is cropped. A
    large set is decoded once, into a cache in root. Images that can't be read are left out, as
    long as they are no larger a share of all than max_broken. Raises UserError where they are, and
    for a missing or empty folder.
    """
    root = root.absolute()
    if not root.is_dir():
        raise UserError(f"no folder {printable(str(root))}; {ADVICE}")
    folder, classes, found, labels = _find(root, split, follow_links)

    def reads() -> Iterator[Read]:
        for file in found.files:
            outside = file in found.outside
            yield partial(_refuse, root) if outside else partial(read_bytes, file)

    return load_images(
        reads, labels, classes, root=root, name=f"folder-{split}-{image_size}px",
        files=found.files, settings=(VERSION, image_size, classes, sorted(found.outside)),
        place=found.files.__getitem__, image_size=image_size, max_broken=max_broken,
        title=printable(str(folder)), progress=progress,
    )  # fmt: skip


def _find(
    root: Path, split: str, follow_links: bool
) -> tuple[Path, list[str], ImageFiles, np.ndarray]:
    """Return the split's folder, the classes, the files of all of them, and int64 labels."""
    train_folder = root / "train" if (root / "train").is_dir() else root
    folder = train_folder if split == "train" else _test_folder(root)
    skip = TEST_FOLDERS if train_folder == root else ()
    classes = _class_folders(train_folder, root, follow_links, skip)
    if split != "train" and classes:
        strangers = set(_class_folders(folder, root, follow_links)) - set(classes)
        if strangers:
            raise UserError(
                f"{printable(str(folder))} has class folders that {printable(str(train_folder))} "
                f"lacks: {printable(', '.join(sorted(strangers)))}; both must have the same classes"
            )
    found, labels = ImageFiles(), []
    for label, name in enumerate(classes):
        before = len(found.files)
        found.add(folder / name, root, follow_links)
        labels += [label] * (len(found.files) - before)
        if len(found.files) == before:
            log.warning("%s has no images in its class folder %s",
                        printable(str(folder)), printable(name))  # fmt: skip
    if not classes:  # bare images: enough for an out-of-domain set
        classes = ["all"]
        found.add(folder, root, follow_links)
        labels = [0] * len(found.files)
    if not found.files:
        raise UserError(f"no images in {printable(str(folder))} (looked for "
                        f"{', '.join(sorted(image_files.SUFFIXES))}); {ADVICE}")  # fmt: skip
    if found.skipped:
        log.info("%s: no images, left alone: %s", printable(str(folder)), found.describe_skipped())
    return folder, classes, found, np.array(labels, dtype=np.int64)


def _class_folders(
    place: Path, root: Path, follow_links: bool, skip: tuple[str, ...] = ()
) -> list[str]:
    """Return the names of the sub-folders. Raises UserError for one that is a link out of root:
    without its images the classes after it would get other numbers."""
    folders = [entry for entry in image_files.list_folder(place) if image_files.is_folder(entry)]
    names = [e.name for e in folders if not e.name.startswith("__") and e.name not in skip]
    for path in (place, *(place / name for name in names)):
        if not follow_links and leads_outside(path, root):
            raise UserError(f"{printable(str(path))} is {_outside(root)}")
    return names


def _outside(root: Path) -> str:
    return f"a link that leads out of {printable(str(root))}; {LINKS}"


def _refuse(root: Path) -> bytes:
    raise Unreadable(_outside(root))


def _test_folder(root: Path) -> Path:
    for name in TEST_FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise UserError(
        f"no test images: neither {printable(str(root / 'val'))} nor "
        f"{printable(str(root / 'test'))} exists; {ADVICE} and val/<class>/*.png"
    )
