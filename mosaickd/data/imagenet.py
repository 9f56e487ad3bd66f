"""ImageNet at 32x32 (or 8, 16, 64): the published pickled batches, class folders or Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mosaickd.data import cache, folder
from mosaickd.data.decode import Allocate, Decoded, Progress, no_progress
from mosaickd.data.parquet import find_shards, read_split, warn_once
from mosaickd.data.source import ImageSet
from mosaickd.data.unpickle import ADVICE, load_arrays
from mosaickd.errors import UserError

CLASSES = 1000
SIZES = (8, 16, 32, 64)  # as published
BATCHES = {"train": [f"train_data_batch_{number}" for number in range(1, 11)], "test": ["val_data"]}
VERSION = 1  # of the unpacking: raise it when the result changes, so that old caches are not read


def read(
    *,
    root: Path,
    split: str,
    image_size: int,
    max_broken: float = 0.0,
    follow_links: bool = False,  # of class folders: also to what lies outside of root
    progress: Progress = no_progress,
) -> ImageSet:
    """Read a split from what lies in root. Batches keep their own size (`Source` resizes).

    Takes class folders, train/<class>/ and val/<class>/; else the batches of downsampled
    ImageNet, train_data_batch_1 to _10 and val_data, in root or in folders directly below it;
    else Parquet shards. Batches are unpacked once, into a cache in root; they must be whole.
    Raises UserError where the images are missing or damaged.
    """
    root = root.absolute()
    if not root.is_dir():
        raise UserError(f"no folder {root}. {_advice(root)}")
    # First, because a search for anything else looks at each of a million image files.
    class_folders = _has_folders(root / "train")
    if not class_folders:
        if batches := find_batches(root, split):
            return _read_batches(root, split, batches, progress)
        if others := find_batches(root, "test" if split == "train" else "train"):
            wanted = BATCHES[split]
            raise UserError(
                f"{others[0].parent} has batches of ImageNet, but none of its {split} images; put "
                f"{wanted[0]}{' ... _10' if len(wanted) > 1 else ''} beside them"
            )
        if shards := find_shards(root, split):
            return read_split(
                shards, image_size=image_size, max_broken=max_broken, progress=progress
            )
        if not _has_folders(root):
            raise UserError(f"no ImageNet images in {root}. {_advice(root)}")
    return folder.read(
        root=root, split=split, image_size=image_size, max_broken=max_broken,
        follow_links=follow_links, progress=progress,
    )  # fmt: skip


def _advice(root: Path) -> str:
    packed = [path.name for pattern in ("*.zip", "*.tar*") for path in root.glob(pattern)]
    return (
        "Looked for class folders (train/<class>/*.png and val/<class>/*.png), for Parquet shards "
        "(train*.parquet, val*.parquet) and for the batches of downsampled ImageNet "
        "(train_data_batch_1 ... _10 and val_data, from image-net.org). "
        + (f"Unpack {', '.join(sorted(packed)[:3])}, or put " if packed else "Put ")
        + "any of them there, or set dataset.root= (or ood.root=) to the folder that holds them"
    )


def _has_folders(place: Path) -> bool:
    """Return whether there are folders in place, other than hidden ones: caches."""
    return place.is_dir() and any(
        entry.is_dir() for entry in place.iterdir() if not entry.name.startswith(".")
    )


def find_batches(root: Path, split: str) -> list[Path]:
    """Return the split's batch files in root or directly below it, by number.

    Raises UserError if several folders have some.
    """
    below = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    found = {place: [place / name for name in BATCHES[split]] for place in [root, *below]}
    found = {place: [p for p in paths if p.is_file()] for place, paths in found.items()}
    found = {place: paths for place, paths in found.items() if paths}
    if len(found) > 1:
        places = ", ".join(str(place) for place in found)
        raise UserError(
            f"several folders have batches of ImageNet's {split} images: {places}; keep each set "
            "under a root of its own, and set dataset.root= (or ood.root=) to one"
        )
    return next(iter(found.values()), [])


def _read_batches(root: Path, split: str, batches: list[Path], progress: Progress) -> ImageSet:
    names = {path.name for path in batches}
    missing = [name.rsplit("_", 1)[1] for name in BATCHES[split] if name not in names]
    if missing:
        warn_once(
            f"{batches[0].parent}: of the 10 training batches of ImageNet, number "
            f"{', '.join(missing)} is missing, so only the images that are there are used"
        )
    title = f"{batches[0].parent} ({split})"

    def unpack(allocate: Allocate) -> Decoded:
        return _unpack(batches, title, allocate, progress)

    key = cache.fingerprint_files(root, [str(path) for path in batches], VERSION)
    images, labels, _ = cache.cached(root, f"batches-{split}", key, title=title, make=unpack)
    classes = [str(index) for index in range(CLASSES)]
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels), classes)


def _unpack(batches: list[Path], title: str, allocate: Allocate, progress: Progress) -> Decoded:
    """Return the images of all batches; one batch at a time is in memory besides them."""
    images, done = np.empty((0, 3, 0, 0), dtype=np.uint8), 0
    labels: list[np.ndarray] = []
    with progress(f"unpacking {title}", len(batches)) as advance:
        for number, path in enumerate(batches, start=1):
            pixels, own_labels = load_batch(path)
            size = pixels.shape[-1]
            if number == 1:  # a file has a byte for each channel of a pixel, and a little more
                room = sum(batch.stat().st_size for batch in batches) // (3 * size * size)
                images = allocate((room, 3, size, size))
            elif size != images.shape[-1]:
                raise UserError(
                    f"{path} holds images of {size}x{size}, {batches[0].name} of "
                    f"{images.shape[-1]}x{images.shape[-1]}; all must have one size: keep each "
                    "set in a folder of its own"
                )
            images[done : done + len(pixels)] = pixels
            done += len(pixels)
            labels.append(own_labels)
            advance(number)
    return Decoded(images[:done], np.concatenate(labels), [])


def load_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch file's images, uint8 [N, 3, S, S], and its labels, int64 [N], 0..999.

    Raises UserError naming what is wrong with the file; nothing that it names is executed.
    """
    content = load_arrays(path)
    rows, labels = (np.asarray(content.get(key, [])) for key in ("data", "labels"))
    sizes = {3 * size * size: size for size in SIZES}
    problem = None
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] not in sizes or not len(rows):
        problem = (f"'data' of {rows.dtype} {list(rows.shape)} instead of uint8 [N, 3*S*S] with S "
                   f"among {', '.join(map(str, SIZES))}")  # fmt: skip
    elif labels.dtype.kind not in "iu" or labels.shape != rows.shape[:1]:
        problem = (f"'labels' of {labels.dtype} {list(labels.shape)} instead of a whole number "
                   f"for each of {len(rows)} images")  # fmt: skip
    elif labels.min() < 1 or labels.max() > CLASSES:
        problem = f"labels {labels.min()}..{labels.max()}, out of range 1..{CLASSES}"
    if problem:
        raise UserError(f"{path} is no batch of downsampled ImageNet: it has {problem}; {ADVICE}")
    size = sizes[rows.shape[1]]
    return rows.reshape(-1, 3, size, size), labels.astype(np.int64) - 1
