"""One Parquet file of images: its columns, and its rows in batches that are never large.

What the file says of itself is checked before memory is taken for it. Arrow then takes what the
pages really hold: a page that is larger than the file's footer says may take up to 2 GiB, the
most that the format has; of these one a column is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mosaickd.data.broken import Unreadable, escaped
from mosaickd.errors import UserError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("fine_label", "label")  # fine before coarse: CIFAR-100 has both
BATCH = 2**24  # bytes of encoded images at once, about
ROWS = 256  # and at most so many of them
# Encoded images hardly compress, so a column that unpacks to far more than the file is a trap.
UNPACKED, UNPACKED_TIMES = 2**28, 20
MANY_ROWS, ROW_BYTES = 100_000, 8


class Columns:
    """The columns of images and labels of a shard. Raises UserError where they can't be used."""

    def __init__(self, shard: Path, image_column: str | None, label_column: str | None) -> None:
        self.shard = shard
        if not shard.is_file():
            raise UserError(f"{escaped(shard)} is not a regular file; remove it, or get it again")
        with self.opened() as file:
            schema, metadata = file.schema_arrow, file.metadata
            self.rows: int = metadata.num_rows
            present = list(schema.names)
            self.image = self.choose(present, "image_column", image_column, IMAGE_COLUMNS)
            if self.image is None:
                raise UserError(
                    f"{shard} has no image column: it has {listed(present)}; set "
                    "dataset.reader.image_column= (or ood.reader.image_column=) to the right one"
                )
            self.label = self.choose(present, "label_column", label_column, LABEL_COLUMNS)
            kind = schema.field(self.image).type
            self.field = image_field(kind)
            if self.field is None:
                raise UserError(
                    f"column {escaped(self.image)} of {shard} is {escaped(kind)[:200]}; "
                    "expected encoded images, either binary or a struct with a field `bytes`"
                )
            self.leaf = ".".join([self.image, *self.field])
            self.class_names: list[str] | None = None
            if self.label is not None:
                self.text_labels = self.check_label(schema.field(self.label).type)
                self.class_names = class_names(schema.metadata, self.label)
            self.check_claims(metadata)

    def choose(
        self, present: list[str], setting: str, wanted: str | None, usual: tuple[str, ...]
    ) -> str | None:
        if wanted is not None and wanted not in present:
            raise UserError(f"{self.shard} has no column {wanted!r}; it has {listed(present)}; "
                            f"set dataset.reader.{setting}= (or ood.reader.{setting}=) to one of "
                            "these")  # fmt: skip
        chosen = wanted or next((name for name in usual if name in present), None)
        if chosen is not None and present.count(chosen) > 1:
            raise UserError(f"{self.shard} has several columns {chosen!r}; rename all but one")
        return chosen

    def check_label(self, kind: Any) -> bool:
        """Whether labels are texts."""
        import pyarrow.types as types

        value = kind.value_type if types.is_dictionary(kind) else kind
        text = types.is_string(value) or types.is_large_string(value)
        if not (text or types.is_integer(value) or types.is_null(value)):
            raise UserError(
                f"column {escaped(self.label)} of {self.shard} is {escaped(kind)[:200]}; "
                "expected labels, whole numbers or texts: choose another column with "
                "dataset.reader.label_column= (or ood.reader.label_column=)"
            )
        return text

    def check_claims(self, metadata: Any) -> None:
        """UserError where the footer speaks of more than a file of this size can mean."""
        size = self.shard.stat().st_size
        if self.rows > max(MANY_ROWS, size // ROW_BYTES):
            raise UserError(f"{self.shard} claims {self.rows:,} rows in {size:,} bytes: it is "
                            "damaged, or a trap; get it again")  # fmt: skip
        # Of whole row groups, and not of our columns: pyarrow ends the process (an uncaught C++
        # exception) where it is asked about a column of which the footer is damaged.
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
        self.row_bytes = unpacked // max(1, self.rows)
        if unpacked > max(UNPACKED, UNPACKED_TIMES * size):
            raise UserError(
                f"{self.shard} has {size:,} bytes, and would unpack to {unpacked:,}: "
                "encoded images don't compress like that; it is damaged, or a trap: get it again"
            )

    @contextmanager
    def opened(self, dictionary: str | None = None) -> Iterator[Any]:
        """The pyarrow.parquet.ParquetFile. dictionary: a column of which equal values are kept
        once; a file can repeat a large one in a few bits."""
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(
                self.shard, read_dictionary=[dictionary] if dictionary else None, buffer_size=2**20
            ) as file:
                yield file
        except (UserError, MemoryError):
            raise
        except Exception as error:  # a damaged file surfaces as nearly anything
            reason = escaped(" ".join(str(error).split()))[:300]
            raise UserError(
                f"cannot read {escaped(self.shard)}: {reason}; the file is damaged or "
                "incomplete: get it again"
            ) from error

    def labels(self) -> list[Any]:
        """A number, a text or None for each row; without a column of labels 0."""
        if self.label is None:
            return [0] * self.rows
        labels: list[Any] = []
        with self.opened(self.label if self.text_labels else None) as file:
            for column in batches(file, self.label, 2**16):
                if self.text_labels:  # each text once, however many rows have it
                    texts = column.dictionary.to_pylist()
                    labels += [None if i is None else texts[i] for i in column.indices.to_pylist()]
                else:
                    labels += column.to_pylist()
                self.check_rows(len(labels), at_most=True)
        self.check_rows(len(labels))
        return labels

    def images(self) -> Iterator[tuple[range, Callable[[int], bytes]]]:
        """Batches: the rows, and how to get the encoded image of one. Raises Unreadable there."""
        done = 0
        with self.opened(self.leaf) as file:
            rows = max(1, min(ROWS, BATCH // max(1, self.row_bytes)))
            for column in batches(file, self.leaf, rows):
                for name in self.field or ():
                    # flatten() keeps a null struct null; field() would not
                    column = column.flatten()[column.type.get_field_index(name)]
                self.check_rows(done + len(column), at_most=True)
                yield range(done, done + len(column)), _content(column, done)
                done += len(column)
        self.check_rows(done)

    def check_rows(self, number: int, at_most: bool = False) -> None:
        if number > self.rows or (number < self.rows and not at_most):
            raise UserError(f"{self.shard} holds other than the {self.rows} rows that it says; "
                            "the file is damaged: get it again")  # fmt: skip


def batches(file: Any, column: str, rows: int) -> Iterator[Any]:
    """A column as Arrow arrays of at most so many rows, none of which spans two row groups: they
    have dictionaries of their own."""
    for group in range(file.num_row_groups):
        for batch in file.iter_batches(rows, row_groups=[group], columns=[column]):
            (array,) = batch.columns
            array.validate(full=True)  # of a damaged file, an index may lie beyond its dictionary
            yield array


def _content(column: Any, first: int) -> Callable[[int], bytes]:
    def content(row: int) -> bytes:
        data = column[row - first].as_py()
        if data is None:
            raise Unreadable("the row holds no bytes (only a path, or nothing)")
        return data

    return content


def image_field(kind: Any) -> tuple[str, ...] | None:
    """Where in a column of this type the encoded images are: in itself (), or in a field."""
    import pyarrow.types as types

    def is_bytes(kind: Any) -> bool:
        value = kind.value_type if types.is_dictionary(kind) else kind
        return types.is_binary(value) or types.is_large_binary(value)

    if is_bytes(kind):
        return ()
    if types.is_struct(kind) and (index := kind.get_field_index("bytes")) >= 0:
        return ("bytes",) if is_bytes(kind.field(index).type) else None
    return None


def class_names(metadata: dict[bytes, bytes] | None, label_key: str) -> list[str] | None:
    """As the hub's `datasets` writes them."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label_key]["names"]]
    except (KeyError, TypeError, ValueError, RecursionError):  # none, or another writer's
        return None


def listed(columns: list[str]) -> str:
    names = [escaped(name) for name in columns[:20]]
    return ", ".join([*names, "..."] if len(columns) > 20 else names)
