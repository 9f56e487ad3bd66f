"""SVHN (cropped digits), from Parquet shards or from torchvision's .mat files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mosaickd.data.cifar import check_files, fetch
from mosaickd.data.decode import Progress, no_progress
from mosaickd.data.parquet import find_shards, read_split
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError


def read(
    *,
    root: Path,
    split: str,
    image_size: int,
    download: bool = True,
    max_broken: float = 0.0,  # of the images in Parquet; other files must be whole
    progress: Progress = no_progress,
) -> ImageSet:
    """Read a split of the cropped digits, 32x32 (`Source` resizes).

    Takes Parquet shards as on the Hugging Face hub, else train_32x32.mat and test_32x32.mat.
    Raises UserError where the file is missing and cannot be downloaded, or is damaged.
    """
    root = root.absolute()
    if shards := find_shards(root, split):
        return read_split(shards, max_broken=max_broken, progress=progress)

    from torchvision.datasets import SVHN

    _, name, md5 = SVHN.split_list[split]
    advice = (
        f"Looked for {root / name} (cropped digits, format 2, of the Street View House Numbers) "
        f"and for Parquet shards in {root} (ufldl-stanford/svhn, cropped_digits, on the Hugging "
        "Face hub). Put either there, or set dataset.root= (or ood.root=) to the folder that "
        "holds them. python run.py experiment=quickstart needs no data."
    )
    check_files(root, [(name, md5)], download)
    if not (root / name).exists():
        if not download:
            raise UserError(f"no svhn images. {advice}")
        problem = "svhn is missing, and downloading it failed"
        fetch(root, lambda: SVHN(str(root), split, download=True), problem, advice)
    data = SVHN(str(root), split)
    images = torch.from_numpy(np.ascontiguousarray(data.data))
    labels = torch.from_numpy(np.asarray(data.labels, dtype=np.int64))
    return ImageSet(images, labels, [str(digit) for digit in range(10)])
