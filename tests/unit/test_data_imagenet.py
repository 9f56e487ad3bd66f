"""Downsampled ImageNet as people have it; and pickles, of which nothing may be executed."""

from __future__ import annotations

import io
import os
import pickle
from multiprocessing import get_context
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

context = get_context("forkserver" if os.name == "posix" else "spawn")
context.set_forkserver_preload(["mosaickd.data.folder", "mosaickd.data.subset"])


def content(count: int = 5, size: int = 8, seed: int = 0) -> dict[Any, Any]:
    random = np.random.default_rng(seed)
    return {
        "data": random.integers(0, 256, (count, 3 * size * size), dtype=np.uint8),
        "labels": random.integers(1, 1001, count).tolist(),
        "mean": random.uniform(0, 255, 3 * size * size),
    }


def write(path: Path, what: Any, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(what, protocol))
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
    assert len(list((tmp_path / cache.FOLDER).glob("*.npy"))) == 2
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


@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_size_and_protocol(tmp_path: Path, size: int, protocol: int) -> None:
    path = write(tmp_path / "val_data", content(size=size), protocol)
    images, labels = imagenet.load_batch(path)
    assert np.array_equal(images.reshape(5, -1), content(size=size)["data"])
    assert labels.tolist() == [label - 1 for label in content(size=size)["labels"]]


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
    (tmp_path / "val_data").write_bytes(as_python_2(content()))
    theirs = pickle.loads(as_python_2(content()), encoding="bytes")
    assert np.array_equal(theirs[b"data"], content()["data"]), "pickle itself reads it too"
    assert holds(read(tmp_path, "test"), content())


