"""Pictures for a person: synthetic images beside real ones, sorted by the teacher's class.

Each PNG says what it shows: the text `mosaickd` in it is JSON, {"step": N, "zoom": Z, "padding": P,
"columns": C, "grids": [{"what": "synthetic" or "images", "left": X, "size": H, "classes": [...]}]}.
left: of a grid, in pixels before the zoom; classes: the teacher's, image by image.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mosaickd import metric_names
from mosaickd.methods.base import Method
from mosaickd.utils.files import write_atomically

PADDING = 2  # pixels around each image
GAP = 8  # and between two grids


class Grid(NamedTuple):
    """Images side by side. images: [n, 3, H, W] in [0, 1]; classes: [n], the teacher's."""

    what: str  # synthetic, or images
    images: Tensor
    classes: Tensor


def save_grids(path: Path, grids: Sequence[Grid], step: int, columns: int = 10) -> None:
    """Write grids side by side as one PNG, enlarged where the images are small, atomically."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo
    from torchvision.utils import make_grid

    zoom = max(1, 64 // grids[0].images.shape[-1])
    drawn = [
        make_grid(g.images.float().cpu().clamp(0, 1), columns, PADDING, pad_value=1.0)
        for g in grids
    ]
    height = max(grid.shape[1] for grid in drawn)
    padded, about, left = [], [], 0
    for grid, picture in zip(grids, drawn, strict=True):
        bottom = torch.ones(3, height - picture.shape[1], picture.shape[2])
        padded += [torch.cat([picture, bottom], dim=1), torch.ones(3, height, GAP)]
        about.append({"what": grid.what, "left": left, "size": grid.images.shape[-1],
                      "classes": grid.classes.tolist()})  # fmt: skip
        left += picture.shape[2] + GAP
    pixels = torch.cat(padded[:-1], dim=2).mul(255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    text = PngInfo()
    layout = {"step": step, "zoom": zoom, "padding": PADDING, "columns": columns, "grids": about}
    text.add_text("mosaickd", json.dumps(layout))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=text)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def sort_by_class(images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return `images` [n, ...] ordered by `classes` [n], and these."""
    ordered = classes.sort(stable=True)
    return images[ordered.indices], ordered.values


class SampleReport(NamedTuple):
    """What samples show. drawn: whether a picture was written; metrics: of the synthetic images."""

    drawn: bool
    metrics: dict[str, Any]


class SampleLogger:
    """Draws what the method makes of fixed noise, beside fixed images that it trains on; counts
    which classes the teacher sees in what it makes.

    noise: batches of latents [n, latent_dim], or [None] where there is no generator; the first
    batch is drawn, of all of them the classes are counted. images: normalised [n, 3, H, W].
    """

    def __init__(
        self,
        method: Method,
        *,
        teacher: nn.Module | None,
        denormalize: Callable[[Tensor], Tensor],
        noise: Sequence[Tensor | None],
        images: Tensor | None,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.method = method
        self.teacher = teacher
        self.denormalize = denormalize
        self.noise = noise
        self.images = images
        self.autocast = autocast

    @torch.no_grad()
    def __call__(self, path: Path, step: int) -> SampleReport:
        """Draw to `path`, unless there is nothing new to see.

        That is so without a teacher to sort by, and where nothing was made and the fixed images
        are drawn already.
        """
        if self.teacher is None:
            return SampleReport(False, {})
        shown: Tensor | None = None
        logits: list[Tensor] = []
        modules = [m for m in self.method.players.values() if m.training]
        try:
            for module in modules:  # sampling must not move batch-norm statistics
                module.eval()
            for noise in self.noise:
                with self.autocast():
                    images = self.method.synthesize(noise)
                if images is not None:
                    logits.append(self._logits(images))
                    shown = images if shown is None else shown
        finally:
            for module in modules:
                module.train()
        drawn = any(path.parent.glob("*.png"))  # in this session, or one that it goes on from
        if shown is None and (drawn or self.images is None):
            return SampleReport(False, {})
        grids, metrics = [], {}
        if shown is not None:
            grids.append(self._grid("synthetic", shown, logits[0]))
            metrics = class_metrics(torch.cat(logits))
        if self.images is not None:
            grids.append(self._grid("images", self.images, self._logits(self.images)))
        save_grids(path, grids, step)
        return SampleReport(True, metrics)

    def _logits(self, images: Tensor) -> Tensor:
        assert self.teacher is not None
        with self.autocast():
            return self.teacher(images).float()

    def _grid(self, what: str, images: Tensor, logits: Tensor) -> Grid:
        images, classes = sort_by_class(images, logits.argmax(dim=1))
        return Grid(what, self.denormalize(images), classes)


#: Images a grid, and synthetic images whose classes are counted, at 32x32 pixels and below.
SHOWN, COUNTED = 100, 1000


def sample_counts(image_size: int, num_classes: int) -> tuple[int, int]:
    """Return how many images a grid shows, and of how many the classes are counted.

    Larger images are fewer, so that a look costs about the same at 224x224 as at 32x32; at least
    16 are shown.
    """
    share = min(1.0, (32 / image_size) ** 2)
    shown = max(16, int(SHOWN * share))
    return shown, max(shown, int(min(10 * num_classes, COUNTED) * share))


def class_metrics(logits: Tensor) -> dict[str, Any]:
    """Return what the teacher takes synthetic images for: a generator that makes few things shows.

    logits: [n, C].
    """
    counts = logits.argmax(dim=1).bincount(minlength=logits.shape[1])
    return {
        metric_names.FAKE_CLASSES: counts.tolist(),
        metric_names.FAKE_CLASSES_SEEN: int((counts > 0).sum()),
        metric_names.FAKE_CONFIDENCE: round(float(logits.softmax(1).amax(1).mean()), 4),
    }
