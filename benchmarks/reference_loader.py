"""The reference's way of getting images: one by one, by worker processes.

Facts of the authors' code: CIFAR as torchvision reads it (an array, a PIL image made of it at each
access), torchvision's transforms, one DataLoader a stream with four workers, a batch at a time
copied to the device from memory that is not pinned. In MosaicKD the discriminator's images are not
augmented and carry the statistics of the teacher's domain; the student's are cropped and flipped
and carry their own. An iteration takes one batch of the former and five of the latter.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mosaickd.data.loader import usual_padding
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError
from mosaickd.methods.base import Stream

WORKERS = 4


class Decoded(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR keeps them, [N, H, W, 3], transformed when they are asked for.

    mean, std: per channel, in 0..1.
    """

    def __init__(
        self, images: ImageSet, *, augment: bool, mean: list[float], std: list[float]
    ) -> None:
        self.images = images.images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels.tolist()
        size = self.images.shape[1]
        steps = [transforms.ToTensor(), transforms.Normalize(mean, std)]
        if augment:
            crop = transforms.RandomCrop(size, padding=usual_padding(size))
            steps = [crop, transforms.RandomHorizontalFlip(), *steps]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class ReferenceLoaders:
    """A stream's next images, and how long the caller waited for them.

    workers: processes of each stream's loader; None: one batch a stream stays on the device. While
    nobody asks, the workers fill their queues (two batches each) and wait: `settle` sees to it.
    """

    def __init__(
        self,
        cfg: DictConfig,
        streams: Mapping[str, Stream],
        images: ImageSet,
        device: torch.device,
        workers: int | None = WORKERS,
    ) -> None:
        batch_size = cfg.train.batch_size
        if batch_size > len(images):
            raise UserError(
                f"train.batch_size: a batch of {batch_size} is larger than the {len(images)} "
                "random images; ask for more with --images"
            )
        # Four it is, also where there are fewer cores: that is what the authors' code asks for.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        self.device = device
        self.waited = 0.0  # seconds, in all
        self.settled = True  # so far, whenever `settle` was called
        self.resident: dict[str, Tensor] = {}
        self.loaders: dict[str, DataLoader[tuple[Tensor, int]]] = {}
        self.iterators: dict[str, Iterator[tuple[Tensor, Tensor]]] = {}
        for name, stream in streams.items():
            statistics = cfg[stream.normalization]
            data = Decoded(
                images,
                augment=stream.augment,
                mean=list(statistics.mean),
                std=list(statistics.std),
            )
            # The authors keep a short last batch; here it would make a shorter iteration.
            loader = DataLoader(
                data, batch_size, shuffle=True, num_workers=workers or 0, drop_last=True
            )
            if workers is None:
                self.resident[name] = next(iter(loader))[0].to(device)
            else:
                self.loaders[name] = loader
                self.iterators[name] = iter(loader)

    def __call__(self, name: str) -> Tensor:
        """-> the stream's next images on the device, normalised, [B, 3, H, W]"""
        if name in self.resident:
            return self.resident[name]
        start = time.perf_counter()
        try:
            pixels, _ = next(self.iterators[name])
        except StopIteration:  # another epoch begins, with new workers
            self.iterators[name] = iter(self.loaders[name])
            pixels, _ = next(self.iterators[name])
        self.waited += time.perf_counter() - start
        return pixels.to(self.device)

    def settle(self) -> None:
        """Wait until the workers have nothing to do, or for half a minute: then `settled` is false,
        and what is timed next shares the processor with them."""
        deadline = time.perf_counter() + (30.0 if self.settled else 2.0)
        before = None
        while (seen := worker_activity()) != before or seen.busy:
            if time.perf_counter() > deadline:
                self.settled = False
                return
            before = seen
            time.sleep(0.1)

    def close(self) -> None:
        """End the worker processes."""
        self.iterators.clear()  # what ends them is the end of the iterator that started them
        self.loaders.clear()


class Activity(tuple[int, bool]):
    """Of all child processes: ticks of CPU time so far, and whether one is running now."""

    @property
    def ticks(self) -> int:
        return self[0]

    @property
    def busy(self) -> bool:
        return self[1]


def worker_activity() -> Activity:
    """What the loaders' workers have done so far, from Linux's account of them."""
    ticks, busy = 0, False
    for child in multiprocessing.active_children():
        try:
            stat = Path(f"/proc/{child.pid}/stat").read_text()
        except OSError:
            continue  # it has just ended, or this is not Linux
        state, *numbers = stat.rpartition(")")[2].split()
        ticks += int(numbers[10]) + int(numbers[11])  # user and system time
        busy |= state in ("R", "D")
    return Activity((ticks, busy))
