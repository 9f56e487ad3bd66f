"""An image source: which images, which reader reads them, and their normalization."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mosaickd.constraints import Fraction
from mosaickd.data.decode import Broken, Progress, no_progress, summarize_broken
from mosaickd.errors import UserError

log = logging.getLogger(__name__)

Split = Literal["train", "test"]

LIMIT_SEED = 20210  # any constant will do: `limit` must mean the same images in every run
RESIZE_CHUNK = 2048  # images resized at once: bounds the float copy, whatever the set's size


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A split in memory. images: uint8 [N, 3, H, W], contiguous; labels: int64 [N], 0..K-1.

    broken: (place, reason) of the images that the whole split has beside these, and that were
    left out because they can't be read.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]
    broken: Broken = ()

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8, self.images.dtype
        assert self.images.ndim == 4, self.images.shape
        assert self.images.shape[1] == 3, self.images.shape
        assert self.images.is_contiguous()
        assert self.labels.dtype == torch.int64, self.labels.dtype
        assert self.labels.shape == self.images.shape[:1], self.labels.shape

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> ImageSet:
        """Return the same images on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def only(self, chosen: Tensor | slice) -> ImageSet:
        """Return some of the images. chosen: indices, a mask [N] or a slice."""
        return replace(self, images=self.images[chosen].contiguous(), labels=self.labels[chosen])


class Source:
    """A reader with its settings. Raises UserError for settings that cannot be meant."""

    def __init__(
        self,
        *,
        name: str,
        reader: Callable[..., ImageSet],
        root: str,
        image_size: int,
        mean: list[float],
        std: list[float],
        classes: list[int] | None = None,  # which classes, by index; labels follow this order
        limit: int | None = None,  # how many training images, a fair sample
        native_size: int | None = None,  # the size the set is usually used at
        train_size: int | None = None,  # how many training images the whole set has
        max_broken: Fraction = 0.0,  # share of a split that may be unreadable, and is left out
    ) -> None:
        if image_size < 4 or image_size % 4:
            raise UserError(
                f"image_size of {name} must be a positive multiple of 4 (the networks halve it "
                f"twice), got {image_size}"
            )
        if limit is not None and limit < 1:
            raise UserError(
                f"limit of {name} must be at least 1, got {limit}; null takes all images"
            )
        for key, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise UserError(
                    f"{key} of {name} must have one value a channel (3), got {list(values)}"
                )
        if min(std) <= 0:
            raise UserError(f"std of {name} must be above 0 in every channel, got {list(std)}")
        if classes is not None and not classes:
            raise UserError(f"classes of {name} is empty; null takes all classes")
        self.name = name
        self.reader = reader
        self.root = root
        self.image_size = image_size
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.classes = None if classes is None else list(classes)
        self.limit = limit
        self.native_size = native_size
        self.max_broken = max_broken
        # Of a part of the classes nobody knows without reading the images, which may be gone.
        self.train_size = train_size if classes is None else None
        if self.train_size is not None and limit is not None:
            self.train_size = min(limit, self.train_size)
        self._logged_resize = False

    @property
    def label(self) -> str:
        """Return the name of these images in file names, as of their teacher."""
        label = self.name
        if self.classes is not None or self.limit is not None:
            chosen = repr((self.classes, self.limit)).encode()
            label += "-" + hashlib.sha256(chosen).hexdigest()[:6]
        if self.native_size is not None and self.image_size != self.native_size:
            label += f"-{self.image_size}px"
        return label

    def load(self, split: Split, progress: Progress = no_progress) -> ImageSet:
        """Read a split, narrowed to `classes` and `limit`, at `image_size`.

        progress: shows how far a long pass over the files is. Raises UserError where the images
        are missing or damaged, or fewer than asked for.
        """
        root = Path(self.root).expanduser()
        images = self._read(root, split, progress)
        if self.classes is not None:
            images = self._select_classes(images, self.classes)
        if self.limit is not None and split == "train":
            images = self._sample(images, self.limit)
        if len(images) == 0:
            raise UserError(
                f"{self.name} has no {split} images in {root.absolute()}"
                + (f" of classes {self.classes}" if self.classes is not None else "")
                + "; look into that folder, or choose another root"
            )
        size = self.image_size
        if tuple(images.images.shape[2:]) != (size, size):
            if not self._logged_resize:
                height, width = images.images.shape[2:]
                log.info("%s: images resized from %dx%d to %dx%d", self.name, height, width, size,
                         size)  # fmt: skip
                self._logged_resize = True
            images = replace(images, images=resize(images.images, size))
        return images

    def _read(self, root: Path, split: Split, progress: Progress) -> ImageSet:
        optional = {"max_broken": self.max_broken, "progress": progress}
        accepted = inspect.signature(self.reader).parameters.keys()
        images = self.reader(
            root=root, split=split, image_size=self.image_size,
            **{name: value for name, value in optional.items() if name in accepted},
        )  # fmt: skip
        if images.broken:
            log.warning(
                "%s: %d of %d %s images are broken and left out: %s; a run lists all of them in "
                "its broken.txt", self.name, len(images.broken),
                len(images) + len(images.broken), split, summarize_broken(images.broken),
            )  # fmt: skip
        return images

    def _select_classes(self, images: ImageSet, classes: list[int]) -> ImageSet:
        count = len(images.classes)
        for position, index in enumerate(classes):
            problem = None
            if isinstance(index, bool) or not isinstance(index, int):
                problem = f"{index!r} is not a class index (integer)"
            elif not 0 <= index < count:
                problem = f"index {index} is out of range 0..{count - 1}"
            elif index in classes[:position]:
                problem = f"index {index} stands there twice; name each class at most once"
            if problem:
                raise UserError(f"classes of {self.name}: {problem}")
        new_label = torch.full((count,), -1, dtype=torch.int64)
        new_label[torch.tensor(classes)] = torch.arange(len(classes))
        images = replace(
            images, labels=new_label[images.labels], classes=[images.classes[i] for i in classes]
        )
        return images.only(images.labels >= 0)

    def _sample(self, images: ImageSet, limit: int) -> ImageSet:
        available = len(images)
        if limit > available:
            raise UserError(
                f"limit of {self.name} is {limit}, but there are only {available} training images"
                + (f" in classes {self.classes}" if self.classes is not None else "")
                + "; lower it, or set it to null to take all"
            )
        # A prefix of one permutation: a larger limit contains the smaller one's images. The order
        # of the set is kept, so that a limit of all images changes nothing.
        order = torch.randperm(available, generator=torch.Generator().manual_seed(LIMIT_SEED))
        return images.only(order[:limit].sort().values)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize by antialiased bilinear interpolation.

    images: uint8 [N, 3, H, W] -> uint8 [N, 3, size, size]
    """
    resized = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for start in range(0, len(images), RESIZE_CHUNK):
        part = images[start : start + RESIZE_CHUNK].float()
        part = interpolate(part, size=(size, size), mode="bilinear", antialias=True)
        resized[start : start + RESIZE_CHUNK] = part.round_().clamp_(0, 255).to(torch.uint8)
    return resized
