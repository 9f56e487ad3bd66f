"""Several ranks training one run, as real processes that talk by gloo."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from conftest import Cli
from forked import start_server
from tables import BATCH, METHODS, Table, small, state_of
from torch import Tensor, nn

from mosaickd.data.loader import BalancedLoader, ResidentLoader, TestBatches
from mosaickd.data.source import ImageSet
from mosaickd.engine import distributed
from mosaickd.engine.evaluate import evaluate
from mosaickd.errors import UserError
from mosaickd.methods.base import Batch, Images, Latents

SHARED = sorted(name for name, method in METHODS.items() if method.supports_ddp)

Works = dict[str, Callable[[], Any]]


def on_ranks(works: Works, folder: Path, count: int) -> dict[str, list[Any]]:
    """Return what each of the works returns on each of `count` ranks of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_server(Cli(folder, folder).environment())
    mp.start_processes(_process, (count, port, works, folder), count, start_method="forkserver")
    results = [pickle.loads((folder / f"{rank}").read_bytes()) for rank in range(count)]
    return {name: [result[name] for result in results] for name in works}


def _process(rank: int, count: int, port: int, works: Works, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    distributed.init()
    results = {name: work() for name, work in works.items()}
    distributed.gather_states({})  # rank 0 keeps the store: it ends when all have come here
    (folder / f"{rank}").write_bytes(pickle.dumps(results))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    works: Works = {name: partial(train, name) for name in SHARED}
    return on_ranks(works, tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    works: Works = {kind.__name__: partial(load, kind) for kind in LOADERS}
    works |= {f"{images} images": partial(count_images, images) for images in COUNTS}
    works |= {"noise": noise, "collectives": collectives, "slices": uneven_slice}
    return on_ranks(works, tmp_path_factory.mktemp("three"), 3)


# ------------------------------------------------------------------------------------- training


def train(name: str, iterations: int = 6) -> dict[str, Any]:
    """Train on this rank's part of every batch.

    Return what the players have learned, and the gradients of the first turn before and after they
    were averaged.
    """
    at = Table(name, **small(name), steps=iterations)
    first = at.players[at.trainer.play_turns(rank_part(at.batch()))[0].player]
    own: dict[int, Tensor] = {}
    averaged: dict[int, Tensor] = {}

    def record_own(number: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        own.setdefault(number, parameter.grad.clone())

    def record_averaged(*_: Any) -> None:
        for number, parameter in enumerate(first.parameters):
            if parameter.grad is not None:
                averaged.setdefault(number, parameter.grad.clone())

    for number, parameter in enumerate(first.parameters):
        parameter.register_post_accumulate_grad_hook(partial(record_own, number))
    first.optimizer.register_step_pre_hook(record_averaged)
    for seed in range(iterations):
        at.trainer.train_step(rank_part(at.batch(seed)))
    state = {
        f"{player}.{key}": value
        for player, module in at.method.players.items()
        for key, value in state_of(module).items()
    }
    return {"state": state, "own": own, "averaged": averaged}


def rank_part(batch: Batch) -> Batch:
    part = distributed.rank_slice(BATCH)
    return {
        name: [Images(*(tensor[part] for tensor in draw)) for draw in draws]
        for name, draws in batch.items()
    }


@pytest.mark.parametrize("name", SHARED)
def test_all_ranks_have_learned_the_same_from_averaged_gradients(
    two: dict[str, list[Any]], name: str
) -> None:
    one, other = two[name]
    assert one["state"].keys() == other["state"].keys()
    for key, value in one["state"].items():  # running means of batch norms are among them
        assert torch.equal(value, other["state"][key]), key
    assert one["own"].keys() == one["averaged"].keys()
    for number, mean in one["averaged"].items():
        assert torch.equal(mean, (one["own"][number] + other["own"][number]) / 2)
        assert torch.equal(mean, other["averaged"][number])
    different = [n for n, gradient in one["own"].items() if not gradient.equal(other["own"][n])]
    assert different, "each has images or noise of its own"


# --------------------------------------------------------------------------------- images, noise

LOADERS = [ResidentLoader, BalancedLoader]


def load(kind: type[ResidentLoader]) -> list[Tensor]:
    images = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, 3, 8, 8)
    data = ImageSet(images.contiguous(), torch.arange(50) % 5, list("abcde"))
    loader = kind(
        data, batch_size=12, mean=(0, 0, 0), std=(1, 1, 1), augment=True, seed=3,
        device=torch.device("cpu"), share=distributed.rank_slice(12),
    )  # fmt: skip
    # 108 images: beyond the end of two permutations
    return [part for _ in range(9) for part in next(loader)]


@pytest.mark.parametrize("kind", LOADERS)
def test_together_they_see_the_images_that_one_alone_would(
    three: dict[str, list[Any]], kind: type[ResidentLoader]
) -> None:
    """The same crops and flips too; so no image twice in a pass of all of them."""
    alone = load(kind)
    for number, parts in enumerate(zip(*three[kind.__name__], strict=True)):
        assert torch.equal(torch.cat(parts), alone[number])
        assert all(len(part) == 4 for part in parts)


def noise() -> Tensor:
    world = distributed.world_size()
    return Latents(7, torch.device("cpu"), 5, distributed.rank(), world)(12 // world)


def test_noise_differs_by_rank_and_is_together_that_of_one(three: dict[str, list[Any]]) -> None:
    parts = three["noise"]
    assert torch.equal(torch.cat(parts), noise())
    assert not torch.equal(parts[0], parts[1])


COUNTS = [1, 2, 7, 40, 41]


class AlwaysFirst(nn.Module):
    """Takes all images for the first class; counts them."""

    images = 0

    def forward(self, batch: Tensor) -> Tensor:
        self.images += len(batch)
        return torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(batch), 1)


def count_images(images: int) -> Any:
    labels = torch.arange(images) % 3
    data = ImageSet(torch.zeros(images, 3, 8, 8, dtype=torch.uint8), labels, list("abc"))
    model = AlwaysFirst()
    batches = TestBatches(
        data, batch_size=4, mean=(0, 0, 0), std=(1, 1, 1), device=torch.device("cpu"),
        part=distributed.rank(), parts=distributed.world_size(),
    )  # fmt: skip
    return evaluate(model, batches), model.images


@pytest.mark.parametrize("images", COUNTS)
def test_every_test_image_counts_once(three: dict[str, list[Any]], images: int) -> None:
    """Also where they don't divide, or are fewer than ranks."""
    alone, _ = count_images(images)
    results = three[f"{images} images"]
    assert [accuracy for accuracy, _ in results] == [alone] * 3
    assert sum(count for _, count in results) == images


# ------------------------------------------------------------------------------------ agreements


def fail() -> None:
    raise UserError(f"rank {distributed.rank()} can't")


def collectives() -> dict[str, Any]:
    rank = distributed.rank()
    mine = torch.full((3,), float(rank))
    distributed.broadcast(mine)
    results: dict[str, Any] = {
        "rank0_only": distributed.rank0_only(lambda: rank),
        "rank0_first": distributed.rank0_first(lambda: rank),
        "max": distributed.all_reduce_max(15 if rank == 1 else 0),
        "sum": distributed.sum_over_ranks([rank, 1]),
        "gather": distributed.gather(torch.full((2, 3), rank)),
        "states": distributed.gather_states({"rank": rank}),
        "broadcast": mine,
    }
    for failing in (distributed.rank0_only, distributed.rank0_first):
        try:
            failing(fail)
        except UserError as error:
            results[f"failing {failing.__name__}"] = str(error)
    return results


def test_collectives(three: dict[str, list[Any]]) -> None:
    for rank, results in enumerate(three["collectives"]):
        assert results["rank0_only"] == 0
        assert results["rank0_first"] == rank
        assert results["max"] == 15
        assert results["sum"] == [0 + 1 + 2, 3]
        assert results["gather"].tolist() == [[0] * 3] * 2 + [[1] * 3] * 2 + [[2] * 3] * 2
        assert results["states"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert results["broadcast"].tolist() == [0.0] * 3
        assert results["failing rank0_only"] == results["failing rank0_first"] == "rank 0 can't"


def uneven_slice() -> str:
    with pytest.raises(UserError) as error:
        distributed.rank_slice(256)
    return str(error.value)


def test_a_batch_that_does_not_divide_is_refused(three: dict[str, list[Any]]) -> None:
    for message in three["slices"]:
        assert "train.batch_size=256 does not divide among 3 processes" in message
        assert "choose 255 or 258" in message


def test_one_process_needs_no_group() -> None:
    tensor = torch.ones(3)
    distributed.all_reduce_mean([tensor])
    assert distributed.world_size() == 1
    assert distributed.rank0_only(lambda: 4) == 4
    assert distributed.gather(tensor) is tensor
