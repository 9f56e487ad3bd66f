"""A loader for data sets that fit on the device: uint8 images stay there, batches are made there.

No worker processes: for images of these sizes, cropping and flipping a whole batch by indexing
costs less than handing images from process to process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError


class Normalize(nn.Module):
    """(images - mean) / std per channel. images: [0, 1] [B, 3, H, W]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std

    def inverse(self, images: Tensor) -> Tensor:
        """Return normalised images in [0, 1], as far as they are images."""
        return images.float() * self.std + self.mean


class ResidentImages:
    """uint8 images on the device, made into normalised float batches there."""

    def __init__(
        self,
        data: ImageSet,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        channels_last: bool = True,
    ) -> None:
        self.images = data.images.to(device)
        self.labels = data.labels.to(device)
        self.batch_size = batch_size
        self.normalize = Normalize(mean, std).to(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def prepare(self, images: Tensor) -> Tensor:
        """Return uint8 [B, 3, H, W] as normalised float, in the networks' memory format."""
        pixels = self.normalize(images.float().div_(255))
        return pixels.contiguous(memory_format=self.memory_format)


class ResidentLoader(ResidentImages):
    """Endless shuffled batches of one image set.

    Every batch has `batch_size` images: one that reaches the end of a permutation goes on with
    the next one, so shapes never change and no image is left out. `len()` is the number of
    batches in an epoch. Shuffling and augmentation draw from one generator, whose state is part
    of `state_dict()`.

    `sample_indices` chooses the images, by counting on the host; `make_batch` makes their pixels,
    on the device alone and always in the same shapes, so that it can be captured.

    share: the part of every batch that this process gets, of several that train together. All of
    them draw the same numbers for the whole batch, so together they see what one alone would.
    """

    def __init__(
        self,
        data: ImageSet,
        *,
        augment: bool,
        seed: int,
        name: str = "the data set",
        share: slice = slice(None),
        **settings: Any,  # of ResidentImages
    ) -> None:
        super().__init__(data, **settings)
        check_batch_size(self.batch_size, len(data), name)
        self.augment = augment
        self.padding = usual_padding(data.images.shape[-1])
        self.share = share
        self.rng = torch.Generator(self.images.device).manual_seed(seed)
        self.begin()

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __next__(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalised float images [b, 3, H, W], labels [b] and indices [b]."""
        images, labels, indices = self.make_batch(self.sample_indices())
        return images[0], labels[0], indices[0]

    def sample_indices(self, count: int = 1) -> Tensor:
        """Return which images the next `count` batches hold, of all processes together.

        [count, batch_size]
        """
        return self.next_indices(count * self.batch_size).view(count, self.batch_size)

    def make_batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return this process's share of sampled batches, without waiting for the device.

        indices: [count, batch_size] -> normalised float images [count, b, 3, H, W], labels
        [count, b], indices [count, b]
        """
        own = indices[:, self.share]
        images = self.images[own.flatten()]
        if self.augment:
            crops = draw_crops(indices.numel(), self.padding, self.rng)
            own_crops = [c.view(*indices.shape)[:, self.share].reshape(-1, 1) for c in crops]
            images = crop_and_flip(images, self.padding, *own_crops)
        pixels = self.prepare(images)
        return pixels.unflatten(0, own.shape), self.labels[own], own

    def begin(self) -> None:
        """Prepare for the first batch."""
        self.position = 0
        self._shuffle()

    def next_indices(self, count: int) -> Tensor:
        """Return which images come next, [count]."""
        parts = [self.permutation[self.position : self.position + count]]
        self.position += len(parts[0])
        while missing := count - sum(map(len, parts)):
            self._shuffle()
            parts.append(self.permutation[:missing])
            self.position = len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _shuffle(self) -> None:
        self.before_shuffle = self.rng.get_state()
        count, device = len(self.images), self.images.device
        self.permutation = torch.randperm(count, generator=self.rng, device=device)
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state; not the permutation, which is drawn again from the state before it."""
        return {
            "before_shuffle": self.before_shuffle,
            "position": self.position,
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.set_state(state["before_shuffle"])
        self._shuffle()
        self.position = state["position"]
        self.rng.set_state(state["rng"])


class BalancedLoader(ResidentLoader):
    """Endless batches in which every class that occurs is drawn equally often, with replacement.

    `len()` is that of a `ResidentLoader` of the same images.
    """

    def begin(self) -> None:
        self.by_class = self.labels.argsort(stable=True)
        counts = self.labels.bincount()
        self.counts = counts[counts > 0]
        self.starts = self.counts.cumsum(0) - self.counts

    def next_indices(self, count: int) -> Tensor:
        """Draw a class for each, then one of its images."""
        device = self.images.device
        chosen = torch.randint(len(self.counts), (count,), generator=self.rng, device=device)
        counts = self.counts[chosen]
        # In float64, and below 1: no class is so large that its last image could be overstepped.
        within = torch.rand(count, generator=self.rng, device=device, dtype=torch.float64)
        return self.by_class[self.starts[chosen] + (within * counts).long()]

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.set_state(state["rng"])


def check_batch_size(batch_size: int, count: int, name: str) -> None:
    """Raise a UserError where a batch has more images than there are."""
    if batch_size > count:
        raise UserError(
            f"train.batch_size: a batch of {batch_size} is larger than {name}, which has "
            f"{count} training images; choose at most train.batch_size={count}"
        )


class TestBatches(ResidentImages):
    """All images of a set once, in order: what `evaluate` iterates over.

    part, parts: of several processes, which one this is; each has every parts-th image.
    """

    __test__ = False  # a name that pytest would collect

    def __init__(self, data: ImageSet, *, part: int = 0, parts: int = 1, **settings: Any) -> None:
        super().__init__(
            data if parts == 1 else data.only(slice(part, None, parts)),
            **settings,  # of ResidentImages
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised float images [b, 3, H, W] and labels [b]."""
        image_batches = self.images.split(self.batch_size)
        label_batches = self.labels.split(self.batch_size)
        for images, labels in zip(image_batches, label_batches, strict=True):
            yield self.prepare(images), labels


def usual_padding(width: int) -> int:
    """Return the padding of random crops: 4 pixels at 32x32, as everywhere on CIFAR."""
    return width // 8


def random_crop_and_flip(images: Tensor, padding: int, rng: torch.Generator) -> Tensor:
    """Crop each image from zero padding at its own offset, then flip it or not.

    images: [B, C, H, W] of any dtype -> the same shape. Like torchvision's RandomCrop(padding=p)
    and RandomHorizontalFlip, but for a whole batch by two gathers, without a host round trip.
    """
    return crop_and_flip(images, padding, *draw_crops(len(images), padding, rng))


def draw_crops(count: int, padding: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the first row and column of each image's crop, and whether it is flipped.

    [count, 1] each
    """
    spread = 2 * padding + 1
    top = torch.randint(spread, (count, 1), generator=rng, device=rng.device)
    left = torch.randint(spread, (count, 1), generator=rng, device=rng.device)
    flip = torch.rand(count, 1, generator=rng, device=rng.device) < 0.5
    return top, left, flip


def crop_and_flip(images: Tensor, padding: int, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Crop and flip as `draw_crops` says. images: [B, C, H, W] -> [B, C, H, W]"""
    count, channels, height, width = images.shape
    device = images.device
    padded = nn.functional.pad(images, (padding,) * 4)
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, width)
    columns = left + torch.where(flip, width - 1 - columns, columns)
    rows = rows[:, None, :, None].expand(-1, channels, -1, padded.shape[3])
    columns = columns[:, None, None, :].expand(-1, channels, height, -1)
    return padded.gather(2, rows).gather(3, columns)
