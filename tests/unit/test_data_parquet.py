from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mosaickd.data import cache, parquet
from mosaickd.errors import UserError


def pixels(count: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write(
    path: Path,
    encoded: list[Any],
    names: list[str] | None = None,
    image: str = "img",
    **columns: Any,
) -> None:
    """A shard as the hub lays it out: structs of bytes and path, class names in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = pa.array(
        [{"bytes": data, "path": None} for data in encoded],
        type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({image: structs, **columns})
    if names is not None:
        features = {label: {"names": names, "_type": "ClassLabel"} for label in columns}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, path)


def test_roundtrip_over_two_shards(tmp_path: Path) -> None:
    images = pixels(5)
    encoded = [png(image) for image in images]
    names = ["ant", "bee", "cat"]
    write(tmp_path / "train-00000-of-00002.parquet", encoded[:3], names, label=[0, 1, 2])
    write(tmp_path / "train-00001-of-00002.parquet", encoded[3:], names, label=[1, 0])
    read = parquet.read(root=tmp_path, split="train", image_size=8)
    assert np.array_equal(read.images.numpy(), images.transpose(0, 3, 1, 2))
    assert read.labels.tolist() == [0, 1, 2, 1, 0]
    assert read.classes == names


def test_fine_labels_win_over_coarse(tmp_path: Path) -> None:
    encoded = [png(image) for image in pixels(2)]
    write(tmp_path / "train.parquet", encoded, label=[0, 0], fine_label=[0, 1])
    assert parquet.read(root=tmp_path, split="train", image_size=8).labels.tolist() == [0, 1]
    coarse = parquet.read(root=tmp_path, split="train", image_size=8, label_column="label")
    assert coarse.labels.tolist() == [0, 0]


def test_without_labels_or_names(tmp_path: Path) -> None:
    encoded = [png(image) for image in pixels(2)]
    write(tmp_path / "data" / "train.parquet", encoded, image="image")
    read = parquet.read(root=tmp_path, split="train", image_size=8)
    assert read.labels.tolist() == [0, 0]
    assert len(read.classes) == 1


def test_text_labels_and_plain_bytes(tmp_path: Path) -> None:
    encoded = [png(image) for image in pixels(3)]
    table = pa.table({"image": pa.array(encoded, pa.binary()), "label": ["cat", "ant", "cat"]})
    (tmp_path / "train").mkdir()
    pq.write_table(table, tmp_path / "train" / "0000.parquet")
    read = parquet.read(root=tmp_path, split="train", image_size=8)
    assert read.classes == ["ant", "cat"]
    assert read.labels.tolist() == [1, 0, 1]


def test_images_of_several_sizes_are_fitted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoded = [png(pixels(1, size)[0]) for size in (8, 20, 4)]
    write(tmp_path / "train.parquet", encoded)
    with caplog.at_level(logging.INFO):
        read = parquet.read(root=tmp_path, split="train", image_size=8)
    assert read.images.shape == (3, 3, 8, 8)
    assert "2 of another size" in caplog.text
    with pytest.raises(UserError, match=r"row 1 of .*all must have one size"):
        parquet.read_split([tmp_path / "train.parquet"])


def test_a_missing_shard_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", [png(pixels(1)[0])])
    for _ in range(2):
        assert len(parquet.read(root=tmp_path, split="train", image_size=8)) == 1
    assert caplog.text.count("shard 1 of 2 is missing") == 1


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write(path, [png(image) for image in pixels(20)])
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", whole[:middle], whole[:4] + bytes(middle - 4) + whole[middle:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train\.parquet"):
            parquet.read(root=tmp_path, split="train", image_size=8)


@pytest.mark.parametrize("damaged", [b"no image", png(pixels(1)[0])[:60], None])
def test_an_undecodable_image_is_named_with_its_row(tmp_path: Path, damaged: bytes | None) -> None:
    good = png(pixels(1)[0])
    write(tmp_path / "train-00000-of-00002.parquet", [good, good])
    write(tmp_path / "train-00001-of-00002.parquet", [good, damaged])
    with pytest.raises(UserError, match=r"row 1 of .*train-00001-of-00002\.parquet"):
        parquet.read(root=tmp_path, split="train", image_size=8)


@pytest.mark.parametrize("labels", [[0, 7], [0, -1], [0, None]])
def test_an_impossible_label_is_named_with_its_row(tmp_path: Path, labels: list[Any]) -> None:
    write(tmp_path / "train.parquet", [png(pixels(1)[0])] * 2, ["a", "b"], label=labels)
    with pytest.raises(UserError, match=r"row 1 of .*train\.parquet"):
        parquet.read(root=tmp_path, split="train", image_size=8)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no train shards under {tmp_path}"):
        parquet.read(root=tmp_path, split="train", image_size=8)
    write(tmp_path / "train.parquet", [png(pixels(1)[0])], image="picture")
    with pytest.raises(UserError, match=r"no image column: it has picture.*image_column"):
        parquet.read(root=tmp_path, split="train", image_size=8)
    with pytest.raises(UserError, match="no column 'photo'; it has picture"):
        parquet.read(root=tmp_path, split="train", image_size=8, image_column="photo")


def test_two_sets_under_one_root_are_not_mixed(tmp_path: Path) -> None:
    for name in ("full", "cropped"):
        write(tmp_path / name / "train.parquet", [png(pixels(1)[0])])
    with pytest.raises(UserError, match="several folders"):
        parquet.read(root=tmp_path, split="train", image_size=8)
    assert len(parquet.read(root=tmp_path / "full", split="train", image_size=8)) == 1


def test_a_large_set_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHE_FROM", 6)
    images = pixels(7)
    write(tmp_path / "train.parquet", [png(image) for image in images], label=list(range(7)))
    first = parquet.read_split([tmp_path / "train.parquet"])
    assert list((tmp_path / ".mosaickd").glob("parquet-train-*.npy"))
    decode = parquet.decode
    monkeypatch.setattr(parquet, "decode", None)  # not called again
    again = parquet.read_split([tmp_path / "train.parquet"])
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)
    assert again.classes == first.classes

    monkeypatch.setattr(parquet, "decode", decode)
    write(
        tmp_path / "train.parquet", [png(255 - image) for image in images], label=list(range(7))
    )  # another set of that name
    changed = parquet.read_split([tmp_path / "train.parquet"])
    assert torch.equal(changed.images, 255 - first.images)


def test_a_folder_that_nobody_may_write_gets_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even from a superuser, who could."""
    monkeypatch.setattr(cache, "CACHE_FROM", 6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root = tmp_path / "set"
    root.mkdir()
    write(root / "train.parquet", [png(image) for image in pixels(7)], label=list(range(7)))
    root.chmod(0o555)
    parquet.read_split([root / "train.parquet"])
    root.chmod(0o755)
    assert not (root / ".mosaickd").exists()
    assert list((tmp_path / "home").rglob("parquet-train-*.npy"))
