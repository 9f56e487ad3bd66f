"""ImageNet at 32x32 (or 8, 16, 64): the published pickled batches, class folders or Parquet."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from mosaickd.data import cache, folder
from mosaickd.data.parquet import find_shards, read_split, warn_once
from mosaickd.data.pickled import ADVICE, Array, load_dict
from mosaickd.data.pictures import progress
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError
from mosaickd.unpickling import Refused

log = logging.getLogger(__name__)

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
) -> ImageSet:
    """Read a split from what lies in root. Batches keep their own size (`Source` resizes).

    Takes class folders, train/<class>/ and val/<class>/; else the batches of downsampled
    ImageNet, train_data_batch_1 to _10 and val_data, in root or in folders directly below it;
    else Parquet shards. Batches are unpacked once, into a cache in root, and then mapped into
    memory; they must be whole. max_broken, follow_links: as in `mosaickd.data.folder.read`.
    Raises UserError where the images are missing or damaged.
    """

    def read_folders() -> ImageSet:
        return folder.read(root=root, split=split, image_size=image_size, max_broken=max_broken,
                           follow_links=follow_links)  # fmt: skip

    root = root.absolute()
    if not root.is_dir():
        raise UserError(f"no folder {root}. {_advice(root)}")
    # First, because a search for anything else looks at each of a million image files.
    if _has_folders(root / "train"):
        return read_folders()
    if batches := find_batches(root, split):
        return _read_batches(root, split, batches)
    other = "test" if split == "train" else "train"
    if there := find_batches(root, other):
        wanted = BATCHES[split]
        raise UserError(
            f"{there[0].parent} has batches of ImageNet's {other} images, but {root} has none of "
            f"its {split} images; put {wanted[0]}{' ... _10' if len(wanted) > 1 else ''} beside "
            "them"
        )
    if shards := find_shards(root, split):
        return read_split(shards, image_size=image_size, max_broken=max_broken)
    if not _has_folders(root):
        raise UserError(f"no ImageNet images in {root}. {_advice(root)}")
    return read_folders()


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
    """Whether there are folders in place, other than hidden ones: caches, and what tools leave."""
    if not place.is_dir():
        return False
    return any(entry.is_dir() for entry in place.iterdir() if not entry.name.startswith("."))


def find_batches(root: Path, split: str) -> list[Path]:
    """The split's batch files in root or directly below it, by number; empty if there are none.

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


def _read_batches(root: Path, split: str, batches: list[Path]) -> ImageSet:
    there = {path.name for path in batches}
    missing = [name.rsplit("_", 1)[1] for name in BATCHES[split] if name not in there]
    if missing:
        warn_once(
            f"{batches[0].parent}: of the 10 training batches of ImageNet, number "
            f"{', '.join(missing)} is missing, so only the images that are there are used"
        )

    def make(file: IO[bytes]) -> cache.Made:
        return cache.Made(_unpack(batches, file))

    names = [str(path) for path in batches]
    key = cache.fingerprint(root, names, VERSION)
    what = f"{batches[0].parent} ({split})"
    found = cache.cached(root, f"batches-{split}", key, what=what, make=make)
    if found is None:
        log.warning("%s is unpacked into memory, at every start: make room for a cache, or set "
                    "XDG_CACHE_HOME to a folder that has it", what)  # fmt: skip
        memory = io.BytesIO()
        labels = _unpack(batches, memory)
        images = cache.after_header(memory)
        found = cache.Cached(torch.from_numpy(images), torch.from_numpy(labels), ())
    return ImageSet(found.images, found.labels, [str(index) for index in range(CLASSES)])


def _unpack(batches: list[Path], file: IO[bytes]) -> np.ndarray:
    """Write the images of all batches to file, as .npy; -> their labels int64 [N], 0..999.

    One batch is in memory at a time.
    """
    labels: list[np.ndarray] = []
    count, size = 0, 0
    cache.write_header(file, (0, 3, 0, 0))
    with progress(f"unpacking {batches[0].parent}", len(batches)) as advance:
        for done, path in enumerate(batches, start=1):
            pixels, of_batch = load_batch(path)
            if size and pixels.shape[-1] != size:
                raise UserError(
                    f"{path} holds images of {pixels.shape[-1]}x{pixels.shape[-1]}, "
                    f"{batches[0].name} of {size}x{size}; all must have one size: keep each set "
                    "in a folder of its own"
                )
            size = pixels.shape[-1]
            count += len(pixels)
            labels.append(of_batch)
            file.write(np.ascontiguousarray(pixels).data)
            del pixels  # before the next one is read
            advance(done)
    cache.write_header(file, (count, 3, size, size))
    return np.concatenate(labels)


def load_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One batch file: images uint8 [N, 3, S, S] and labels int64 [N], 0..999.

    Nothing in the pickle is executed. Raises UserError naming what is wrong with the file.
    """
    content = load_dict(path)
    for key in ("data", "labels"):
        if key not in content:
            keys = ", ".join(repr(name[:20]) for name in list(content)[:8])
            raise UserError(f"{path} has no {key!r}, only {keys or 'an empty dict'}: it is no "
                            f"batch of downsampled ImageNet; {ADVICE}")  # fmt: skip
    try:
        images = _images(content["data"])
        labels = _labels(content["labels"])
        if len(labels) != len(images):
            raise Refused(f"{len(labels)} labels for {len(images)} images")
    except (Refused, ValueError) as error:
        raise UserError(f"{path} is no batch of downsampled ImageNet: it has {error}; "
                        f"{ADVICE}") from None  # fmt: skip
    return images, labels


def _images(data: Any) -> np.ndarray:
    """[N, 3*S*S], each image red, then green, then blue -> [N, 3, S, S]"""
    if type(data) is not Array:
        raise Refused(f"a {type(data).__name__} as 'data' instead of an array")
    pixels = data.to_numpy()
    sizes = {3 * size * size: size for size in SIZES}
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] not in sizes:
        raise Refused(f"'data' of {pixels.dtype} {list(pixels.shape)} instead of uint8 [N, 3*S*S] "
                      f"with S among {', '.join(map(str, SIZES))}")  # fmt: skip
    if not len(pixels):
        raise Refused("no images")
    size = sizes[pixels.shape[1]]
    return pixels.reshape(-1, 3, size, size)


def _labels(data: Any) -> np.ndarray:
    """Labels 1..1000, a list or an array -> 0..999."""
    values = data.to_numpy() if type(data) is Array else data
    if not isinstance(values, np.ndarray):
        if type(values) not in (list, tuple) or not all(type(value) is int for value in values):
            raise Refused("'labels' that are not a list of whole numbers")
        values = np.array(values)
    if values.dtype.kind not in "iu" or values.ndim != 1:  # huge numbers become objects
        raise Refused(f"'labels' of {values.dtype} {list(values.shape)} instead of whole numbers")
    outside = (values < 1) | (values > CLASSES)
    if outside.any():
        raise Refused(f"the label {values[outside][0]}, out of range 1..{CLASSES}")
    return values.astype(np.int64) - 1
