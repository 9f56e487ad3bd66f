"""Parquet files as the Hugging Face hub lays out image sets: encoded images in a column."""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mosaickd.data.cache import load_images
from mosaickd.data.decode import Progress, Read, Unreadable, no_progress
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError, printable

log = logging.getLogger(__name__)

SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("fine_label", "label")  # fine before coarse: CIFAR-100 has both
ROWS = 64  # read at once
VERSION = 2  # of the decoding: raise it when the pixels change, so that old caches are not read


def read(
    *,
    root: Path,
    split: str,
    image_size: int,
    image_column: str | None = None,  # null: img or image
    label_column: str | None = None,  # null: fine_label or label; without one all labels are 0
    max_broken: float = 0.0,
    progress: Progress = no_progress,
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
        max_broken=max_broken, progress=progress,
    )  # fmt: skip


def find_shards(root: Path, split: str) -> list[Path]:
    """Return the split's Parquet files under root, in order; none if there are none.

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
            _warn_of_missing(shards)
            return shards
    return []


def _warn_of_missing(shards: list[Path]) -> None:
    """Log which of the shards that the names speak of (`-00000-of-00002`) are not there."""
    numbered = [re.search(r"-(\d+)-of-(\d+)$", shard.stem) for shard in shards]
    present = {int(match[1]) for match in numbered if match}
    total = max((int(match[2]) for match in numbered if match), default=0)
    if missing := sorted(set(range(total)) - present):
        warn_once(
            f"{shards[0].parent}: shard {', '.join(map(str, missing))} of {total} is missing "
            f"({shards[0].name} is there), so only the images that are there are used"
        )


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, unless this process has."""
    log.warning(message)


def read_split(
    shards: list[Path],
    *,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_broken: float = 0.0,
    progress: Progress = no_progress,
) -> ImageSet:
    """Read and decode these shards, in order. image_size None keeps the images' own common size.

    Class names come from the schema's `huggingface` metadata, else from a text label column, else
    they are the numbers. A large set is decoded once, into a cache beside it. Rows whose image
    can't be read, or without a label, are left out, as long as they are no larger a share of all
    than max_broken. Raises UserError naming the file (and row).
    """
    parts = [Shard(path, image_column, label_column) for path in shards]
    starts = [0, *itertools.accumulate(part.rows for part in parts)]
    count, title = starts[-1], printable(str(shards[0].parent))
    if not count:
        raise UserError(f"{shards[0]} has no rows; get the file again, or choose another root")

    def place(index: int) -> str:
        shard = bisect.bisect_right(starts, index) - 1
        return f"row {index - starts[shard]} of {shards[shard]}"

    # Labels first: an unusable column is named before the long work.
    values = [label for part in parts for label in part.labels()]
    labels, classes = number_labels(values, parts[-1].class_names, place)

    def reads() -> Iterator[Read]:
        images = itertools.chain.from_iterable(part.images() for part in parts)
        for image, label in zip(images, labels, strict=True):
            yield partial(_image_bytes, image, label)

    return load_images(
        reads, labels, classes, root=shards[0].parent,
        name=f"parquet-{shards[0].stem.split('-')[0]}-{image_size or 'own'}px",
        files=[str(shard) for shard in shards],
        settings=(VERSION, image_size, image_column, label_column), place=place,
        image_size=image_size, max_broken=max_broken, title=title, progress=progress,
    )  # fmt: skip


def _image_bytes(image: bytes | None, label: int) -> bytes:
    if label < 0:
        raise Unreadable("its label is null")
    if image is None:
        raise Unreadable("the row holds no bytes (only a path, or nothing)")
    return image


