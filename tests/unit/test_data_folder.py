"""Folders of image files: classes, order, what is left out, links."""

from __future__ import annotations

import io
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mosaickd.data import decode, folder
from mosaickd.data.source import ImageSet, Source
from mosaickd.errors import UserError


def png(value: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, content: bytes | int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(content) if isinstance(content, int) else content)
    return path


def read(root: Path, split: str = "train", **settings: Any) -> ImageSet:
    return folder.read(root=root, split=split, **{"image_size": 8} | settings)


def values(images: ImageSet) -> list[int]:
    return images.images[:, 0, 4, 4].tolist()


def names(images: ImageSet) -> list[str]:
    return [Path(place).name for place, _ in images.broken]


# ---------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("test_folder", ["val", "test"])
def test_train_and_test_folders(tmp_path: Path, test_folder: str) -> None:
    write(tmp_path / "train" / "cat" / "1.png", 1)
    write(tmp_path / "train" / "ant" / "deep" / "2.JPG", 2)
    write(tmp_path / test_folder / "cat" / "3.png", 3)
    train = read(tmp_path)
    assert (train.classes, train.labels.tolist(), values(train)) == (["ant", "cat"], [0, 1], [2, 1])
    test = read(tmp_path, "test")
    assert (test.classes, test.labels.tolist(), values(test)) == (["ant", "cat"], [1], [3])


def test_class_folders_directly_in_root(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "1.png", 1)
    write(tmp_path / "ant" / "2.png", 2)
    write(tmp_path / "test" / "cat" / "3.png", 3)
    assert read(tmp_path).classes == ["ant", "cat"]
    assert read(tmp_path, "test").labels.tolist() == [1]


def test_bare_images_are_one_class(tmp_path: Path) -> None:
    write(tmp_path / "b.png", 1)
    write(tmp_path / "a.png", 2)
    images = read(tmp_path)
    assert (values(images), images.labels.tolist()) == ([2, 1], [0, 0])
    with pytest.raises(UserError, match="no test images"):
        read(tmp_path, "test")


def test_conversions_and_other_files_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("L", (8, 8), 90).save(tmp_path / "0.png")
    Image.new("RGB", (24, 24)).save(tmp_path / "1.png")
    for name in ("notes.txt", "more.TXT", "README", ".hidden.txt"):
        write(tmp_path / name, b"")
    with caplog.at_level(logging.INFO):
        assert len(read(tmp_path)) == 2
    skipped, converted = caplog.messages
    assert "2 .txt" in skipped
    assert "hidden" not in skipped
    assert "of 2 images, converted 1 grey, 1 of another size" in converted


def test_the_centre_of_an_oblong_image_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read(tmp_path).images == 255).all()


def test_many_images_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "CHUNK", 3)
    for index in range(200):
        write(tmp_path / f"{index:03d}.png", index)
    assert values(read(tmp_path)) == list(range(200))


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no folder {tmp_path / 'none'}; set dataset.root="):
        read(tmp_path / "none")
    with pytest.raises(UserError, match=f"no images in {tmp_path}"):
        read(tmp_path)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match=f"no images in {tmp_path / 'train'}"):
        read(tmp_path)


