"""CIFAR-10 and CIFAR-100, from Parquet shards or from torchvision's files."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mosaickd.data.parquet import find_shards, read_split
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError
from mosaickd.files import write_atomically
from mosaickd.locks import build_lock


def read(
    *,
    root: Path,
    split: str,
    image_size: int,
    variant: Literal["cifar10", "cifar100"],
    download: bool = True,
    max_broken: float = 0.0,  # of the images in Parquet; other files must be whole
) -> ImageSet:
    """Read a split, 32x32 (`Source` resizes, so that both layouts give the same pixels).

    Takes what lies in root: Parquet shards as on the Hugging Face hub, else torchvision's folder,
    else downloads the latter. Raises UserError where the images are missing or damaged.
    """
    if variant not in ("cifar10", "cifar100"):
        raise UserError(f"reader.variant must be cifar10 or cifar100, got {variant!r}")
    root = root.absolute()
    shards = find_shards(root, split)
    if shards:
        return read_split(shards, max_broken=max_broken)
    other = "test" if split == "train" else "train"
    if find_shards(root, other):
        raise UserError(
            f"{root} has Parquet shards of {variant}'s {other} images, but none of its {split} "
            f"images; put {split}-00000-of-00001.parquet beside them (uoft-cs/{variant} on the "
            "Hugging Face hub has it)"
        )

    from torchvision.datasets import CIFAR10, CIFAR100

    kind: Any = CIFAR10 if variant == "cifar10" else CIFAR100
    folder = root / kind.base_folder
    wanted = kind.train_list + kind.test_list + [(kind.meta["filename"], kind.meta["md5"])]
    advice = (
        f"Looked in {root} for Parquet shards (train*.parquet, test*.parquet, as uoft-cs/{variant} "
        f"has them on the Hugging Face hub) and for torchvision's folder {kind.base_folder}/ "
        f"(from {kind.filename}). Put either there, or set dataset.root= (or ood.root=) to the "
        "folder that holds them. python run.py experiment=quickstart needs no data."
    )
    check_files(folder, wanted, download)
    if not all((folder / name).exists() for name, _ in wanted):
        if not download:
            raise UserError(f"no {variant} images. {advice}")
        names = [name for name, _ in wanted]
        fetch(root, lambda: download_archive(kind, root, names), f"{variant} is missing", advice)
        check_files(folder, wanted, download=False)
    data = kind(root, train=split == "train")
    images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    return ImageSet(images, torch.tensor(data.targets, dtype=torch.int64), list(data.classes))


def check_files(folder: Path, wanted: list[Any], download: bool) -> None:
    """Raise UserError naming the first of the (file, md5) in folder that is damaged.

    A file that is missing from the others is an error too, unless it can be downloaded.
    """
    from torchvision.datasets.utils import check_integrity

    present = [name for name, _ in wanted if (folder / name).exists()]
    for name, md5 in wanted:
        path = folder / name
        if name in present and not check_integrity(str(path), md5):
            raise UserError(
                f"{path} is damaged or incomplete (its MD5 checksum is not {md5}); delete it and "
                "unpack or download it again"
            )
        if present and name not in present and not download:
            raise UserError(f"{path} is missing, though others of its set are there; unpack or "
                            "download the set again")  # fmt: skip


def download_archive(kind: Any, root: Path, names: Sequence[str]) -> None:
    """The archive of a torchvision data set, once its MD5 is right, and these files of it."""
    from torchvision.datasets.utils import download_url

    download_url(kind.url, root, kind.filename, kind.tgz_md5)
    unpack(root / kind.filename, root / kind.base_folder, names)


def unpack(archive: Path, folder: Path, names: Sequence[str]) -> None:
    """Write those files of `folder` in a .tar.gz that are wanted, and nothing else.

    Only their content is taken, under names of our own: no path, link or device that an archive
    may hold leaves the folder, on any version of Python.
    """
    wanted = {f"{folder.name}/{name}": name for name in names}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None and member.name in wanted:
                write_atomically(folder / wanted[member.name], partial(shutil.copyfileobj, content))


def fetch(root: Path, download: Callable[[], object], problem: str, advice: str) -> None:
    """Run a download into root, one process at a time; UserError with advice if it fails."""
    created = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with build_lock(root / ".download.making", str(root)):
            download()
    except (OSError, RuntimeError, tarfile.TarError, EOFError, zlib.error) as error:
        # URLError is an OSError
        if created:
            shutil.rmtree(root, ignore_errors=True)
        raise UserError(f"{problem}, and downloading it failed ({error}). {advice}") from error
