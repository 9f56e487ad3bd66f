"""Parquet shards as the Hugging Face hub lays them out, and what can be wrong with them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mosaickd.data import cache, decode, parquet
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError


def png(value: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(*encoded: bytes | None) -> pa.Array:
    """Structs of bytes and path, as the hub has them."""
    return pa.array([{"bytes": data, "path": "x.png"} for data in encoded], STRUCT)


def write(path: Path, table: pa.Table, names: list[str] | None = None, **options: Any) -> Path:
    """A shard; names: of the classes in the column `label`, in the hub's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if names is not None:
        info = {"info": {"features": {"label": {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, **options)
    return path


def images_of(*values: int, **columns: Any) -> pa.Table:
    return pa.table({"img": rows(*map(png, values)), **columns})


def read(root: Path, **settings: Any) -> ImageSet:
    return parquet.read(root=root, split="train", image_size=8, **settings)


def values(images: ImageSet) -> list[int]:
    return images.images[:, 0, 4, 4].tolist()


# -------------------------------------------------------------------------------------- good sets


def test_two_shards_in_order_with_the_hubs_class_names(tmp_path: Path) -> None:
    names = ["ant", "bee", "cat"]
    write(tmp_path / "train-00000-of-00002.parquet", images_of(1, 2, 3, label=[0, 1, 2]), names)
    write(tmp_path / "train-00001-of-00002.parquet", images_of(4, 5, label=[1, 0]), names)
    images = read(tmp_path)
    assert values(images) == [1, 2, 3, 4, 5]
    assert images.labels.tolist() == [0, 1, 2, 1, 0]
    assert images.classes == names


def test_fine_labels_win_over_coarse(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", images_of(1, 2, label=[0, 0], fine_label=[0, 1]))
    assert read(tmp_path).labels.tolist() == [0, 1]
    assert read(tmp_path, label_column="label").labels.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("labels", "expected", "classes"),
    [
        ({}, [0, 0, 0], ["0"]),
        ({"label": ["cat", "ant", "cat"]}, [1, 0, 1], ["ant", "cat"]),
        ({"label": pa.array(["cat", "ant", "cat"]).dictionary_encode()}, [1, 0, 1], ["ant", "cat"]),
        ({"label": [-1, -1, -1]}, [0, 0, 0], ["0"]),  # the hub's mark for "not published"
        ({"label": [0, 3, 1]}, [0, 3, 1], ["0", "1", "2", "3"]),
    ],
)
def test_labels_of_other_kinds(
    tmp_path: Path, labels: dict[str, Any], expected: list[int], classes: list[str]
) -> None:
    plain = pa.table({"image": pa.array([png(1), png(2), png(3)], pa.binary()), **labels})
    write(tmp_path / "data" / "train" / "0000.parquet", plain)
    images = read(tmp_path)
    assert (values(images), images.labels.tolist()) == ([1, 2, 3], expected)
    assert images.classes == classes


def test_images_of_several_sizes_are_fitted(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", pa.table({"img": rows(*(png(9, s) for s in (8, 20)))}))
    assert values(read(tmp_path)) == [9, 9]
    with pytest.raises(UserError, match=r"row 1 of .*all must have one size"):
        parquet.read_split([path])


def test_a_missing_shard_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", images_of(1))
    for _ in range(2):
        assert len(read(tmp_path)) == 1
    assert caplog.text.count("shard 1 of 2 is missing") == 1


def test_a_large_set_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHE_FROM", 6)
    path = tmp_path / "train.parquet"
    write(path, images_of(*range(7), label=list(range(7)), other=[0] * 7))
    first = parquet.read_split([path])
    with monkeypatch.context() as patch:
        patch.setattr(decode, "decode_image", None)  # not called again
        again = parquet.read_split([path])
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)
    assert again.classes == first.classes
    assert parquet.read_split([path], label_column="other").labels.tolist() == [0] * 7
    write(path, images_of(*range(10, 17), label=list(range(7))))  # another set of that name
    assert values(parquet.read_split([path])) == list(range(10, 17))


# ------------------------------------------------------------------------------------ broken rows


def test_broken_rows_are_left_out(tmp_path: Path) -> None:
    encoded = [png(0), None, png(2), b"no image", png(4), png(5), png(6)[:40], b""]
    images = pa.concat_arrays([rows(*encoded), pa.nulls(1, STRUCT), rows(png(9))])
    labels = [0, 1, 2, 3, None, 5, 6, 7, 8, 9]
    path = tmp_path / "train.parquet"
    write(path, pa.table({"img": images, "label": labels}), row_group_size=3)
    found = read(tmp_path, max_broken=0.6)
    assert values(found) == found.labels.tolist() == [0, 2, 5, 9]
    reasons = dict(found.broken)
    assert list(reasons) == [f"row {i} of {path}" for i in (1, 3, 4, 6, 7, 8)]
    assert reasons[f"row 4 of {path}"] == "its label is null"
    assert "no bytes" in reasons[f"row 8 of {path}"]
    with pytest.raises(UserError, match=r"6 of 10 .*row 1 of"):
        read(tmp_path, max_broken=0.5)


def test_rows_keep_their_labels_across_many_batches(tmp_path: Path) -> None:
    encoded = [png(i % 256) if i % 97 else b"torn" for i in range(600)]
    table = pa.table({"img": rows(*encoded), "label": [i % 256 for i in range(600)]})
    write(tmp_path / "train.parquet", table, row_group_size=250)
    found = read(tmp_path, max_broken=0.02)
    assert len(found) == 600 - 7
    assert values(found) == found.labels.tolist()


# ------------------------------------------------------------------------------------ wrong files

WRONG: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "no image column": (lambda: pa.table({"a": [1], "b": [2]}), "no image column: it has a, b"),
    "images as texts": (lambda: pa.table({"img": ["x.png"]}), "img .* is string; expected encoded"),
    "only paths": (
        lambda: pa.table({"img": [{"path": "x.png"}]}), "expected encoded images.*field `bytes`"),
    "all rows null": (lambda: pa.table({"img": pa.nulls(2, STRUCT)}), "2 of 2 images"),
    "no rows": (lambda: pa.table({"img": rows()}), "has no rows"),
    "labels that are floats": (
        lambda: images_of(1, 2, label=[0.0, 1.5]), "label .* double; expected labels"),
    "labels in lists": (lambda: images_of(1, 2, label=[[0], [1]]), "label .* is list"),
    "all labels null": (lambda: images_of(1, 2, label=pa.nulls(2)), "2 of 2 images"),
    "a negative label": (lambda: images_of(1, 2, label=[0, -1]), "label in row 1 of .* is -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_with_a_reason(tmp_path: Path, name: str) -> None:
    make, reason = WRONG[name]
    write(tmp_path / "train.parquet", make())
    with pytest.raises(UserError, match=reason) as caught:
        read(tmp_path, max_broken=0.9)
    assert str(tmp_path) in str(caught.value)


def test_a_label_beyond_the_names(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", images_of(1, 2, label=[0, 2]), ["a", "b"])
    with pytest.raises(UserError, match=r"row 1 of .* is 2, out of range 0\.\.1"):
        read(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", images_of(*range(20)))
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", whole[:middle], whole[:4] + bytes(middle - 4) + whole[middle:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train\.parquet"):
            read(tmp_path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no train shards under {tmp_path}"):
        read(tmp_path)
    write(tmp_path / "full" / "train.parquet", images_of(1))
    with pytest.raises(UserError, match="no column 'photo'; it has img"):
        read(tmp_path, image_column="photo")
    write(tmp_path / "cropped" / "train.parquet", images_of(1))
    with pytest.raises(UserError, match="several folders"):
        read(tmp_path)
    assert len(read(tmp_path / "full")) == 1