class Shard:
    """One Parquet file: its columns of images and labels. Raises UserError for a damaged one."""

    def __init__(self, path: Path, image_column: str | None, label_column: str | None) -> None:
        self.path = path
        with self._opened() as file:
            self.schema = file.schema_arrow
            self.rows: int = file.metadata.num_rows
        image = self._choose_column("image_column", image_column, IMAGE_COLUMNS)
        if image is None:
            raise UserError(
                f"{path} has no image column: it has {self._columns}; set "
                "dataset.reader.image_column= (or ood.reader.image_column=) to the right one"
            )
        self.image_column = self._bytes_column(image)
        self.label_column = self._choose_column("label_column", label_column, LABEL_COLUMNS)
        self.class_names: list[str] | None = None
        if self.label_column is not None:
            self._check_labels(self.label_column)
            self.class_names = class_names(self.schema.metadata, self.label_column)

    def labels(self) -> list[Any]:
        """Return a number, a text or None for each row; without a column of labels 0."""
        if self.label_column is None:
            return [0] * self.rows
        return list(self._values(self.label_column, 2**16))

    def images(self) -> Iterator[bytes | None]:
        """Yield the encoded image of each row; None where there is none."""
        for value in self._values(self.image_column, ROWS):
            yield value["bytes"] if isinstance(value, dict) else value

    def _values(self, column: str, rows: int) -> Iterator[Any]:
        with self._opened() as file:
            for batch in file.iter_batches(rows, columns=[column]):
                yield from batch.column(0).to_pylist()

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with pq.ParquetFile(self.path) as file:
                yield file
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"cannot read {self.path}: {printable(str(error), 300)}; the file is damaged or "
                "incomplete: get it again"
            ) from error

    @property
    def _columns(self) -> str:
        return printable(", ".join(self.schema.names))

    def _choose_column(self, key: str, name: str | None, usual: tuple[str, ...]) -> str | None:
        names = self.schema.names
        if name is not None and name not in names:
            raise UserError(
                f"{self.path} has no column {name!r}; it has {self._columns}; set "
                f"dataset.reader.{key}= (or ood.reader.{key}=) to one of these"
            )
        return name or next((column for column in usual if column in names), None)

    def _bytes_column(self, name: str) -> str:
        """Return the column of bytes: the image column itself, or its field `bytes`."""
        kind = self.schema.field(name).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            name, kind = f"{name}.bytes", kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UserError(
                f"column {name} of {self.path} is {printable(str(kind), 200)}; expected encoded "
                "images, either binary or a struct with a field `bytes`"
            )
        return name

    def _check_labels(self, name: str) -> None:
        kind = self.schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = pa.types.is_string(value) or pa.types.is_large_string(value)
        if not (text or pa.types.is_integer(value) or pa.types.is_null(value)):
            raise UserError(
                f"column {name} of {self.path} is {printable(str(kind), 200)}; expected labels, "
                "whole numbers or texts: choose another column with dataset.reader.label_column= "
                "(or ood.reader.label_column=)"
            )


def class_names(metadata: dict[bytes, bytes] | None, label_column: str) -> list[str] | None:
    """Return the names of the classes as the hub's `datasets` writes them, if it did."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label_column]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def number_labels(
    labels: Sequence[int | str | None], names: list[str] | None, place: Callable[[int], str]
) -> tuple[np.ndarray, list[str]]:
    """Return labels as int64 [N], -1 for null, and the class names.

    Texts are numbered in sorted order. Raises UserError for a number that is out of range.
    """
    given = [(index, label) for index, label in enumerate(labels) if label is not None]
    texts = sorted({label for _, label in given if isinstance(label, str)})
    if texts:
        if not all(isinstance(label, str) for _, label in given):
            raise UserError(f"labels are partly numbers, partly texts, first in {place(0)}")
        names, number = texts, {text: index for index, text in enumerate(texts)}
        given = [(index, number[str(label)]) for index, label in given]
    elif all(label == -1 for _, label in given):  # the hub's mark for "not published"
        given = [(index, 0) for index, _ in given]
    numbers = np.full(len(labels), -1, dtype=np.int64)
    for index, label in given:
        if int(label) < 0 or (names and int(label) >= len(names)):
            raise UserError(
                f"the label in {place(index)} is {label}, out of range 0"
                f"{f'..{len(names) - 1}' if names else ' and above'}; correct it, or choose "
                "another column with dataset.reader.label_column= (or ood.reader.label_column=)"
            )
        numbers[index] = label
    return numbers, names or [str(index) for index in range(int(numbers.max(initial=0)) + 1)]
