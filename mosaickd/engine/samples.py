"""Pictures for a person: synthetic images beside real ones, sorted by the teacher's class."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from mosaickd.files import write_atomically
from mosaickd.methods.base import Method


def save_grids(path: Path, grids: list[Tensor], columns: int = 10, zoom: int = 2) -> None:
    """Write grids of images side by side as one PNG, atomically.

    grids: image batches in [0, 1], each [n, 3, H, W]; drawn `zoom` times enlarged.
    """
    from PIL import Image
    from torchvision.utils import make_grid

    drawn = [make_grid(g.float().cpu().clamp(0, 1), columns, 2, pad_value=1.0) for g in grids]
    height = max(grid.shape[1] for grid in drawn)
    padded = []
    for grid in drawn:
        bottom = torch.ones(3, height - grid.shape[1], grid.shape[2])
        padded += [torch.cat([grid, bottom], dim=1), torch.ones(3, height, 8)]
    pixels = torch.cat(padded[:-1], dim=2).mul(255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def by_class(images: Tensor, logits: Tensor) -> Tensor:
    """`images` [n, ...] ordered by the class that `logits` [n, C] predict."""
    return images[logits.argmax(dim=1).sort(stable=True).indices]


class SampleGrids:
    """Draws what the method makes, of fixed noise, beside fixed images that it trains on."""

    def __init__(
        self,
        method: Method,
        *,
        teacher: nn.Module | None,
        denormalize: Callable[[Tensor], Tensor],
        latents: Tensor | None,
        images: Tensor | None,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.method = method
        self.teacher = teacher
        self.denormalize = denormalize
        self.latents = latents
        self.images = images  # normalised [n, 3, H, W]
        self.autocast = autocast

    @torch.no_grad()
    def __call__(self, path: Path) -> bool:
        """Draw to `path`. False where there is nothing new to see: no teacher to sort by, or
        nothing that was made and the fixed images already drawn."""
        if self.teacher is None:
            return False
        modules = [m for m in self.method.players.values() if m.training]
        for module in modules:  # looking must not move batch-norm statistics
            module.eval()
        with self.autocast():
            synthetic = self.method.synthesize(self.latents)
        for module in modules:
            module.train()
        drawn = any(path.parent.glob("*.png"))  # by this process, or one that it goes on from
        if synthetic is None and (drawn or self.images is None):
            return False
        grids = []
        for images in (synthetic, self.images):
            if images is None:
                continue
            with self.autocast():
                logits = self.teacher(images)
            grids.append(self.denormalize(by_class(images, logits)))
        save_grids(path, grids, zoom=max(1, 64 // grids[0].shape[-1]))
        return True
