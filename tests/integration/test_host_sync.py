"""An iteration never waits for the device: what a CUDA graph needs, checked without CUDA.

Under FakeTensorMode tensors have shapes but no values; whatever asks for a value (`.item()`,
`if tensor:`, boolean indexing) raises.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tables import BATCH, CLASSES, CPU, INSTANCES, METHODS, SGD, SIZE, STD, Classifier, Table, small
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mosaickd.data.loader import BalancedLoader, ResidentLoader
from mosaickd.data.source import ImageSet
from mosaickd.engine.player import Player
from mosaickd.engine.schedules import cosine
from mosaickd.engine.trainer import Trainer
from mosaickd.methods.base import Images
from mosaickd.methods.scratch import Scratch

UNFUSED = partial(SGD, fused=False)
#: Settings of those that play in phases or in another way for other sizes, and who plays when.
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    **{name: (name, small(name), []) for name in METHODS.keys() - {"crd", "deepinv", "sskd"}},
    "crd-few": ("crd", {"negatives": 2}, ["student", "student"]),
    "crd-many": ("crd", {"negatives": 90}, ["student", "student"]),
    "deepinv": (
        "deepinv",
        {"inversion_steps": 2, "student_steps": 1, "pool_size": BATCH + 1},
        [*2 * ["images", "images", "student"], "images"],
    ),
    "sskd": ("sskd", {"head_fraction": 0.5, "steps": 4}, [*2 * ["head"], *2 * ["student"]]),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_an_iteration_asks_for_no_value(case: str) -> None:
    name, settings, order = CASES[case]
    with FakeTensorMode():
        outputs = Table(name, optimizer=UNFUSED, **settings).play(len(order) or 2)
    assert not order or [turn.player for turn in outputs] == order, "every phase was there"


@pytest.mark.parametrize("kind", [ResidentLoader, BalancedLoader])
def test_drawing_a_batch_asks_for_no_value(kind: type[ResidentLoader]) -> None:
    images = torch.zeros(INSTANCES, 3, SIZE, SIZE, dtype=torch.uint8)
    data = ImageSet(images, torch.arange(INSTANCES) % CLASSES, list("abcd"))
    loader = kind(
        data, batch_size=16, mean=STD, std=STD, augment=True, seed=0, device=CPU
    )  # what has values here, to begin with: the set
    with FakeTensorMode(allow_non_fake_inputs=True):
        for _ in range(5):  # beyond the end of an epoch
            pixels, labels, indices = next(loader)
            assert pixels.shape == (16, 3, SIZE, SIZE)
            assert labels.shape == indices.shape == (16,)


def test_a_method_that_waits_is_found() -> None:
    class Waits(Scratch):
        def turns(self, batch):  # type: ignore[no-untyped-def]
            for turn in super().turns(batch):
                value: Tensor = turn.losses["cross_entropy"].value
                if value > 0:
                    yield turn

    with FakeTensorMode():
        method = Waits(student=Classifier())
        player = Player(method.student, UNFUSED, cosine, steps=9)
        images = Images(torch.randn(BATCH, 3, SIZE, SIZE), torch.zeros(BATCH, dtype=torch.int64))
        with pytest.raises(DataDependentOutputException):
            Trainer(method, {"student": player}).train_step({"labelled": [images]})


def test_a_loader_that_waits_is_found() -> None:
    class Waits(ResidentLoader):
        def sample_indices(self) -> Tensor:
            index = super().sample_indices()
            return index[: int(index.max())]

    data = ImageSet(torch.zeros(9, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(9).long(), ["a"])
    loader = Waits(data, batch_size=4, mean=STD, std=STD, augment=True, seed=0, device=CPU)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(DataDependentOutputException):
        next(loader)
