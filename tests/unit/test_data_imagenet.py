"""Downsampled ImageNet as people have it; and pickles, of which nothing may be executed."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mosaickd.data import cache, imagenet
from mosaickd.data.source import ImageSet, Source
from mosaickd.errors import UserError


def content(count: int = 5, size: int = 8, seed: int = 0) -> dict[Any, Any]:
    random = np.random.default_rng(seed)
    return {
        "data": random.integers(0, 256, (count, 3 * size * size), dtype=np.uint8),
        "labels": random.integers(1, 1001, count).tolist(),
        "mean": random.uniform(0, 255, 3 * size * size),
    }


def write(path: Path, what: Any, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(what if isinstance(what, bytes) else pickle.dumps(what, protocol))
    return path


def read(root: Path, split: str = "train", image_size: int = 8) -> ImageSet:
    return imagenet.read(root=root, split=split, image_size=image_size)


def holds(images: ImageSet, *contents: dict[Any, Any]) -> bool:
    data = np.concatenate([part["data"] for part in contents])
    size = images.images.shape[-1]
    labels = [label - 1 for part in contents for label in part["labels"]]
    same = np.array_equal(images.images.numpy(), data.reshape(-1, 3, size, size))
    return same and images.labels.tolist() == labels


# --------------------------------------------------------------------------------------- batches


def test_ten_batches_become_one_mapped_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = [content(count=number, seed=number) for number in range(1, 11)]
    for number, part in enumerate(parts, start=1):
        write(tmp_path / "Imagenet8_train" / f"train_data_batch_{number}", part)
    write(tmp_path / "Imagenet8_val" / "val_data", content(seed=99))
    train, test = read(tmp_path), read(tmp_path, "test")
    assert holds(train, *parts), "by number: batch 10 is the last"
    assert holds(test, content(seed=99))
    assert train.classes == [str(index) for index in range(1000)]
    assert "missing" not in caplog.text
    assert len(list((tmp_path / cache.FOLDER).glob("batches-*"))) == 2
    assert holds(read(tmp_path), *parts)


def test_batches_in_root_and_which_are_missing_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {number: content(seed=number) for number in (1, 2, 4, 5, 6, 7, 8, 10)}
    for number, part in parts.items():
        write(tmp_path / f"train_data_batch_{number}", part)
    for _ in range(2):
        assert holds(read(tmp_path), *parts.values())
    assert caplog.text.count("number 3, 9 is missing") == 1


def test_what_was_unpacked_is_not_read_again_until_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "val_data", content())
    before = path.stat()
    read(tmp_path, "test")
    path.write_bytes(b"\0" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert holds(read(tmp_path, "test"), content())
    write(path, content(seed=1))
    assert holds(read(tmp_path, "test"), content(seed=1))


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_size_and_protocol(tmp_path: Path, size: int, protocol: int) -> None:
    write(tmp_path / "val_data", content(size=size), protocol)
    assert holds(read(tmp_path, "test"), content(size=size))


def as_python_2(part: dict[Any, Any]) -> bytes:
    """Python 2's numpy 1 pickled its str, texts and bytes alike, as BINSTRING."""
    file = io.BytesIO()
    file.write(pickle.PROTO + b"\x02" + pickle.EMPTY_DICT)

    def string(value: bytes) -> bytes:
        return pickle.BINSTRING + len(value).to_bytes(4, "little") + value

    def whole(value: int) -> bytes:
        return pickle.BININT + value.to_bytes(4, "little", signed=True)

    data = part["data"]
    file.write(string(b"data"))
    file.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n")
    file.write(whole(0) + pickle.TUPLE1 + string(b"b") + pickle.TUPLE3 + pickle.REDUCE)
    file.write(pickle.MARK + whole(1) + whole(data.shape[0]) + whole(data.shape[1]) + pickle.TUPLE2)
    file.write(b"cnumpy\ndtype\n" + string(b"u1") + whole(0) + whole(1) + pickle.TUPLE3 + b"R")
    file.write(pickle.MARK + whole(3) + string(b"|") + pickle.NONE * 3 + whole(-1) * 2 + whole(0))
    file.write(pickle.TUPLE + pickle.BUILD + pickle.NEWFALSE + string(data.tobytes()))
    file.write(pickle.TUPLE + pickle.BUILD + pickle.SETITEM)
    file.write(string(b"labels") + pickle.EMPTY_LIST + pickle.MARK)
    file.write(b"".join(whole(label) for label in part["labels"]) + pickle.APPENDS)
    file.write(pickle.SETITEM + pickle.STOP)
    return file.getvalue()


def test_python_2s_batches(tmp_path: Path) -> None:
    write(tmp_path / "val_data", as_python_2(content()))
    assert holds(read(tmp_path, "test"), content())


@pytest.mark.parametrize("kind", ["int64", ">i4", "scalars", "tuple", "fortran"])
def test_other_ways_to_hold_the_same(tmp_path: Path, kind: str) -> None:
    part = content()
    if kind == "scalars":
        part["labels"] = list(np.array(part["labels"]))
    elif kind == "tuple":
        part["labels"] = tuple(part["labels"])
    elif kind == "fortran":
        part["data"] = np.asfortranarray(part["data"])
    else:
        part["labels"] = np.array(part["labels"], dtype=kind)
    write(tmp_path / "val_data", part)
    assert holds(read(tmp_path, "test"), content())


