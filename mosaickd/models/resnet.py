"""Residual networks (He et al., 2016) in the form used on CIFAR: 3x3 stem, no max pooling."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mosaickd.errors import UserError


class BasicBlock(nn.Module):
    """Apply two 3x3 convolutions and a shortcut.

    [B, in_width, H, W] -> [B, width, H / stride, W / stride]
    """

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_width != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        # In place is safe here: both tensors were made in this block, and the block's output is
        # the activated one.
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """Compute logits [B, num_classes] of images [B, 3, H, W] by a ResNet of basic blocks.

    After He et al., 2016, with the parameter names of MosaicKD's reference code. blocks: how many
    in each of the four stages ([2, 2, 2, 2] is ResNet-18). Features: stages `layer1` to `layer4` of
    64, 128, 256 and 512 channels at H, H/2, H/4 and H/8 rows. Embedding: the input of `linear`,
    [B, 512]. Raise UserError for other `blocks`.
    """

    def __init__(self, *, blocks: list[int], num_classes: int) -> None:
        super().__init__()
        if len(blocks) != 4 or min(blocks) < 1 or max(blocks) > 500:
            raise UserError(f"blocks of a ResNet must be four numbers of 1 to 500, got {blocks}")
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(blocks[0], 64, 64, stride=1)
        self.layer2 = _stage(blocks[1], 64, 128, stride=2)
        self.layer3 = _stage(blocks[2], 128, 256, stride=2)
        self.layer4 = _stage(blocks[3], 256, 512, stride=2)
        self.linear = nn.Linear(512, num_classes)
        # Initialised as torch does by default, like the reference.

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


def _stage(blocks: int, in_width: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_width, width, stride),
        *(BasicBlock(width, width, 1) for _ in range(blocks - 1)),
    )
