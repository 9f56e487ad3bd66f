"""Parquet files as the Hugging Face hub lays out image sets: encoded images in a column."""

from __future__ import annotations

import bisect
import functools
import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from mosaickd.data import cache
from mosaickd.data.broken import Unreadable, refuse_too_many
from mosaickd.data.decoding import Content, Decoded, decode, kept, named
from mosaickd.data.shard import Columns
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError

log = logging.getLogger(__name__)

SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
VERSION = 2  # of the decoding: raise it when the pixels change, so that old caches are not read
MAX_CLASSES = 2**20  # where nothing says how many there are: the largest label does


def read(
    *,
    root: Path,
    split: str,
    image_size: int,
    image_column: str | None = None,  # null: img or image
    label_column: str | None = None,  # null: fine_label or label; without one all labels are 0
    max_broken: float = 0.0,
) -> ImageSet:
    """Read a split from the Parquet shards under root, each image fitted to image_size.

    Raises UserError for missing or damaged files, unknown columns, and where a larger share of
    the images than max_broken can't be read.
    """
    shards = find_shards(root, split)
    if not shards:
        others = ", ".join(f"{name}*.parquet" for name in SPLITS[split])
        raise UserError(
            f"no {split} shards under {root.absolute()} (looked for {others}, at any depth); put "
            "them there, or set dataset.root= (or ood.root=) to the folder that holds them"
        )
    return read_split(
        shards, image_size=image_size, image_column=image_column, label_column=label_column,
        max_broken=max_broken,
    )  # fmt: skip


def find_shards(root: Path, split: str) -> list[Path]:
    """The split's Parquet files under root, in order; empty if there are none.

    Takes `train-00000-of-00002.parquet` and `train/0000.parquet`, in root or any folder below
    (`data/`, a configuration's name). A missing shard is logged once. Raises UserError if several
    folders offer the split.
    """
    root = root.absolute()
    files = sorted(root.rglob("*.parquet")) if root.is_dir() else []
    for name in SPLITS[split]:
        by_folder: dict[Path, list[Path]] = defaultdict(list)
        for file in files:
            if re.fullmatch(rf"{name}([-_.].*)?", file.stem):
                by_folder[file.parent].append(file)
            elif file.parent.name == name and file.parent != root:
                by_folder[file.parent.parent].append(file)
        if len(by_folder) > 1:
            places = ", ".join(str(folder) for folder in by_folder)
            raise UserError(f"{split} shards lie in several folders: {places}; set dataset.root= "
                            "(or ood.root=) to one of them")  # fmt: skip
        for shards in by_folder.values():
            _check_complete(shards)
            return shards
    return []


def _check_complete(shards: list[Path]) -> None:
    """Say which of the shards that the names speak of (`-00000-of-00002`) are not there."""
    numbered = [re.search(r"-(\d+)-of-(\d+)$", shard.stem) for shard in shards]
    totals = {int(match[2]) for match in numbered if match}
    if len(totals) > 1:
        names = ", ".join(shard.name for shard in shards)
        raise UserError(
            f"{shards[0].parent} mixes shards of different sets ({names}); remove those that do "
            "not belong"
        )
    for total in totals:
        present = {int(match[1]) for match in numbered if match}
        missing = sorted(set(range(total)) - present)
        if missing:
            warn_once(
                f"{shards[0].parent}: shard {', '.join(str(i) for i in missing)} of {total} is "
                f"missing ({shards[0].name} is there), so only the images that are there are used"
            )


@functools.cache
def warn_once(message: str) -> None:
    """Log it, unless this process has."""
    log.warning(message)


def read_split(
    shards: list[Path],
    *,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_broken: float = 0.0,
) -> ImageSet:
    """Read and decode these shards, in order. image_size None keeps the images' own common size.

    Class names come from the schema's `huggingface` metadata, else from a text label column, else
    they are the numbers. A large set is decoded once, into a cache beside it, and then mapped into
    memory. Rows whose image can't be read, or without a label, are left out, as long as they are
    no larger a share of all than max_broken. Raises UserError naming the file (and row).
    """
    columns = [Columns(shard, image_column, label_column) for shard in shards]
    count = sum(each.rows for each in columns)
    if not count:
        raise UserError(f"{shards[0]} has no rows; get the file again, or choose another root")
    starts = [0, *itertools.accumulate(each.rows for each in columns)]

    def place(index: int) -> str:
        shard = bisect.bisect_right(starts, index) - 1
        return f"row {index - starts[shard]} of {shards[shard]}"

    # Labels first: an unusable column is found before the long work.
    texts = [label for each in columns for label in each.labels()]
    labels, classes = numbered(texts, columns[-1].class_names, place)
    unlabelled = np.flatnonzero(labels < 0)
    what = str(shards[0].parent)

    def batches() -> Iterator[tuple[range, Content]]:
        for start, each in zip(starts, columns, strict=False):
            for rows, content in each.images():
                yield range(start + rows.start, start + rows.stop), labelled(start, content)

    def labelled(start: int, content: Content) -> Content:
        def of_row(index: int) -> bytes:
            if labels[index] < 0:
                raise Unreadable("its label is null")
            return content(index - start)

        return of_row

    def decoded() -> Decoded:
        return decode(batches(), count, place, image_size, max_broken, what)

    def make(file: IO[bytes]) -> cache.Made:
        made = decoded()
        cache.write_header(file, made.images.shape)
        file.write(made.images.data)
        return cache.Made(labels[kept(count, made.broken)], made.broken)

    images: cache.Cached | None = None
    if count >= cache.CACHE_FROM:
        key = cache.fingerprint(
            shards[0].parent, [str(shard) for shard in shards], VERSION, image_size, image_column,
            unlabelled.tolist(),
        )  # fmt: skip
        name = f"parquet-{shards[0].stem.split('-')[0]}-{image_size or 'own'}px"
        images = cache.cached(shards[0].parent, name, key, what=what, make=make)
    if images is None:
        images = cache.in_memory(decoded(), labels)
    refuse_too_many(named(images.broken, place), count, max_broken, what)
    own = labels[kept(count, images.broken)]  # not the cache's: another column may be asked for
    return ImageSet(images.images, torch.from_numpy(own), classes, named(images.broken, place))


def numbered(
    labels: Sequence[int | str | None], names: list[str] | None, place: Callable[[int], str]
) -> tuple[np.ndarray, list[str]]:
    """Labels as int64 [N], -1 for null, and the class names; texts are numbered in sorted order.

    Raises UserError for a number that is out of range.
    """
    given = [(index, label) for index, label in enumerate(labels) if label is not None]
    tensor = np.full(len(labels), -1, dtype=np.int64)
    texts = [label for _, label in given if isinstance(label, str)]
    if texts and len(texts) < len(given):
        raise UserError(f"labels are partly numbers, partly texts, first in {place(0)}")
    if texts:
        names = sorted(set(texts))
        number: dict[Any, int] = {name: index for index, name in enumerate(names)}
        given = [(index, number[label]) for index, label in given]
    elif given and all(label == -1 for _, label in given):  # the hub's mark for "not published"
        given = [(index, 0) for index, _ in given]
    count = len(names) if names else MAX_CLASSES
    for index, label in given:
        if not 0 <= int(label) < count:
            raise UserError(
                f"the label in {place(index)} is {label}, out of range 0..{count - 1}; correct it, "
                "or choose another column with dataset.reader.label_column= (or "
                "ood.reader.label_column=)"
            )
        tensor[index] = label
    return tensor, names or [str(index) for index in range(int(tensor.max(initial=0)) + 1)]