def test_without_room_for_a_cache_the_batches_are_unpacked_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "val_data", content())
    (tmp_path / cache.FOLDER).write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache.FOLDER))
    assert holds(read(tmp_path, "test"), content())
    assert "XDG_CACHE_HOME" in caplog.text


def test_a_source_resizes_batches_of_another_size(tmp_path: Path) -> None:
    write(tmp_path / "train_data_batch_1", content(size=16))
    source = Source(name="imagenet", reader=imagenet.read, root=str(tmp_path), image_size=8,
                    mean=[0.5] * 3, std=[0.5] * 3, limit=3)  # fmt: skip
    assert source.load("train").images.shape == (3, 3, 8, 8)


# --------------------------------------------------------------------------------- other layouts


def png(path: Path, value: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(path)
    return path.read_bytes()


def test_class_folders(tmp_path: Path) -> None:
    png(tmp_path / "train" / "n01" / "1.png", 1)
    png(tmp_path / "val" / "n01" / "2.png", 2)
    assert read(tmp_path).images[0, 0, 0, 0] == 1
    assert read(tmp_path, "test").classes == ["n01"]
    png(tmp_path / "flat" / "n02" / "3.png", 3)
    assert read(tmp_path / "flat").classes == ["n02"]


def test_parquet_shards(tmp_path: Path) -> None:
    table = pa.table({"image": [png(tmp_path / "1.png", 5)], "label": [3]})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    images = read(tmp_path)
    assert images.images[0, 0, 0, 0] == 5
    assert images.labels.tolist() == [3]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no folder {tmp_path / 'none'}.*dataset.root="):
        read(tmp_path / "none")
    with pytest.raises(UserError, match=r"no ImageNet images.*<class>.*parquet.*train_data_batch"):
        read(tmp_path)
    (tmp_path / "Imagenet32_train.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"Unpack Imagenet32_train\.zip"):
        read(tmp_path)
    write(tmp_path / "train_data_batch_1", content())
    with pytest.raises(UserError, match="none of its test images; put val_data"):
        read(tmp_path, "test")


def test_sets_of_two_sizes_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "train_data_batch_1", content(size=8))
    write(tmp_path / "train_data_batch_2", content(size=16))
    with pytest.raises(UserError, match=r"train_data_batch_2 holds images of 16x16.*of 8x8"):
        read(tmp_path)
    write(tmp_path / "Imagenet16_train" / "train_data_batch_1", content(size=16))
    with pytest.raises(UserError, match="several folders"):
        read(tmp_path)


# ---------------------------------------------------------------------------------- wrong content


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ({"data": []}, "'data' of float64"),
        ({"labels": [1, 2, 3, 4]}, "a whole number for each of 5 images"),
        ({"labels": [1, 2, 3, 4, 1001]}, "out of range 1..1000"),
        ({"labels": [0, 1, 2, 3, 4]}, "out of range"),
        ({"labels": ["a"] * 5}, "'labels' of"),
        ({"labels": np.ones(5)}, "float64"),
        ({"data": np.zeros((5, 192), np.int16)}, "int16"),
        ({"data": np.zeros((5, 100), np.uint8)}, "'data' of uint8"),
        ([1, 2], "holds a list, not a dict"),
        (pickle.dumps(content(), 4)[:-40], "damaged, incomplete"),
        (b"", "damaged, incomplete"),
    ],
)
def test_a_file_with_other_content_is_named(tmp_path: Path, what: Any, reason: str) -> None:
    write(tmp_path / "val_data", content() | what if isinstance(what, dict) else what)
    with pytest.raises(UserError, match=r"val_data") as error:
        read(tmp_path, "test")
    assert reason in str(error.value)
    assert not list((tmp_path / cache.FOLDER).glob("batches-*"))


class Call:
    """Pickled as a call of whatever function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("function", "argument"), [(os.system, "touch {}"), (eval, "open('{}', 'w')")]
)
def test_nothing_that_a_pickle_names_is_executed(
    tmp_path: Path, function: Any, argument: str, protocol: int
) -> None:
    proof = tmp_path / "proof"
    labels = Call(function, argument.format(proof))
    path = write(tmp_path / "val_data", content() | {"labels": labels}, protocol)
    with pytest.raises(UserError, match=f"{path}.*{function.__name__}, which was not executed"):
        read(tmp_path, "test")
    assert not proof.exists()


@pytest.mark.parametrize("name", ["ndarray.tofile", "load", "fromfile"])
def test_numpys_other_functions_are_refused(tmp_path: Path, name: str) -> None:
    module = b"\x80\x04\x8c\x05numpy" + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    write(tmp_path / "val_data", module)
    with pytest.raises(UserError, match=rf"names numpy\.{name}, which was not executed"):
        read(tmp_path, "test")
