from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from torchvision.datasets import CIFAR100, SVHN

from mosaickd.data import cifar, svhn
from mosaickd.errors import UserError


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise URLError("no network in this test")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)
    monkeypatch.setattr(SVHN, "download", refuse)


def write(path: Path, content: dict[str, Any]) -> str:
    """Pickle as the original files are; returns the MD5 that torchvision will ask for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pickle.dumps(content)
    path.write_bytes(data)
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A three-image CIFAR-100 in torchvision's layout; returns its folder."""
    folder = tmp_path / "cifar-100-python"
    rows = np.arange(3 * 3072, dtype=np.int64).astype(np.uint8).reshape(3, 3072)
    train = write(folder / "train", {"data": rows, "fine_labels": [2, 0, 1]})
    test = write(folder / "test", {"data": rows[:1], "fine_labels": [1]})
    meta = write(folder / "meta", {"fine_label_names": ["ant", "bee", "cat"]})
    monkeypatch.setattr(CIFAR100, "train_list", [["train", train]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", test]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": meta})
    return folder


def test_torchvision_layout(original: Path) -> None:
    train = cifar.read(root=original.parent, split="train", image_size=32, variant="cifar100")
    rows = np.arange(3 * 3072, dtype=np.int64).astype(np.uint8)
    assert np.array_equal(train.images.numpy(), rows.reshape(3, 3, 32, 32))
    assert train.labels.tolist() == [2, 0, 1]
    assert train.classes == ["ant", "bee", "cat"]
    test = cifar.read(root=original.parent, split="test", image_size=32, variant="cifar100")
    assert test.labels.tolist() == [1]


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_damaged_file_is_named(original: Path, no_network: None, name: str) -> None:
    path = original / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=f"{path} is damaged"):
        cifar.read(root=original.parent, split="train", image_size=32, variant="cifar100")


def test_a_missing_file_is_named(original: Path) -> None:
    (original / "test").unlink()
    with pytest.raises(UserError, match=f"{original / 'test'} is missing"):
        cifar.read(
            root=original.parent, split="train", image_size=32, variant="cifar100", download=False
        )


@pytest.mark.parametrize("variant", ["cifar10", "cifar100"])
@pytest.mark.parametrize("download", [True, False])
def test_missing_data_tells_the_ways_out(
    tmp_path: Path, no_network: None, variant: Any, download: bool
) -> None:
    with pytest.raises(UserError) as caught:
        cifar.read(
            root=tmp_path / "data", split="train", image_size=32, variant=variant, download=download
        )
    message = str(caught.value)
    for said in (str(tmp_path / "data"), "train*.parquet", "python/" if variant == "cifar100" else
                 "batches-py/", "dataset.root=", "ood.root=", "experiment=quickstart"):  # fmt: skip
        assert said in message
    assert ("no network in this test" in message) == download


def test_an_unknown_variant(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="variant must be cifar10 or cifar100"):
        cifar.read(root=tmp_path, split="train", image_size=32, variant="cifar1000")  # type: ignore[arg-type]


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_io = pytest.importorskip("scipy.io", reason="torchvision reads SVHN with scipy")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    path = tmp_path / "train_32x32.mat"
    scipy_io.savemat(path, {"X": pixels, "y": np.array([[10], [1], [2], [9]])})
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    split = ["", path.name, md5]
    monkeypatch.setattr(SVHN, "split_list", {**SVHN.split_list, "train": split})
    read = svhn.read(root=tmp_path, split="train", image_size=32)
    assert np.array_equal(read.images.numpy(), pixels.transpose(3, 2, 0, 1))
    assert read.labels.tolist() == [0, 1, 2, 9]


def test_svhn_missing_or_damaged(tmp_path: Path, no_network: None) -> None:
    for download in (True, False):
        with pytest.raises(UserError, match=r"svhn|scipy") as caught:
            svhn.read(root=tmp_path, split="test", image_size=32, download=download)
        assert "test_32x32.mat" in str(caught.value)
    (tmp_path / "test_32x32.mat").write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"test_32x32\.mat"):
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
    root = shared_folder() / "cifar100"
    test = cifar.read(root=root, split="test", image_size=32, variant="cifar100")
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
    train = cifar.read(root=root, split="train", image_size=32, variant="cifar10")
    assert len(train) >= 25_000
    assert train.classes[0] == "airplane"
    with pytest.raises(UserError, match="none of its test images"):
        cifar.read(root=root, split="test", image_size=32, variant="cifar10")
