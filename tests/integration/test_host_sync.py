"""An iteration never waits for the device: what a CUDA graph needs, checked without CUDA.

Under FakeTensorMode tensors have shapes but no values; whatever asks for a value (`.item()`,
`if tensor:`, boolean indexing) raises.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mosaickd.data.loader import Normalize
from mosaickd.engine.loop import Game
from mosaickd.engine.player import Player
from mosaickd.engine.schedules import cosine
from mosaickd.methods.base import Images, Method
from mosaickd.methods.kd import KD
from mosaickd.methods.mosaic import MosaicKD
from mosaickd.methods.scratch import Scratch
from mosaickd.models.discriminator import PatchDiscriminator
from mosaickd.models.generator import Generator
from mosaickd.models.wresnet import WideResNet

BATCH = 4


def images() -> Images:
    return Images(torch.randn(BATCH, 3, 16, 16), torch.zeros(BATCH, dtype=torch.int64))


def classifier() -> WideResNet:
    return WideResNet(depth=10, widen_factor=1, num_classes=10)


def build(name: str) -> Method:
    student, teacher = classifier(), classifier().requires_grad_(False).eval()
    if name == "scratch":
        return Scratch(student=student)
    if name == "kd":
        return KD(student=student, teacher=teacher)
    return MosaicKD(
        student=student,
        teacher=teacher,
        generator=Generator(image_size=16, latent_dim=8, width=8),
        discriminator=PatchDiscriminator(width=8),
        normalize=Normalize([0.5] * 3, [0.5] * 3),
        latents=lambda count: torch.randn(count, 8),
        batch_size=BATCH,
    )


def play(method: Method) -> None:
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=False)
    players = {n: Player(m, sgd, cosine, steps=9) for n, m in method.players.items()}
    game = Game(method, players)
    game.train()
    batch = {n: [images() for _ in range(s.draws)] for n, s in method.streams.items()}
    game.iterate(batch)


@pytest.mark.parametrize("name", ["scratch", "kd", "mosaic"])
def test_an_iteration_asks_for_no_value(name: str) -> None:
    with FakeTensorMode():
        play(build(name))


def test_a_method_that_waits_is_found() -> None:
    class Waits(Scratch):
        def turns(self, batch):  # type: ignore[no-untyped-def]
            for turn in super().turns(batch):
                value: Tensor = turn.losses["cross_entropy"].value
                if value > 0:
                    yield turn

    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        play(Waits(student=classifier()))
