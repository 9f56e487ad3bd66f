"""The generator, from latent vectors to images."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from mosaickd.constraints import Count
from mosaickd.errors import UserError


class UpsampledConv2d(nn.Conv2d):
    """Upsample by 2 (nearest), then convolve 3x3. [B, C_in, H, W] -> [B, C_out, 2H, 2W].

    Under autocast this is one transposed convolution of stride 2, which is the same linear map:
    each of the four pixels that an input pixel becomes sees 2x2 different input pixels, not 3x3.
    That is 16 multiplications where upsampling first costs 36, and no enlarged copy of the input.
    In float32 the two steps are separate, so that runs agree with the reference's to the last
    digits.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(nn.functional.interpolate(x, scale_factor=2.0))
        # Nearest upsampling is a 2x2 box of ones; the 3x3 kernel convolved with it is 4x4.
        kernel = nn.functional.pad(self.weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
        rows = kernel[:, :, 1:] + kernel[:, :, :-1]
        kernel = rows[..., 1:] + rows[..., :-1]
        return nn.functional.conv_transpose2d(x, kernel, stride=2, padding=1)


class Generator(nn.Module):
    """Generate images [B, channels, H, W] in [0, 1] from latent vectors [B, latent_dim].

    After DCGAN, as in Fang et al., 2021 (`latent_dim` 100, `width` 64). H = W = `image_size`, a
    multiple of 4, else UserError: a linear layer makes a quarter-size map of 4 * `width` channels,
    and two blocks of upsampling and convolution halve the channels and double the size.

    output: "sigmoid", or "batch_norm" as in ZSKT (Micaelli & Storkey, 2019): the images are then
    normalised ones, as classifiers want them, and not in [0, 1]; `normalized` is true.
    """

    def __init__(
        self,
        *,
        image_size: int,
        latent_dim: Count = 100,
        width: Count = 64,
        channels: Count = 3,
        output: Literal["sigmoid", "batch_norm"] = "sigmoid",
    ) -> None:
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise UserError(
                f"a generator's image_size must be a multiple of 4, got {image_size}; "
                "choose another dataset.image_size"
            )
        self.latent_dim = latent_dim
        self.normalized = output == "batch_norm"
        self.start_size = image_size // 4
        # Names and positions (also of the layers without weights: where the reference upsamples
        # stands an identity) follow the published checkpoints: l1.0, conv_blocks.0, .2, .3, ...
        self.l1 = nn.Sequential(nn.Linear(latent_dim, 4 * width * self.start_size**2))
        self.conv_blocks = nn.Sequential(
            nn.BatchNorm2d(4 * width),
            nn.Identity(),
            UpsampledConv2d(4 * width, 2 * width),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Identity(),
            UpsampledConv2d(2 * width, width),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.BatchNorm2d(channels) if self.normalized else nn.Sigmoid(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        x = self.l1(latent).view(latent.shape[0], -1, self.start_size, self.start_size)
        # A linear layer's output has no memory format. If the convolutions want channels last,
        # convert here, while the map is small (8 % of an eager CPU step), and not after upsampling.
        # A compiler chooses formats itself, and traces a backward pass here that may not fit.
        conv = cast(nn.Conv2d, self.conv_blocks[2])
        if not torch.compiler.is_compiling() and conv.weight.is_contiguous(
            memory_format=torch.channels_last
        ):
            x = x.contiguous(memory_format=torch.channels_last)
        return self.conv_blocks(x)
