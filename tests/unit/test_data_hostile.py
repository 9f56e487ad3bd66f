"""Image sets from anywhere: what is broken is left out, counted and listed; nothing is executed,
no link or archive leaves its folder, and no claim takes memory."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_data_pictures import BROKEN
from torchvision.datasets import CIFAR10, CIFAR100

from mosaickd.data import cache, cifar, folder, imagenet, parquet, prepare
from mosaickd.data import shard as shard_module
from mosaickd.data.broken import escaped, listing
from mosaickd.data.source import ImageSet, Source
from mosaickd.errors import UserError


def png(value: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read(root: Path, split: str = "train", **settings: Any) -> ImageSet:
    return folder.read(root=root, split=split, image_size=8, **settings)


def values(images: ImageSet) -> list[int]:
    return images.images[:, 0, 4, 4].tolist()


def names(images: ImageSet) -> list[str]:
    return [Path(place).name for place, _ in images.broken]


# ----------------------------------------------------------------------- broken images in folders


@pytest.fixture
def twenty(tmp_path: Path) -> Path:
    """Twenty images in two classes, of which 3, 4 and 15 are broken."""
    root = tmp_path / "images"
    for index in range(20):
        content = png(index) if index not in (3, 4, 15) else b"" if index == 3 else b"no image"
        write(root / "train" / "ab"[index // 10] / f"{index:02d}.png", content)
    return root


GOOD = [index for index in range(20) if index not in (3, 4, 15)]


@pytest.mark.parametrize("cached", [False, True])
def test_the_others_keep_their_order_and_labels(
    twenty: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    monkeypatch.setattr(cache, "CACHE_FROM", 1 if cached else 99)
    for _ in range(2):
        images = read(twenty, max_broken=0.2)
        assert values(images) == GOOD
        assert images.labels.tolist() == [index // 10 for index in GOOD]
        assert [place for place, _ in images.broken] == [
            str(twenty / "train" / name) for name in ("a/03.png", "a/04.png", "b/15.png")
        ]
        assert images.broken[0][1] == "an empty file"
        assert images.images.is_contiguous()
        if cached:  # the second time nothing is decoded
            monkeypatch.setattr(folder, "decode", None)
    assert (twenty / cache.FOLDER).exists() == cached


def test_a_cache_is_as_strict_as_the_run_that_reads_it(
    twenty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "CACHE_FROM", 1)
    with pytest.raises(UserError, match="3 of 20"):
        read(twenty, max_broken=0.1)
    assert not list((twenty / cache.FOLDER).glob("*.npy")), "what is refused is not kept"
    lenient = read(twenty, max_broken=0.2)
    with pytest.raises(UserError, match="3 of 20"):
        read(twenty, max_broken=0.1)
    moved = twenty.rename(twenty.with_name("moved"))
    again = read(moved, max_broken=0.2)
    assert torch.equal(again.images, lenient.images)
    assert again.broken[0][0] == str(moved / "train" / "a" / "03.png")


@pytest.mark.parametrize("damage", [b"", b"[", b"[[0]]", b'[[99, "x"]]', b'[[3,"x"],[3,"x"]]'])
def test_a_damaged_list_of_broken_images_is_made_again(
    twenty: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    monkeypatch.setattr(cache, "CACHE_FROM", 1)
    first = read(twenty, max_broken=0.2)
    (path,) = (twenty / cache.FOLDER).glob("*.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"[[")] + (damage or whole[whole.rindex(b"[[") : -1]))
    again = read(twenty, max_broken=0.2)
    assert again.broken == first.broken
    assert path.read_bytes() == whole


def test_more_than_allowed_stops_and_says_how_to_go_on(twenty: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(twenty, max_broken=0.1)
    for said in ("3 of 20 images", "max_broken=0.1 ", "a/03.png (an empty file)", "b/15.png",
                 "repair or remove", "dataset.max_broken=0.15 (or ood.max_broken=)"):  # fmt: skip
        assert said in str(caught.value)
    assert len(read(twenty, max_broken=0.15)) == 17, "as the message says"
    with pytest.raises(UserError, match=r"a/03\.png: an empty file"):
        read(twenty, max_broken=0)


def test_some_image_must_be_left(tmp_path: Path) -> None:
    write(tmp_path / "a.png", b"")
    with pytest.raises(UserError, match="1 of 1 images"):
        read(tmp_path, max_broken=1.0)


def test_every_hostile_file_is_left_out_of_a_folder(tmp_path: Path) -> None:
    """All of them at once, in threads, among good ones."""
    for index, (make, _) in enumerate(BROKEN.values()):
        write(tmp_path / f"{index:03d}-broken.png", make())
        write(tmp_path / f"{index:03d}-good.png", png(index))
    images = read(tmp_path, max_broken=0.5)
    assert values(images) == list(range(len(BROKEN)))
    assert len(images.broken) == len(BROKEN) > 50


def test_a_disk_that_fails_is_no_broken_image(
    twenty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which images are left out depends on the files alone."""

    def fail(path: str) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(folder, "read_file", fail)
    with pytest.raises(UserError, match=r"00\.png: Input/output error; the disk"):
        read(twenty, max_broken=1.0)


