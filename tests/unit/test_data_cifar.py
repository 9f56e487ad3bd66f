"""CIFAR and SVHN in torchvision's layout, and the real images where they are."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from torchvision.datasets import CIFAR100, SVHN

from mosaickd.data import cifar, svhn
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError

ROWS = np.arange(3 * 3072, dtype=np.int64).astype(np.uint8).reshape(3, 3072)
CONTENTS: dict[str, Any] = {
    "train": {"data": ROWS, "fine_labels": [2, 0, 1]},
    "test": {"data": ROWS[:1], "fine_labels": [1]},
    "meta": {"fine_label_names": ["ant", "bee", "cat"]},
}


def read(root: Path, split: str = "train", **settings: Any) -> ImageSet:
    settings = {"variant": "cifar100"} | settings
    return cifar.read(root=root, split=split, image_size=32, **settings)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise URLError("no network in this test")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)
    monkeypatch.setattr(SVHN, "download", refuse)


def publish(monkeypatch: pytest.MonkeyPatch, contents: dict[str, Any]) -> dict[str, bytes]:
    """Pickle a small CIFAR-100 as the original is, and have torchvision ask for its MD5s."""
    files = {name: pickle.dumps(content) for name, content in contents.items()}
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5["meta"]})
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A three-image CIFAR-100 in torchvision's layout; returns its folder."""
    return write(tmp_path / "cifar-100-python", publish(monkeypatch, CONTENTS))


def assert_right(images: ImageSet) -> None:
    assert np.array_equal(images.images.numpy(), ROWS.reshape(3, 3, 32, 32))
    assert images.labels.tolist() == [2, 0, 1]
    assert images.classes == ["ant", "bee", "cat"]


def test_torchvisions_layout(original: Path) -> None:
    assert_right(read(original.parent))
    assert read(original.parent, "test").labels.tolist() == [1]


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_damaged_or_missing_file_is_named(original: Path, no_network: None, name: str) -> None:
    path = original / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=f"{path} is damaged"):
        read(original.parent)
    path.unlink()
    with pytest.raises(UserError, match=f"{path} is missing"):
        read(original.parent, download=False)


class Trap:
    """A file appears if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_nothing_that_a_pickle_names_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where its MD5 is the one that was asked for."""
    trap = CONTENTS | {"train": {"data": Trap(tmp_path / "proof")}}
    folder = write(tmp_path / "cifar-100-python", publish(monkeypatch, trap))
    with pytest.raises(UserError, match=f"{folder / 'train'}.*open, which was not executed"):
        read(tmp_path)
    assert not (tmp_path / "proof").exists()


def test_an_archive_is_downloaded_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "made.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in publish(monkeypatch, CONTENTS).items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR100, "url", "https://example.org/set.tar.gz")

    def download(url: str, place: str) -> None:
        assert url == CIFAR100.url
        Path(place).write_bytes(archive.read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", download)
    assert_right(read(tmp_path / "data"))


@pytest.mark.parametrize("variant", ["cifar10", "cifar100"])
@pytest.mark.parametrize("download", [True, False])
def test_missing_data_tells_the_ways_out(
    tmp_path: Path, no_network: None, variant: Any, download: bool
) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / "data", variant=variant, download=download)
    folder = {"cifar10": "cifar-10-batches-py/", "cifar100": "cifar-100-python/"}[variant]
    for part in (str(tmp_path / "data"), "train*.parquet", folder, "dataset.root=", "ood.root=",
                 "experiment=quickstart"):  # fmt: skip
        assert part in str(caught.value)
    assert ("no network in this test" in str(caught.value)) == download


def test_an_unknown_variant(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="variant must be cifar10 or cifar100"):
        read(tmp_path, variant="cifar1000")


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_io = pytest.importorskip("scipy.io", reason="torchvision reads SVHN with scipy")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    path = tmp_path / "train_32x32.mat"
    scipy_io.savemat(path, {"X": pixels, "y": np.array([[10], [1], [2], [9]])})
    split = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", {**SVHN.split_list, "train": split})
    images = svhn.read(root=tmp_path, split="train", image_size=32)
    assert np.array_equal(images.images.numpy(), pixels.transpose(3, 2, 0, 1))
    assert images.labels.tolist() == [0, 1, 2, 9]


def test_svhn_missing_or_damaged(tmp_path: Path, no_network: None) -> None:
    for download in (True, False):
        with pytest.raises(UserError, match=r"svhn.*test_32x32\.mat"):
            svhn.read(root=tmp_path, split="test", image_size=32, download=download)
    (tmp_path / "test_32x32.mat").write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"test_32x32\.mat is damaged"):
        svhn.read(root=tmp_path, split="test", image_size=32)


def shared_folder() -> Path:
    """Where the real images are: MOSAICKD_SHARED, else ../shared beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("MOSAICKD_SHARED", beside)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} does not exist (MOSAICKD_SHARED names its parent)")
    return folder


@pytest.mark.realdata
def test_real_cifar100() -> None:
    test = read(shared_folder() / "cifar100", "test")
    assert test.images.shape == (10_000, 3, 32, 32)
    assert test.labels.bincount().tolist() == [100] * 100
    assert test.classes[0] == "apple"
    mean = test.images.float().mean((0, 2, 3)) / 255
    assert np.allclose(mean, [0.5071, 0.4867, 0.4408], atol=0.01)


@pytest.mark.realdata
def test_real_cifar10_is_read_as_far_as_it_is_there() -> None:
    root = shared_folder() / "cifar10"
    if (root / "test-00000-of-00001.parquet").exists():
        pytest.skip("the test images are here by now")
    train = read(root, variant="cifar10")
    assert len(train) >= 25_000
    assert train.classes[0] == "airplane"
    with pytest.raises(UserError, match="none of its test images"):
        read(root, "test", variant="cifar10")
