from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mosaickd.data import folder
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError


def save(path: Path, color: object = (200, 100, 50), mode: str = "RGB", size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size), color).save(path)  # type: ignore[arg-type]


def read(root: Path, split: str = "train", image_size: int = 8) -> ImageSet:
    return folder.read(root=root, split=split, image_size=image_size)


@pytest.mark.parametrize("test_folder", ["val", "test"])
def test_train_and_test_folders(tmp_path: Path, test_folder: str) -> None:
    save(tmp_path / "train" / "cat" / "1.png")
    save(tmp_path / "train" / "ant" / "deep" / "2.png", (1, 2, 3))
    save(tmp_path / test_folder / "cat" / "3.png")
    train = read(tmp_path)
    assert train.classes == ["ant", "cat"]
    assert train.labels.tolist() == [0, 1]
    assert train.images[0, :, 0, 0].tolist() == [1, 2, 3]
    test = read(tmp_path, "test")
    assert test.classes == ["ant", "cat"]
    assert test.labels.tolist() == [1]


def test_class_folders_directly_in_root(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png")
    save(tmp_path / "ant" / "2.JPG")
    save(tmp_path / "test" / "cat" / "3.png")
    assert read(tmp_path).classes == ["ant", "cat"]
    assert read(tmp_path, "test").labels.tolist() == [1]


def test_bare_images_are_one_class(tmp_path: Path) -> None:
    save(tmp_path / "b.png", (1, 1, 1))
    save(tmp_path / "a.png", (2, 2, 2))
    (tmp_path / "notes.txt").write_text("not an image")
    images = read(tmp_path)
    assert images.images[:, 0, 0, 0].tolist() == [2, 1]
    assert images.labels.tolist() == [0, 0]
    with pytest.raises(UserError, match="no test images"):
        read(tmp_path, "test")


def test_every_kind_becomes_rgb_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "0.png", 90, "L")
    save(tmp_path / "1.png", (200, 100, 50, 255), "RGBA")
    save(tmp_path / "2.png", (200, 100, 50, 0), "RGBA")
    save(tmp_path / "3.png", 90 * 256, "I;16")
    save(tmp_path / "4.png", (200, 100, 50), size=24)
    save(tmp_path / "5.png", (200, 100, 50), size=3)
    Image.new("RGB", (8, 8), (200, 100, 50)).quantize(4).save(tmp_path / "6.png")
    with caplog.at_level(logging.INFO):
        images = read(tmp_path).images
    colour, grey = [200, 100, 50], [90, 90, 90]
    expected = [grey, colour, [0, 0, 0], grey, colour, colour, colour]
    assert images[:, :, 4, 4].tolist() == expected
    assert len(caplog.records) == 1
    for said in ("1 grey", "2 with transparency", "1 16-bit", "2 of another size", "1 palette"):
        assert said in caplog.text


def test_the_centre_of_an_oblong_image_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read(tmp_path).images == 255).all()


@pytest.mark.parametrize("keep", [0, 30, 100])
def test_a_damaged_file_is_named(tmp_path: Path, keep: int) -> None:
    save(tmp_path / "cat" / "good.png")
    torn = tmp_path / "cat" / "torn.png"
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(torn)
    torn.write_bytes(torn.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"cat/torn\.png"):
        read(tmp_path)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no folder {tmp_path / 'none'}; set dataset.root="):
        read(tmp_path / "none")
    with pytest.raises(UserError, match=f"no images in {tmp_path}"):
        read(tmp_path)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match=f"no images in {tmp_path / 'train'}"):
        read(tmp_path)


def test_test_classes_must_be_training_classes(tmp_path: Path) -> None:
    save(tmp_path / "train" / "cat" / "1.png")
    save(tmp_path / "val" / "dog" / "1.png")
    with pytest.raises(UserError, match=r"class folders that .*train lacks: dog"):
        read(tmp_path, "test")


def test_many_images_keep_their_order(tmp_path: Path) -> None:
    for index in range(600):  # several stretches of the thread pool
        save(tmp_path / f"{index:03d}.png", (index % 256, index // 256, 0), size=4)
    images = read(tmp_path, image_size=4).images[:, :, 0, 0].int()
    assert (images[:, 0] + 256 * images[:, 1]).tolist() == list(range(600))