def test_a_source_hands_its_tolerance_on_and_says_what_is_left_out(
    twenty: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usual: dict[str, Any] = {
        "name": "mine", "root": str(twenty), "image_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    images = Source(reader=folder.read, max_broken=0.2, **usual).load("train")
    assert len(images.broken) == 3
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    for said in ("mine: 3 of 20 train images", "03.png (an empty file)", "broken.txt"):
        assert said in record.getMessage()

    few = Source(reader=folder.read, max_broken=0.2, classes=[1], limit=4, **usual).load("train")
    assert (len(few), few.broken) == (4, images.broken)
    assert few.to(torch.device("cpu")).broken == images.broken
    small = Source(reader=folder.read, max_broken=0.2, **usual | {"image_size": 4}).load("train")
    assert small.broken == images.broken

    def old(*, root: Path, split: str, image_size: int) -> ImageSet:
        return ImageSet(images.images, images.labels, images.classes)

    assert len(Source(reader=old, max_broken=0.2, **usual).load("train")) == 17
    assert ImageSet(images.images, images.labels, images.classes).broken == ()


def test_a_list_of_broken_images_has_a_line_each_and_the_names_own_bytes() -> None:
    hostile = "/a/\x1b[31mred\n\u202egnp.png"
    content = listing({"ood/train": (("/a/Grüße.png", "torn"), (hostile, "torn"),
                                     ("/a/\udcff.png", "torn"))})  # fmt: skip
    assert content.splitlines() == [
        "ood/train\t/a/Grüße.png\ttorn".encode(),
        rb"ood/train	/a/\x1b[31mred\n\u202egnp.png	torn",
        b"ood/train\t/a/\xff.png\ttorn",
    ]
    assert escaped("/a/\udcff.png") == r"/a/\xff.png"


# ------------------------------------------------------------------------------------ class folders


def test_stray_files_are_counted_by_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train" / "a" / "1.png", png(1))
    for name in ("a/notes.txt", "a/b/more.TXT", "a/README", "a/.hidden.txt", "a/.DS_Store",
                 "labels.csv", "loose.png"):  # fmt: skip
        write(tmp_path / "train" / name, b"")
    with caplog.at_level(logging.INFO):
        assert values(read(tmp_path)) == [1]
    (said,) = [line for line in caplog.messages if "left alone" in line]
    for kind in ("2 .txt", "1 without a suffix", "1 .csv beside the class folders",
                 "1 .png beside the class folders"):  # fmt: skip
        assert kind in said
    assert "hidden" not in said


NAMES = [
    "plain", "two words", "Grüße", "日本語", "عربى", "हिन्दी", "🐈\u200d⬛", "new\nline",
    "tab\there",
    "\x1b[31mred", "quote'\"", "*?[x]", "$HOME", "-rf", "a" * 200, "\udcff\udcfe", "%s{0}", "ſ",
    "\u202egnp", "con", "back\\slash",
]  # fmt: skip


def test_names_in_any_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHE_FROM", 1)
    for index, name in enumerate(NAMES):
        write(tmp_path / "train" / name / f"{name[:50]}.png", png(index))
        write(tmp_path / "train" / name / "torn.png", b"")
    for _ in range(2):
        images = read(tmp_path, max_broken=0.5)
        assert images.classes == sorted(NAMES)
        assert [sorted(NAMES)[label] for label in images.labels] == [
            NAMES[v] for v in values(images)
        ]
        assert [Path(place).parent.name for place, _ in images.broken] == sorted(NAMES)
        assert len(listing({"dataset/train": images.broken}).split(b"\n")) == len(NAMES) + 1
    with pytest.raises(UserError) as caught:
        read(tmp_path, max_broken=0.1)
    assert str(caught.value) == escaped(caught.value)


def test_names_that_look_alike_are_kept_apart_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index, name in enumerate(["Cafe\u0301", "Caf\u00e9", "Cat", "cat", "dog"]):
        write(tmp_path / name / "1.png", png(index))
    if len(os.listdir(tmp_path)) < 5:
        pytest.skip("this disk doesn't tell such names apart")
    images = read(tmp_path)
    assert len(images.classes) == 5
    assert sorted(images.labels.tolist()) == list(range(5))
    (said,) = [line for line in caplog.messages if "look alike" in line]
    assert r"'Cafe\u0301', 'Caf\xe9'; 'Cat', 'cat'" in said
    assert "dog" not in said


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder of ten images; beside it some that it has no business with."""
    root = tmp_path / "images"
    for index in range(10):
        write(root / "train" / "a" / f"{index}.png", png(index))
    write(tmp_path / "elsewhere" / "secret.png", png(200))
    write(tmp_path / "images-2" / "other.png", png(201))
    return root


def test_links_that_lead_out_are_not_followed(linked: Path) -> None:
    a = linked / "train" / "a"
    (a / "x.png").symlink_to(linked.parent / "elsewhere" / "secret.png")
    (a / "y.png").symlink_to("../../../images-2/other.png")  # a name that begins like root's
    (a / "z").symlink_to(linked.parent / "elsewhere")
    images = read(linked, max_broken=0.5)
    assert values(images) == list(range(10))
    assert names(images) == ["x.png", "y.png", "z"]
    assert all("follow_links=true" in reason for _, reason in images.broken)
    with pytest.raises(UserError, match=r"3 of 13 .*leads out of .*follow_links=true"):
        read(linked, max_broken=0.01)
    followed = read(linked, follow_links=True)
    assert values(followed) == [*range(10), 200, 201, 200]
    assert followed.broken == ()
    out = imagenet.read(root=linked, split="train", image_size=8, follow_links=True)
    assert len(out) == 13


def test_a_class_that_is_a_link_out_stops(linked: Path) -> None:
    (linked / "train" / "b").symlink_to(linked.parent / "elsewhere")
    with pytest.raises(UserError, match=r"train/b is a link that leads out.*follow_links=true"):
        read(linked, max_broken=1.0)
    assert read(linked, follow_links=True).classes == ["a", "b"]


def test_a_split_that_is_a_link_out_stops(linked: Path) -> None:
    (linked / "val").symlink_to(linked.parent / "elsewhere")
    with pytest.raises(UserError, match=r"val is a link that leads out"):
        read(linked, "test")


def test_links_within_the_folder_and_to_it_are_followed(linked: Path) -> None:
    a = linked / "train" / "a"
    (linked / "train" / "b").symlink_to("a")
    (a / "x.png").symlink_to(linked / "train" / "a" / "3.png")
    outer = linked.parent / "outer"
    outer.symlink_to(linked.parent)
    for root in (linked, outer / "images"):
        images = read(root)
        assert images.classes == ["a", "b"]
        assert values(images) == [*range(10), 3] * 2


def test_links_in_a_circle_end(linked: Path, caplog: pytest.LogCaptureFixture) -> None:
    a = linked / "train" / "a"
    (a / "here").symlink_to(".")
    (a / "up").symlink_to("..")
    (a / "self.png").symlink_to("self.png")
    (a / "gone.png").symlink_to("nothing.png")
    for level in range(30):  # two ways down at each: a billion to the bottom
        below = linked / "deep" / str(level)
        below.mkdir(parents=True)
        (below / "l").symlink_to(f"../{level + 1}")
        (below / "r").symlink_to(f"../{level + 1}")
    (linked / "deep" / "30").mkdir()
    (a / "deep").symlink_to("../../deep/0")
    with caplog.at_level(logging.INFO):
        images = read(linked, max_broken=0.5)
    assert values(images) == list(range(10))
    assert names(images) == ["gone.png", "self.png"]
    assert "link to a folder that is read already" in caplog.text


def test_pipes_and_devices_are_left_out_without_waiting(linked: Path) -> None:
    os.mkfifo(linked / "train" / "a" / "pipe.png")
    (linked / "train" / "a" / "zero.png").symlink_to("/dev/zero")
    images = read(linked, max_broken=0.5, follow_links=True)
    assert names(images) == ["pipe.png", "zero.png"]


def test_a_folder_that_cannot_be_listed_stops(
    linked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (linked / "train" / "a" / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot list the folder .*locked: Permission denied"):
        read(linked)


def test_prepare_meets_the_same_files(linked: Path, tmp_path: Path) -> None:
    a = linked / "train" / "a"
    os.mkfifo(a / "pipe.png")
    (a / "x.png").symlink_to(linked.parent / "elsewhere" / "secret.png")
    (a / "circle").symlink_to(".")
    write(a / "bad\n\x1b[31m\udcff.png", b"%!PS-Adobe-3.0 EPSF-3.0\n")
    write(a / "日本.png", png(20))
    target = tmp_path / "small"
    outcome = prepare.prepare(linked, target, prepare.Recipe(size=8), workers=1)
    assert (outcome.made, len(outcome.broken)) == (11, 3)
    listed = (target / "broken.txt").read_bytes().splitlines()
    assert [line.split(b"\t")[0] for line in listed] == [
        rb"train/a/bad\n\x1b[31m" + b"\xff.png", b"train/a/pipe.png", b"train/a/x.png",
    ]  # fmt: skip
    assert b"--follow-links" in listed[2]
    again = prepare.prepare(linked, target, prepare.Recipe(size=8), 1, follow_links=True)
    assert (again.made, again.present, len(again.broken)) == (1, 11, 2)


# ---------------------------------------------------------------------------------------- Parquet


def shard(root: Path, table: pa.Table, **options: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, root / "train.parquet", **options)
    return root


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(*encoded: bytes | None) -> pa.Array:
    return pa.array([{"bytes": data, "path": "x.png"} for data in encoded], STRUCT)


def read_parquet(root: Path, **settings: Any) -> ImageSet:
    return parquet.read(root=root, split="train", image_size=8, **settings)


@pytest.mark.parametrize("cached", [False, True])
def test_broken_rows_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    monkeypatch.setattr(cache, "CACHE_FROM", 1 if cached else 99)
    encoded = [png(0), None, png(2), b"no image", png(4), png(5), None, b""]
    images = pa.concat_arrays([rows(*encoded), pa.nulls(1, STRUCT), rows(png(9))])
    labels = [0, 1, 2, 3, None, 5, 6, 7, 8, 9]
    root = shard(tmp_path, pa.table({"img": images, "label": labels}), row_group_size=3)
    for _ in range(2):
        found = read_parquet(root, max_broken=0.8)
        assert values(found) == [0, 2, 5, 9]
        assert found.labels.tolist() == [0, 2, 5, 9]
        path = root / "train.parquet"
        assert [place for place, _ in found.broken] == [
            f"row {i} of {path}" for i in (1, 3, 4, 6, 7, 8)
        ]
        reasons = dict(found.broken)
        assert reasons[f"row 4 of {path}"] == "its label is null"
        assert "no bytes" in reasons[f"row 8 of {path}"]
        assert "empty" in reasons[f"row 7 of {path}"]
    with pytest.raises(UserError, match=r"6 of 10 .*row 1 of"):
        read_parquet(root, max_broken=0.5)
    if cached:  # another column has all labels: another set, of which less is broken
        both = pa.table({"img": images, "label": labels, "kind": list(range(10))})
        shard(tmp_path, both)
        assert len(read_parquet(root, max_broken=0.8)) == 4
        by_kind = read_parquet(root, max_broken=0.8, label_column="kind")
        assert values(by_kind) == [0, 2, 4, 5, 9]


def test_rows_keep_their_labels_across_many_batches(tmp_path: Path) -> None:
    encoded = [png(i % 256) if i % 97 else b"torn" for i in range(1200)]
    table = pa.table({"img": rows(*encoded), "label": [i % 256 for i in range(1200)]})
    found = read_parquet(shard(tmp_path, table, row_group_size=500), max_broken=0.02)
    assert len(found) == 1200 - 13
    assert values(found) == found.labels.tolist()


class Trap:
    """A file appears if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def one(**columns: Any) -> pa.Table:
    return pa.table({"img": rows(png(0), png(1)), **columns})


WRONG: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "no image column": (lambda: pa.table({"a": [1], "b": [2]}), "no image column: it has a, b"),
    "images as texts": (lambda: pa.table({"img": ["x.png"]}), "img .* is string; expected encoded"),
    "images as numbers": (lambda: pa.table({"img": [1]}), "is int64; expected encoded images"),
    "images as lists": (lambda: pa.table({"img": [[[1, 2]]]}), "expected encoded images"),
    "only paths": (
        lambda: pa.table({"img": [{"path": "x.png"}]}), "expected encoded images.*field `bytes`"),
    "bytes that are texts": (
        lambda: pa.table({"img": [{"bytes": "x", "path": "y"}]}), "expected encoded images"),
    "null images": (lambda: pa.table({"img": pa.nulls(2)}), "expected encoded images"),
    "all rows null": (lambda: pa.table({"img": pa.nulls(2, STRUCT)}), "2 of 2 images"),
    "no rows": (lambda: pa.table({"img": rows()}), "has no rows"),
    "no columns": (lambda: pa.table({}), "no image column"),
    "labels that are floats": (lambda: one(label=[0.0, 1.5]), "label .* double; expected labels"),
    "labels that are true": (lambda: one(label=[True, False]), "label .* is bool"),
    "labels in lists": (lambda: one(label=[[0], [1]]), "label .* is list"),
    "labels in structs": (lambda: one(label=[{"a": 0}, {"a": 1}]), "label .* is struct"),
    "labels that are bytes": (lambda: one(label=[b"a", b"b"]), "label .* is binary"),
    "labels that are dates": (
        lambda: one(label=pa.array([0, 1], pa.timestamp("s"))), "label .* is timestamp"),
    "a negative label": (lambda: one(label=[0, -1]), r"row 1 of .* is -1, out of range 0\.\."),
    "an absurd label": (lambda: one(label=[0, 10**15]), r"is 1000000000000000, out of range 0\.\."),
    "a label beyond int64": (
        lambda: one(label=pa.array([0, 2**64 - 1], pa.uint64())), r"out of range 0\.\."),
    "all labels null": (lambda: one(label=pa.nulls(2, pa.int64())), "2 of 2 images"),
    "all labels null, without a type": (lambda: one(label=pa.nulls(2)), "2 of 2 images"),
    "a label out of the names' range": (
        lambda: one(label=[0, 2]).replace_schema_metadata(
            {"huggingface": '{"info": {"features": {"label": {"names": ["a", "b"]}}}}'}),
        r"the label in row 1 of .* is 2, out of range 0\.\.1"),
    "two columns of one name": (
        lambda: pa.table([rows(png(0)), rows(png(0))], names=["img", "img"]), "several columns"),
    "an image that unpacks to gigabytes": (
        lambda: pa.table({"img": pa.array([bytes(2**24)])}), "would unpack to 16,7"),
    "rows by the million in a few bytes": (
        lambda: pa.table({"img": pa.nulls(3_000_000, pa.binary())}), "claims 3,000,000 rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parquet_is_refused_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(shard_module, "UNPACKED", 2**20)
    make, said = WRONG[name]
    root = shard(tmp_path, make(), compression="zstd")
    with pytest.raises(UserError, match=said) as caught:
        read_parquet(root, max_broken=0.9)
    assert str(root) in str(caught.value)


def test_a_large_value_that_many_rows_repeat_is_held_once(tmp_path: Path) -> None:
    """A dictionary of one entry: written out, the labels and the images would be gigabytes."""
    zeros = pa.array(np.zeros(3000, np.int32))
    large = png(7) + bytes(10**6)  # what follows a picture's end is ignored
    columns = {"img": pa.array([large]), "label": pa.array(["x" * 10**6])}
    table = pa.table({
        name: pa.DictionaryArray.from_arrays(zeros, values) for name, values in columns.items()
    }).replace_schema_metadata({})  # fmt: skip
    root = shard(tmp_path, table, compression="zstd", dictionary_pagesize_limit=2**30,
                 store_schema=False)  # fmt: skip
    assert (root / "train.parquet").stat().st_size < 10_000
    usual, counting = pa.default_memory_pool(), pa.system_memory_pool()
    pa.set_memory_pool(counting)
    try:
        found = read_parquet(root)
    finally:
        pa.set_memory_pool(usual)
    assert values(found) == [7] * 3000
    assert found.classes == ["x" * 10**6]
    assert 0 < counting.max_memory() < 200 * 10**6


def test_nothing_pickled_in_a_parquet_file_is_executed(tmp_path: Path) -> None:
    """Extension types of Python once were pickles in the schema; pandas metadata is text."""
    trap = pickle.dumps(Trap(tmp_path / "escaped"))
    for name in ("arrow.py_extension_type", "unknown.type"):
        field = {"ARROW:extension:name": name, "ARROW:extension:metadata": trap}
        kinds = {"img": rows(png(0)), "label": pa.array([0])}
        schema = pa.schema(
            [pa.field(key, value.type, metadata=field) for key, value in kinds.items()],
            metadata={"pandas": trap, "huggingface": trap},
        )
        root = shard(tmp_path, pa.table(kinds, schema=schema))
        with contextlib.suppress(UserError):  # it may also be refused
            read_parquet(root)
        assert not (tmp_path / "escaped").exists()


def test_a_shard_that_is_no_file_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet is not a regular file"):
        read_parquet(tmp_path)


MUTATIONS = 80


def test_damaged_parquet_files_never_surprise(tmp_path: Path) -> None:
    """Bytes changed anywhere: the same images, or an error that names the file."""
    table = pa.table({"img": rows(*(png(i) for i in range(6))), "label": list("abcabc")})
    path = shard(tmp_path, table, compression="none") / "train.parquet"
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(MUTATIONS):
        content = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            content[place] = random.integers(0, 256)
        path.write_bytes(content)
        said = ""
        try:
            assert len(read_parquet(tmp_path, max_broken=0.5)) >= 3
        except UserError as error:
            refused += 1
            said = str(error)
        assert not said or str(tmp_path) in said
        assert said == escaped(said)
    assert refused > MUTATIONS // 10


# ------------------------------------------------------------------------------ archives, pickles


def archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o4777
    return info


def test_a_hostile_archive_leaves_nothing_but_the_wanted_files(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    write(outside / "precious", b"precious")
    root = tmp_path / "root"
    base = "cifar-100-python"
    path = archive(tmp_path / "set.tar.gz", [
        (member("../escape"), b"out"),
        (member(f"{base}/../../escape"), b"out"),
        (member(str(tmp_path / "absolute")), b"out"),
        (member(f"{base}/link", tarfile.SYMTYPE, str(outside)), b""),
        (member(f"{base}/link/through"), b"out"),
        (member(base, tarfile.SYMTYPE, str(outside)), b""),
        (member(f"{base}/train", tarfile.SYMTYPE, str(outside / "precious")), b""),
        (member(f"{base}/train"), b"the training images"),
        (member(f"{base}/test", tarfile.LNKTYPE, "../../outside/precious"), b""),
        (member(f"{base}/test"), b"the test images"),
        (member(f"{base}/meta", tarfile.CHRTYPE), b""),
        (member(f"{base}/pipe", tarfile.FIFOTYPE), b""),
        (member(f"{base}/.bashrc"), b"out"),
        (member(f"./{base}/more"), b"out"),
    ])  # fmt: skip
    cifar.unpack(path, root / base, ["train", "test", "meta"])
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if not p.is_dir()} == {
        "set.tar.gz", "outside/precious", f"root/{base}/train", f"root/{base}/test",
    }  # fmt: skip
    assert (root / base / "train").read_bytes() == b"the training images"
    assert (outside / "precious").read_bytes() == b"precious"
    assert (root / base / "train").stat().st_mode & 0o7111 == 0, "no rights of the archive's"


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08", b"no archive", bytes(4096)])
def test_a_damaged_archive_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    def download(url: str, root: Path, filename: str, md5: str) -> None:
        write(root / filename, content)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    with pytest.raises(UserError, match="downloading it failed"):
        cifar.read(root=tmp_path, split="train", image_size=32, variant="cifar100")


def test_an_archive_is_downloaded_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
    contents = {
        "train": pickle.dumps({"data": rows, "fine_labels": [1, 0]}),
        "test": pickle.dumps({"data": rows[:1], "fine_labels": [1]}),
        "meta": pickle.dumps({"fine_label_names": ["ant", "bee"]}),
    }
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    made = archive(tmp_path / "made.tar.gz", [
        (member(f"cifar-100-python/{name}"), content) for name, content in contents.items()
    ])  # fmt: skip
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5["meta"]})
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(made.read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR100, "url", "https://example.org/set.tar.gz")

    def download(url: str, place: str) -> None:
        assert url == CIFAR100.url
        Path(place).write_bytes(made.read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", download)
    root = tmp_path / "data"
    found = cifar.read(root=root, split="train", image_size=32, variant="cifar100")
    assert found.labels.tolist() == [1, 0]
    assert np.array_equal(found.images.numpy().reshape(2, 3072), rows)


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
@pytest.mark.parametrize("where", ["first", "last", "meta"])
@pytest.mark.parametrize("alone", [False, True])
def test_an_altered_pickle_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, where: str, alone: bool
) -> None:
    """The others are whole, or are not there at all."""
    folder = tmp_path / kind.base_folder
    listed = [entry[0] for entry in kind.train_list + kind.test_list] + [kind.meta["filename"]]
    altered = {"first": listed[0], "last": listed[-2], "meta": listed[-1]}[where]
    good = {name: hashlib.md5(name.encode()).hexdigest() for name in listed}
    for attribute in ("train_list", "test_list"):
        pairs = [[entry[0], good[entry[0]]] for entry in getattr(kind, attribute)]
        monkeypatch.setattr(kind, attribute, pairs)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": good[listed[-1]]})
    for name in listed:
        if name == altered:
            write(folder / name, pickle.dumps(Trap(tmp_path / "escaped")))
        elif not alone:
            write(folder / name, name.encode())
    for split in ("train", "test"):
        for download in (False, True):
            with pytest.raises(UserError, match=rf"{altered} is damaged|is missing"):
                cifar.read(root=tmp_path, split=split, image_size=32, download=download,
                           variant="cifar10" if kind is CIFAR10 else "cifar100")  # fmt: skip
    assert not (tmp_path / "escaped").exists()