def test_test_classes_must_be_training_classes(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat" / "1.png", 1)
    write(tmp_path / "val" / "dog" / "1.png", 1)
    with pytest.raises(UserError, match=r"class folders that .*train lacks: dog"):
        read(tmp_path, "test")


# ---------------------------------------------------------------------------------- broken images


@pytest.fixture
def twenty(tmp_path: Path) -> Path:
    """Twenty images in two classes, of which 3, 4 and 15 are broken."""
    root = tmp_path / "images"
    for index in range(20):
        content = {3: b"", 4: b"no image", 15: png(15)[:40]}.get(index, png(index))
        write(root / "train" / "ab"[index // 10] / f"{index:02d}.png", content)
    return root


GOOD = [index for index in range(20) if index not in (3, 4, 15)]


def test_the_others_keep_their_order_and_labels(twenty: Path) -> None:
    images = read(twenty, max_broken=0.15)
    assert values(images) == GOOD
    assert images.labels.tolist() == [index // 10 for index in GOOD]
    assert [place for place, _ in images.broken] == [
        str(twenty / "train" / name) for name in ("a/03.png", "a/04.png", "b/15.png")
    ]
    assert images.broken[0][1] == "an empty file"
    assert images.images.is_contiguous()


@pytest.mark.parametrize("max_broken", [0.0, 0.1])
def test_more_than_allowed_stops_and_says_how_to_go_on(twenty: Path, max_broken: float) -> None:
    with pytest.raises(UserError) as caught:
        read(twenty, max_broken=max_broken)
    for part in ("3 of 20 images", f"max_broken={max_broken:g} ", "a/03.png (an empty file)",
                 "b/15.png", "dataset.max_broken=0.15 (or ood.max_broken=)"):  # fmt: skip
        assert part in str(caught.value)


def test_some_image_must_be_left(tmp_path: Path) -> None:
    write(tmp_path / "a.png", b"")
    with pytest.raises(UserError, match="1 of 1 images"):
        read(tmp_path, max_broken=1.0)


def test_a_disk_that_fails_is_no_broken_image(
    twenty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(folder, "read_bytes", fail)
    with pytest.raises(UserError, match=r"00\.png: Input/output error; the disk"):
        read(twenty, max_broken=1.0)


def test_a_source_hands_its_tolerance_on_and_says_what_is_left_out(
    twenty: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usual: dict[str, Any] = {
        "name": "mine", "root": str(twenty), "image_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3,
        "reader": folder.read, "max_broken": 0.2,
    }  # fmt: skip
    images = Source(**usual).load("train")
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    for part in ("mine: 3 of 20 train images", "03.png (an empty file)", "broken.txt"):
        assert part in record.getMessage()
    for narrowed in ({"classes": [1], "limit": 4}, {"image_size": 4}):
        assert Source(**usual | narrowed).load("train").broken == images.broken


def test_names_in_any_script(tmp_path: Path) -> None:
    odd = ["two  words", "Grüße", "日本語", "new\nline", "\x1b[31mred", "*?[x]", "%s{0}", "\udcff"]
    for index, name in enumerate(odd):
        write(tmp_path / "train" / name / f"{name}.png", index)
        write(tmp_path / "train" / name / "torn.png", b"")
    images = read(tmp_path, max_broken=0.5)
    assert images.classes == sorted(odd)
    assert [images.classes[label] for label in images.labels] == [odd[v] for v in values(images)]
    with pytest.raises(UserError) as caught:
        read(tmp_path, max_broken=0.1)
    assert str(caught.value).isprintable()


def test_a_pass_over_the_files_shows_its_progress(twenty: Path) -> None:
    shown: list[Any] = []

    @contextmanager
    def progress(title: str, total: int) -> Any:
        shown.append((title, total))
        yield shown.append

    read(twenty, max_broken=0.2, progress=progress)
    assert shown == [(f"reading {twenty / 'train'}", 20), 20]


# ------------------------------------------------------------------------------------------ links


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder of ten images; beside it some that it has no business with."""
    for index in range(10):
        write(tmp_path / "images" / "train" / "a" / f"{index}.png", index)
    write(tmp_path / "elsewhere" / "secret.png", 200)
    write(tmp_path / "images-2" / "other.png", 201)
    return tmp_path / "images"


def test_links_that_lead_out_are_not_followed_unless_asked(linked: Path) -> None:
    a = linked / "train" / "a"
    (a / "x.png").symlink_to(linked.parent / "elsewhere" / "secret.png")
    (a / "y.png").symlink_to("../../../images-2/other.png")  # a name that begins like root's
    (a / "z").symlink_to(linked.parent / "elsewhere")
    images = read(linked, max_broken=0.5)
    assert values(images) == list(range(10))
    assert names(images) == ["x.png", "y.png", "z"]
    with pytest.raises(UserError, match=r"3 of 13 .*leads out of .*follow_links=true"):
        read(linked)
    assert values(read(linked, follow_links=True)) == [*range(10), 200, 201, 200]


@pytest.mark.parametrize(("place", "split"), [("train/b", "train"), ("val", "test")])
def test_a_class_or_split_that_is_a_link_out_stops(linked: Path, place: str, split: str) -> None:
    (linked / place).symlink_to(linked.parent / "elsewhere")
    with pytest.raises(UserError, match=rf"{place} is a link that leads out.*follow_links=true"):
        read(linked, split, max_broken=1.0)


def test_links_within_the_folder_are_followed_and_circles_end(
    linked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a = linked / "train" / "a"
    (linked / "train" / "b").symlink_to("a")
    (a / "x.png").symlink_to(a / "3.png")
    (a / "up").symlink_to("..")
    (a / "gone.png").symlink_to("nothing.png")
    (linked.parent / "outer").symlink_to(linked)
    with caplog.at_level(logging.INFO):
        images = read(linked.parent / "outer", max_broken=0.5)
    assert images.classes == ["a", "b"]
    assert values(images) == [*range(10), 3] * 2
    assert set(names(images)) == {"gone.png"}
    assert "link to a folder that is read already" in caplog.text
    assert torch.equal(images.images, read(linked, max_broken=0.5).images)