@pytest.mark.parametrize("kind", ["int64", "uint16", ">i4", "scalars", "tuple", "fortran"])
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


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    write(tmp_path / "val_data", content(count=2000))
    processes = [context.Process(target=read_in_a_process, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(list((tmp_path / cache.FOLDER).glob("*.npy"))) == 1


def read_in_a_process(root: Path) -> None:
    assert holds(read(root, "test"), content(count=2000))


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


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(path)


def test_class_folders(tmp_path: Path) -> None:
    save(tmp_path / "train" / "n01" / "1.png", 1)
    save(tmp_path / "val" / "n01" / "2.png", 2)
    assert read(tmp_path).images[0, 0, 0, 0] == 1
    assert read(tmp_path, "test").classes == ["n01"]
    save(tmp_path / "flat" / "n02" / "3.png", 3)
    assert read(tmp_path / "flat").classes == ["n02"]


def test_parquet_shards(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 5)
    encoded = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").unlink()
    table = pa.table({"image": pa.array([encoded], pa.binary()), "label": [3]})
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
    ("change", "said"),
    [
        ({"data": None}, "no 'data', only 'labels', 'mean'"),
        ({"labels": None}, "no 'labels'"),
        ({"labels": [1, 2, 3, 4]}, "4 labels for 5 images"),
        ({"labels": [1, 2, 3, 4, 1001]}, "the label 1001, out of range 1..1000"),
        ({"labels": [0, 1, 2, 3, 4]}, "the label 0, out of range"),
        ({"labels": [1, 2, 3, 4, 10**30]}, "'labels'"),
        ({"labels": ["a"] * 5}, "not a list of whole numbers"),
        ({"labels": [1.5] * 5}, "not a list of whole numbers"),
        ({"labels": np.ones(5)}, "float64"),
        ({"data": np.zeros((5, 192), np.int16)}, "int16"),
        ({"data": np.zeros((5, 100), np.uint8)}, "'data' of uint8"),
        ({"data": np.zeros((0, 192), np.uint8), "labels": []}, "no images"),
        ({"data": [[0] * 192] * 5}, "a list as 'data'"),
        ({"data": np.array([None] * 5)}, "'O8'"),
        ({"mean": np.array(["a", {}], dtype=object)}, "'O8'"),
        ({"data": np.zeros(5, [("r", "u1"), ("g", "u1")])}, "'V2'"),
        ({"data": np.array(["a"] * 5)}, "'U1'"),
    ],
)
def test_a_file_with_other_content_is_named(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    part = {key: value for key, value in (content() | change).items() if value is not None}
    write(tmp_path / "val_data", part)
    with pytest.raises(UserError, match=r"val_data") as error:
        read(tmp_path, "test")
    assert said in str(error.value)
    assert not list((tmp_path / cache.FOLDER).glob("*.npy"))


@pytest.mark.parametrize("what", [[1, 2], "text", None])
def test_a_pickle_of_something_else_is_named(tmp_path: Path, what: Any) -> None:
    with pytest.raises(UserError, match=r"val_data holds a \w+, not a dict"):
        imagenet.load_batch(write(tmp_path / "val_data", what))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, 0.99, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: float, protocol: int) -> None:
    path = write(tmp_path / "val_data", content(), protocol)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(UserError, match=r"cannot read .*val_data.*(damaged|incomplete)"):
        imagenet.load_batch(path)


def test_whatever_bytes_are_damaged_the_error_names_the_file(tmp_path: Path) -> None:
    whole = pickle.dumps(content(count=1), 2)
    random = np.random.default_rng(0)
    refused = 0
    for place, value in zip(
        random.integers(0, len(whole), 400), random.integers(0, 256, 400), strict=True
    ):
        path = tmp_path / "val_data"
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        try:
            imagenet.load_batch(path)
        except UserError as error:
            assert "val_data" in str(error)  # noqa: PT017  (damaged pixels don't show)
            refused += 1
    assert refused > 20


# ------------------------------------------------------------------------------- hostile pickles


class Calls:
    """Pickled as a call of whatever function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


class Strange(np.ndarray):
    """A class of arrays that isn't numpy's."""


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("function", [os.system, eval, exec, open, getattr, print])
def test_nothing_is_executed(tmp_path: Path, function: Any, protocol: int) -> None:
    proof = tmp_path / "proof"
    arguments = {
        os.system: [f"touch {proof}"], open: [str(proof), "w"], getattr: [proof, "touch"],
    }.get(function, [f"open({str(proof)!r}, 'w')"])  # fmt: skip
    path = write(
        tmp_path / "val_data", content() | {"labels": Calls(function, *arguments)}, protocol
    )
    with pytest.raises(UserError, match="nothing in it was executed") as error:
        imagenet.load_batch(path)
    assert "val_data" in str(error.value)
    assert function.__name__ in str(error.value)
    assert not proof.exists()


def raw(*parts: bytes) -> bytes:
    return b"".join(parts) + b"."


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n"
LENGTH = (2**40).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (raw(b"cos\nsystem\n(S'touch proof'\ntR"), "os.system"),
        (raw(b"(S'touch proof'\nios\nsystem\n"), "os.system"),
        (raw(b"\x80\x04\x8c\x02os\x8c\x06system\x93"), "os.system"),
        (raw(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93"), "numpy.ndarray.tofile"),
        (raw(b"cnumpy.core.multiarray\nfromfile\n"), "fromfile"),
        (raw(b"cnumpy\nload\n(S'proof'\ntR"), "numpy.load"),
        (raw(b"cbuiltins\neval\n"), "builtins.eval"),
        (raw(b"c__builtin__\ngetattr\n"), "__builtin__.getattr"),
        # a class of arrays that isn't numpy's, a function in its place, and numpy's dtype
        (raw(ARRAY, b"(c_codecs\nencode\n(I0\ntS'b'\ntR"), "another class"),
        (raw(ARRAY, b"(cnumpy\ndtype\n(I0\ntS'b'\ntR"), "another class"),
        (raw(b"c_codecs\nencode\n(V42\nVrot13\ntR"), "unusual encoding"),
        (raw(b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR"), "'O8'"),
        (raw(b"cnumpy\ndtype\n(S'u1,u1'\nI0\nI1\ntR"), "'u1,u1'"),
        (raw(b"cnumpy\ndtype\n(c_codecs\nencode\nI0\nI1\ntR"), "in the place of a text"),
        # attributes for a function, and a call of something that is none
        (raw(b"c_codecs\nencode\n(dS'__defaults__'\n(tsb"), "attributes"),
        (raw(b"(dI1\ntR"), "val_data"),
        # deeper than a stack, as a key; and a list that holds itself twice, forty times over
        (raw(b"}", b"(" * 200_000, b"t" * 200_000, b"I1\ns"), "unusual keys"),
        (raw(b"(lp0\n", b"(g0\ng0\nlp0\n" * 40, b"cnumpy\ndtype\n(g0\nI0\nI1\ntR"), "a list"),
        (raw(b"(d(tR"), "not a function"),
    ],
)
def test_tricks_are_refused(tmp_path: Path, pickled: bytes, said: str) -> None:
    path = tmp_path / "val_data"
    path.write_bytes(pickled)
    with pytest.raises(UserError, match="val_data") as error:
        imagenet.load_batch(path)
    assert said in str(error.value)
    assert not (tmp_path / "proof").exists()
    assert not Path("proof").exists()


def test_an_array_of_another_class_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "val_data", {"data": content()["data"].view(Strange)})
    with pytest.raises(UserError, match="Strange"):
        imagenet.load_batch(path)


@pytest.mark.parametrize("instruction", ["NEWOBJ", "EXT1", "PERSID", "BINPERSID", "NEXT_BUFFER"])
def test_instructions_that_arrays_do_not_need_are_refused(tmp_path: Path, instruction: str) -> None:
    code = getattr(pickle, instruction)
    path = tmp_path / "val_data"
    path.write_bytes(pickle.PROTO + b"\x02]]" + code + b"\x01\n.")
    with pytest.raises(UserError, match="val_data"):
        imagenet.load_batch(path)


def test_lengths_and_shapes_that_lie_reserve_no_memory(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "val_data"
    empty = np.ndarray(0, np.uint8)
    state = (1, (10**9, 192), empty.dtype, False, b"few")
    function, arguments = empty.__reduce__()[:2]
    lie = {"data": Calls(function, *arguments, state=state), "labels": [1]}
    repeated = b"X\x40\x42\x0f\x00" + b"a" * 10**6 + b"q\x00Vlatin1\nq\x01]"
    repeated += b"(c_codecs\nencode\nh\x00h\x01\x86Re" * 2000
    hostile = [
        pickle.PROTO + b"\x04" + pickle.BINBYTES8 + LENGTH,
        pickle.PROTO + b"\x05" + pickle.BYTEARRAY8 + LENGTH,
        pickle.PROTO + b"\x04" + pickle.BINUNICODE8 + LENGTH,
        pickle.PROTO + b"\x04" + pickle.FRAME + LENGTH,
        pickle.PROTO + b"\x02" + pickle.BINSTRING + b"\xff\xff\xff\x7f",
        pickle.PROTO + b"\x02]" + pickle.LONG_BINPUT + b"\xff\xff\xff\xff.",
        pickle.PROTO + b"\x02" + pickle.LONG4 + b"\xff\xff\xff\x7f",
        pickle.dumps(lie, 2),
        repeated + b".",
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content_ in hostile:
        path.write_bytes(content_)
        with pytest.raises(UserError, match="val_data"):
            imagenet.load_batch(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
