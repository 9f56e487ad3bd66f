"""VGG with batch norm (Simonyan & Zisserman, 2015) in the form used on CIFAR."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mosaickd.errors import UserError


class VGG(nn.Module):
    """Compute logits [B, num_classes] of images [B, 3, H, W] by a VGG with one linear layer.

    After Simonyan & Zisserman, 2015, with the parameter names of MosaicKD's reference code. stages:
    the widths of the convolutions in each of the five stages
    ([[64], [128], [256, 256], [512, 512], [512, 512]] is VGG-11). Features: stages `block0` to
    `block4`, before their activation. Embedding: the input of `classifier`. Raise UserError for
    other `stages`.
    """

    def __init__(self, *, stages: list[list[int]], num_classes: int) -> None:
        super().__init__()
        if len(stages) != 5 or not all(stages):
            raise UserError(
                f"stages of a VGG must be five lists of widths, none of them empty, got {stages}"
            )
        self.block0 = _stage(3, stages[0])
        self.block1 = _stage(stages[0][-1], stages[1])
        self.block2 = _stage(stages[1][-1], stages[2])
        self.block3 = _stage(stages[2][-1], stages[3])
        self.block4 = _stage(stages[3][-1], stages[4])
        self.classifier = nn.Linear(stages[4][-1], num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = _pool_relu(self.block0(images))
        x = _pool_relu(self.block1(x))
        x = _pool_relu(self.block2(x))
        x = self.block3(x)
        # The reference pools a fourth time at 64x64 and only there, so that the last stage sees
        # 4x4 at 32 and at 64 alike. From 64 up we always do: the sizes it knows are unchanged,
        # and larger images don't quadruple the cost of the last stage.
        x = _pool_relu(x) if images.shape[2] >= 64 else F.relu(x)
        return self.classifier(F.relu(self.block4(x)).mean((2, 3)))


def _pool_relu(x: Tensor) -> Tensor:
    """Apply 2x2 max pooling and ReLU. [B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)].

    The two commute, in gradients too, and in this order ReLU has a quarter of the work. Neither
    changes `x`, which a hook may have captured. Rounding up keeps the edge of odd maps (images of
    4 or 12 pixels); for even maps it makes no difference.
    """
    return F.relu(F.max_pool2d(x, 2, ceil_mode=True), inplace=True)


def _stage(in_width: int, widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [
            # A bias before batch norm does nothing, but the published checkpoints hold one.
            nn.Conv2d(in_width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        in_width = width
    return nn.Sequential(*layers[:-1])  # a stage ends before its activation
