"""Parquet files as the Hugging Face hub lays out image sets: encoded images in a column."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from mosaickd.data import cache
from mosaickd.data.folder import decode
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError

log = logging.getLogger(__name__)

SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
IMAGE_COLUMNS = ("img", "image")
VERSION = 1  # of the decoding: raise it when the pixels change, so that old caches are not read
LABEL_COLUMNS = ("fine_label", "label")  # fine before coarse: CIFAR-100 has both


def read(
    *,
    root: Path,
    split: str,
    image_size: int,
    image_column: str | None = None,  # null: img or image
    label_column: str | None = None,  # null: fine_label or label; without one all labels are 0
) -> ImageSet:
    """Read a split from the Parquet shards under root, each image fitted to image_size.

    Raises UserError for missing or damaged files, unknown columns and undecodable images.
    """
    shards = find_shards(root, split)
    if not shards:
        others = ", ".join(f"{name}*.parquet" for name in SPLITS[split])
        raise UserError(
            f"no {split} shards under {root.absolute()} (looked for {others}, at any depth); put "
            "them there, or set dataset.root= (or ood.root=) to the folder that holds them"
        )
    return read_split(
        shards, image_size=image_size, image_column=image_column, label_column=label_column
    )


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
) -> ImageSet:
    """Read and decode these shards, in order. image_size None keeps the images' own common size.

    Class names come from the schema's `huggingface` metadata, else from a text label column, else
    they are the numbers. A large set is decoded once, into a cache beside it, and then mapped into
    memory. Raises UserError naming the file (and row) that cannot be read.
    """
    labels: list[Any] = []
    starts: list[tuple[int, Path]] = []
    names: list[str] | None = None
    for shard in shards:
        starts.append((len(labels), shard))
        shard_labels, names = _read_labels(shard, image_column, label_column)
        labels += shard_labels
    if not labels:
        raise UserError(f"{shards[0]} has no rows; get the file again, or choose another root")

    def place(index: int) -> str:
        start, shard = next(item for item in reversed(starts) if item[0] <= index)
        return f"in row {index - start} of {shard}"

    # Labels first: an unusable column is found before the long work.
    label_tensor, classes = _labels(labels, names, place)
    what = str(shards[0].parent)

    def decoded() -> Tensor:
        encoded = [image for shard in shards for image in _read_images(shard, image_column)]

        def content(index: int) -> bytes:
            data = encoded[index]
            if data is None:
                raise ValueError("the row holds no bytes (only a path, or nothing)")
            return data

        return decode(len(encoded), content, place, image_size, what=what)

    def make(file: IO[bytes]) -> np.ndarray:
        images = decoded()
        cache.write_header(file, images.shape)
        file.write(images.numpy().data)
        return label_tensor.numpy()

    if len(labels) >= cache.CACHE_FROM:
        key = cache.fingerprint(
            shards[0].parent, [str(shard) for shard in shards], VERSION, image_size, image_column
        )
        name = f"parquet-{shards[0].stem.split('-')[0]}-{image_size or 'own'}px"
        found = cache.cached(shards[0].parent, name, key, what=what, make=make)
        if found is not None:
            return ImageSet(found[0], label_tensor, classes)
    return ImageSet(decoded(), label_tensor, classes)


@contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(shard) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"cannot read {shard}: {error}; the file is damaged or incomplete: get it again"
        ) from error


def _read_labels(
    shard: Path, image_column: str | None, label_column: str | None
) -> tuple[list[Any], list[str] | None]:
    """A shard's labels (0 without a label column) and its class names. Has it images, too?"""
    with _opened(shard) as file:
        schema = file.schema_arrow
        if _column(shard, schema.names, image_column, IMAGE_COLUMNS) is None:
            raise UserError(
                f"{shard} has no image column: it has {', '.join(schema.names)}; set "
                "dataset.reader.image_column= (or ood.reader.image_column=) to the right one"
            )
        key = _column(shard, schema.names, label_column, LABEL_COLUMNS)
        if key is None:
            return [0] * file.metadata.num_rows, None
        return file.read(columns=[key]).column(key).to_pylist(), _class_names(schema.metadata, key)


def _read_images(shard: Path, image_column: str | None) -> list[bytes | None]:
    """A shard's encoded images."""
    import pyarrow as pa

    with _opened(shard) as file:
        schema = file.schema_arrow
        image_key = _column(shard, schema.names, image_column, IMAGE_COLUMNS)
        table = file.read(columns=[image_key])
    kind = schema.field(image_key).type
    encoded: list[bytes | None] = []
    for chunk in table.column(image_key).chunks:
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            # flatten() keeps a null struct null; field() would not
            chunk = chunk.flatten()[kind.get_field_index("bytes")]
        elif not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UserError(
                f"column {image_key} of {shard} is {kind}; expected encoded images, either binary "
                "or a struct with a field `bytes`"
            )
        encoded += chunk.to_pylist()
    return encoded


def _column(
    shard: Path, present: list[str], wanted: str | None, usual: tuple[str, ...]
) -> str | None:
    if wanted is not None and wanted not in present:
        raise UserError(f"{shard} has no column {wanted!r}; it has {', '.join(present)}")
    return wanted or next((name for name in usual if name in present), None)


def _class_names(metadata: dict[bytes, bytes] | None, label_key: str) -> list[str] | None:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label_key]["names"]]
    except (KeyError, TypeError, ValueError):  # no such metadata, or another writer's
        return None


def _labels(labels: list[Any], names: list[str] | None, place: Any) -> tuple[Tensor, list[str]]:
    """Labels as int64 [N] and the class names; text labels are numbered in sorted order."""
    for index, label in enumerate(labels):
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise UserError(f"the label {place(index)} is {label!r}; expected a number or a text")
    if all(isinstance(label, str) for label in labels):
        names = sorted(set(labels))
        number = {name: index for index, name in enumerate(names)}
        return torch.tensor([number[label] for label in labels]), names
    if any(isinstance(label, str) for label in labels):
        raise UserError(f"labels are partly numbers, partly texts, first {place(0)}")
    tensor = torch.tensor(labels, dtype=torch.int64)
    if bool((tensor == -1).all()):  # the hub's mark for "not published"
        tensor = torch.zeros_like(tensor)
    count = len(names) if names else int(tensor.max()) + 1
    wrong = ((tensor < 0) | (tensor >= count)).nonzero().flatten().tolist()
    if wrong:
        raise UserError(
            f"the label {place(wrong[0])} is {int(tensor[wrong[0]])}, out of range 0..{count - 1}"
        )
    return tensor, names or [str(index) for index in range(count)]
