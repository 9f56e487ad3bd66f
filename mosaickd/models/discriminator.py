"""The patch discriminator, which judges how authentic local patterns are."""

from __future__ import annotations

from torch import Tensor, nn

from mosaickd.constraints import Count
from mosaickd.errors import UserError


class PatchDiscriminator(nn.Module):
    """Compute one logit for each patch: images [B, channels, H, W] -> logits [B, 1, h, w].

    After Fang et al., 2021 (`width` 128, `patch_size` 10): each logit depends on a window of 10x10
    pixels and no others, so that it judges local patterns and not the whole image. Windows lie four
    pixels apart: 8x8 logits at 32x32.

    patch_size: the receptive field in pixels, 1 or more. Each layer halves the map: two layers up
    to 10 pixels, three up to 22, one more each time that the field doubles. None, or the image's
    size: the whole image, one logit, as in DCGAN. Raise UserError for a patch larger than that.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        width: Count = 128,
        channels: Count = 3,
        patch_size: Count | None = 10,
    ) -> None:
        super().__init__()
        if patch_size is not None and patch_size > image_size:
            raise UserError(
                f"discriminator.patch_size is {patch_size}, and images have {image_size} pixels a "
                "side; null takes the whole image"
            )
        if patch_size is None or patch_size == image_size:
            kernels, last = _whole_image(image_size)
        else:
            kernels, last = _kernels(patch_size), 1
        layers: list[nn.Module] = []
        inner = channels
        for number, kernel in enumerate(kernels):
            outer = width * 2 ** min(number, 3)
            # A kernel of 3 or 4 needs one pixel of padding for the map to be halved exactly.
            conv = nn.Conv2d(inner, outer, kernel, 2, padding=kernel // 3, bias=number == 0)
            layers += [conv, *([nn.BatchNorm2d(outer)] if number else [])]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
            inner = outer
        self.main = nn.Sequential(*layers, nn.Conv2d(inner, 1, last, bias=False))

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)


def _kernels(patch_size: int) -> list[int]:
    """Return kernel sizes (1 to 4) of layers of stride 2 whose receptive field is `patch_size`."""
    count = 2
    while 1 + 3 * (2**count - 1) < patch_size:
        count += 1
    kernels = []
    left = patch_size - 1
    for layer in reversed(range(count)):
        # One more tap in layer l widens the field by 2^l. Its taps lie that far apart, so the
        # layers before it must see no less: between them no pixel may be left out.
        apart = 2**layer
        taps = max(0, min(3, (left - (apart - 1)) // apart))
        kernels.append(1 + taps)
        left -= taps * apart
    assert left == 0, patch_size
    return kernels[::-1]


def _whole_image(image_size: int) -> tuple[list[int], int]:
    """Return 4x4 kernels down to a map of 2 or 3 pixels, and the kernel that covers that map."""
    kernels: list[int] = []
    while image_size > 3:
        kernels.append(4)
        image_size //= 2
    return kernels, image_size
