"""The generator: latent vectors to images."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from mosaickd.constraints import Count
from mosaickd.errors import UserError


class UpsampledConv2d(nn.Conv2d):
    """Nearest upsampling by 2, then a 3x3 convolution. [B, C_in, H, W] -> [B, C_out, 2H, 2W].

    Under autocast this is one transposed convolution of stride 2, which is the same linear map:
    each of the four pixels that an input pixel becomes sees 2x2 different input pixels, not 3x3.
    That is 16 multiplications where upsampling first costs 36, and no enlarged copy of the input.
    In float32 it is done literally, so that runs agree with the reference's to the last digits.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(nn.functional.interpolate(x, scale_factor=2.0))
        # Convolving with the 2x2 box of ones that nearest upsampling is: 3x3 becomes 4x4.
        kernel = nn.functional.pad(self.weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
        rows = kernel[:, :, 1:] + kernel[:, :, :-1]
        kernel = rows[..., 1:] + rows[..., :-1]
        return nn.functional.conv_transpose2d(x, kernel, stride=2, padding=1)


class Generator(nn.Module):
    """DCGAN-like generator. latent [B, latent_dim] -> images [B, channels, H, W] in [0, 1].

    H = W = `image_size`, a multiple of 4: a linear layer paints a quarter-size map of 4 * `width`
    channels, two blocks of upsampling and convolution halve the channels and double the size.
    The paper's has `latent_dim` 100 and `width` 64.

    output: "sigmoid", or "batch_norm" as in ZSKT: the images are then normalised ones, as the
    classifiers want them, and not in [0, 1]; `normalized` says so.
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
        # A linear layer's output knows no layout. If the convolutions want channels last, turn it
        # here, while it is small (8 % of an eager CPU step), and not after upsampling. A compiler
        # chooses layouts itself, and traces a backward pass through this that may not fit.
        conv = cast(nn.Conv2d, self.conv_blocks[2])
        if not torch.compiler.is_compiling() and conv.weight.is_contiguous(
            memory_format=torch.channels_last
        ):
            x = x.contiguous(memory_format=torch.channels_last)
        return self.conv_blocks(x)
