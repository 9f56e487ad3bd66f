"""The patch discriminator: which local patterns look authentic."""

from __future__ import annotations

from torch import Tensor, nn

from mosaickd.bounds import Count


class PatchDiscriminator(nn.Module):
    """One logit for each 10x10 patch. images [B, channels, H, W] -> logits [B, 1, H/4, W/4].

    After Fang et al., 2021 (`width` 128): windows lie four pixels apart and see no further than
    themselves, so that what is judged are local patterns and not what the whole image shows.
    """

    def __init__(self, *, width: Count = 128, channels: Count = 3) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(2 * width, 1, 1, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)
