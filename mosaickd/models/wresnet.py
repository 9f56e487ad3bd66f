"""Wide residual networks (Zagoruyko & Komodakis, 2016) in their CIFAR form."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mosaickd.constraints import Count
from mosaickd.errors import UserError


class WideBlock(nn.Module):
    """Apply a pre-activation block: BN, ReLU, conv, BN, ReLU, conv, plus a shortcut.

    [B, in_width, H, W] -> [B, out_width, H / stride, W / stride]
    """

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, out_width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_width)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1, bias=False)
        # The name is part of the published checkpoints.
        self.convShortcut = (
            None if in_width == out_width else nn.Conv2d(in_width, out_width, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        # In place is safe: it overwrites this block's own BN output, never `x`, which a hook on the
        # previous stage may have captured.
        h = F.relu(self.bn1(x), inplace=True)
        # A projection starts from the activated input, an identity from the raw one.
        shortcut = x if self.convShortcut is None else self.convShortcut(h)
        h = F.relu(self.bn2(self.conv1(h)), inplace=True)
        return shortcut + self.conv2(h)


class WideStage(nn.Module):
    """Apply `blocks` blocks; the output is a feature that methods may compare.

    [B, in_width, H, W] -> [B, out_width, H / stride, W / stride]
    """

    def __init__(self, blocks: int, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            WideBlock(in_width, out_width, stride),
            *(WideBlock(out_width, out_width, 1) for _ in range(blocks - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """Compute logits [B, num_classes] of images [B, 3, H, W] by WRN-depth-widen_factor.

    After Zagoruyko & Komodakis, 2016, with the parameter names of MosaicKD's reference code.
    depth: 6n + 4. Features: stages `block1` to `block3` of H, H/2 and H/4 rows, before their
    activation. Embedding: the input of `fc`, [B, 64 * widen_factor]. Raise UserError for another
    depth.
    """

    def __init__(self, *, depth: Count, widen_factor: Count, num_classes: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or not 1 <= blocks <= 500:
            raise UserError(
                f"depth of a WideResNet must be 6n + 4 (10, 16, 22, 28, ..., 3004), got {depth}"
            )
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(blocks, 16, widths[0], stride=1)
        self.block2 = WideStage(blocks, widths[0], widths[1], stride=2)
        self.block3 = WideStage(blocks, widths[1], widths[2], stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)

        # He et al., 2015, by fan-out; the classifier's weight keeps torch's default.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))
