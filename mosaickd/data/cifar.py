"""CIFAR-10 and CIFAR-100, from Parquet shards or from torchvision's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mosaickd.data.decode import Progress, no_progress
from mosaickd.data.parquet import find_shards, read_split
from mosaickd.data.source import ImageSet
from mosaickd.data.unpickle import load_arrays
from mosaickd.errors import UserError
from mosaickd.utils.locks import build_lock


def read(
    *,
    root: Path,
    split: str,
    image_size: int,
    variant: Literal["cifar10", "cifar100"],
    download: bool = True,
    max_broken: float = 0.0,  # of the images in Parquet; other files must be whole
    progress: Progress = no_progress,
) -> ImageSet:
    """Read a split, 32x32 (`Source` resizes, so that both layouts give the same pixels).

    Takes what lies in root: Parquet shards as on the Hugging Face hub, else torchvision's folder,
    else downloads the latter. Raises UserError where the images are missing or damaged.
    """
    if variant not in ("cifar10", "cifar100"):
        raise UserError(f"reader.variant must be cifar10 or cifar100, got {variant!r}")
    root = root.absolute()
    if shards := find_shards(root, split):
        return read_split(shards, max_broken=max_broken, progress=progress)
    other = "test" if split == "train" else "train"
    if find_shards(root, other):
        raise UserError(
            f"{root} has Parquet shards of {variant}'s {other} images, but none of its {split} "
            f"images; put {split}-00000-of-00001.parquet beside them (uoft-cs/{variant} on the "
            "Hugging Face hub has it)"
        )

    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import download_and_extract_archive

    layout: Any = CIFAR10 if variant == "cifar10" else CIFAR100
    folder, meta = root / layout.base_folder, layout.meta
    files = [*layout.train_list, *layout.test_list, (meta["filename"], meta["md5"])]
    advice = (
        f"Looked in {root} for Parquet shards (train*.parquet, test*.parquet, as uoft-cs/{variant} "
        f"has them on the Hugging Face hub) and for torchvision's folder {layout.base_folder}/ "
        f"(from {layout.filename}). Put either there, or set dataset.root= (or ood.root=) to the "
        "folder that holds them. python run.py experiment=quickstart needs no data."
    )
    check_files(folder, files, download)
    if not all((folder / name).exists() for name, _ in files):
        if not download:
            raise UserError(f"no {variant} images. {advice}")
        fetch(
            root,
            lambda: download_and_extract_archive(
                layout.url, str(root), filename=layout.filename, md5=layout.tgz_md5
            ),
            f"{variant} is missing, and downloading it failed",
            advice,
        )
        check_files(folder, files, download=False)
    own = layout.train_list if split == "train" else layout.test_list
    parts = [load_arrays(folder / name) for name, _ in own]
    images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    key = "labels" if variant == "cifar10" else "fine_labels"
    labels = torch.tensor([label for part in parts for label in part[key]], dtype=torch.int64)
    classes = load_arrays(folder / meta["filename"])[meta["key"]]
    return ImageSet(torch.from_numpy(images), labels, list(classes))


def check_files(folder: Path, files: Sequence[Any], download: bool) -> None:
    """Raise UserError naming the first of the (file, md5) in folder that is damaged.

    A file that is missing from the others is an error too, unless it can be downloaded.
    """
    from torchvision.datasets.utils import check_integrity

    present = [name for name, _ in files if (folder / name).exists()]
    for name, md5 in files:
        path = folder / name
        if name in present and not check_integrity(str(path), md5):
            raise UserError(
                f"{path} is damaged or incomplete (its MD5 checksum is not {md5}); delete it and "
                "unpack or download it again"
            )
        if present and name not in present and not download:
            raise UserError(f"{path} is missing, though others of its set are there; unpack or "
                            "download the set again")  # fmt: skip


def fetch(root: Path, download: Callable[[], object], problem: str, advice: str) -> None:
    """Run a download into root, one process at a time. Raises UserError if it fails."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with build_lock(root / ".download.making", str(root)):
            download()
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise UserError(f"{problem} ({error}). {advice}") from error
