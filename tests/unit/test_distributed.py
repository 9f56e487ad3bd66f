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
from forked import serve
from tables import BATCH, METHODS, Table
from torch import Tensor, nn

from mosaickd.data.loader import BalancedLoader, ResidentLoader, TestBatches
from mosaickd.data.source import ImageSet
from mosaickd.engine import distributed
from mosaickd.engine.evaluate import evaluate
from mosaickd.errors import UserError
from mosaickd.methods.base import Batch, Images, Latents

#: Those that several processes can play together, with settings for a small table.
SHAREABLE: dict[str, dict[str, Any]] = {
    **{name: {} for name, method in METHODS.items() if method.supports_ddp},
    "crd": {"negatives": 4},
    "sskd": {"head_fraction": 0.5, "steps": 4},
}


Works = dict[str, Callable[[], Any]]


def together(works: Works, folder: Path, count: int) -> dict[str, list[Any]]:
    """What each of the works comes to in each of `count` processes of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve(Cli(folder, folder).environment())
    mp.start_processes(_process, (count, port, works, folder), count, start_method="forkserver")
    found = [pickle.loads((folder / f"{rank}").read_bytes()) for rank in range(count)]
    return {name: [one[name] for one in found] for name in works}


def _process(rank: int, count: int, port: int, works: Works, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    distributed.init()
    found = {name: work() for name, work in works.items()}
    (folder / f"{rank}").write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    games: Works = {name: partial(play, name, 20, s) for name, s in SHAREABLE.items()}
    return together(games, tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    loaders: Works = {kind.__name__: partial(load, kind) for kind in LOADERS}
    counts: Works = {f"{images} images": partial(count_images, images) for images in COUNTS}
    works: Works = {"noise": noise, "agree": agree, "divide": divide, **loaders, **counts}
    return together(works, tmp_path_factory.mktemp("three"), 3)


# ----------------------------------------------------------------------------------- the game


def play(name: str, iterations: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Play on this process's part of every batch; -> all that players have learned, and the
    gradients of the first turn, before and after they were averaged."""
    table = Table(name, **settings)
    first = table.players[table.trainer.play_turns(share_of(table.batch()))[0].player]
    own: dict[int, Tensor] = {}
    averaged: dict[int, Tensor] = {}

    def keep(number: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        own.setdefault(number, parameter.grad.clone())

    def keep_all(*_: Any) -> None:
        for number, parameter in enumerate(first.parameters):
            if parameter.grad is not None:
                averaged.setdefault(number, parameter.grad.clone())

    for number, parameter in enumerate(first.parameters):
        parameter.register_post_accumulate_grad_hook(partial(keep, number))
    first.optimizer.register_step_pre_hook(keep_all)
    for seed in range(iterations):
        table.trainer.train_step(share_of(table.batch(seed)))
    state = {
        f"{player}.{key}": value
        for player, module in table.method.players.items()
        for key, value in module.state_dict().items()
    }
    return {"state": state, "own": own, "averaged": averaged}


def share_of(batch: Batch) -> Batch:
    share = distributed.rank_slice(BATCH)
    return {
        name: [Images(*(part[share] for part in draw)) for draw in draws]
        for name, draws in batch.items()
    }


@pytest.mark.parametrize("name", sorted(SHAREABLE))
def test_all_processes_hold_the_same_after_20_iterations(
    two: dict[str, list[Any]], name: str
) -> None:
    one, other = two[name]
    assert one["state"].keys() == other["state"].keys()
    for key, value in one["state"].items():
        assert torch.equal(value, other["state"][key]), key
    assert one["own"].keys() == one["averaged"].keys()
    for number, mean in one["averaged"].items():
        mine, theirs = one["own"][number], other["own"][number]
        assert torch.equal(mean, (mine + theirs) / 2)
        assert torch.equal(mean, other["averaged"][number])
    differ = [n for n, mine in one["own"].items() if not torch.equal(mine, other["own"][n])]
    assert differ, "each has images or noise of its own"


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
    return Latents(7, torch.device("cpu"), 5, distributed.rank(), distributed.world_size())(
        12 // distributed.world_size()
    )


def test_noise_differs_by_process_and_is_together_that_of_one(three: dict[str, list[Any]]) -> None:
    alone = noise()
    parts = three["noise"]
    assert torch.equal(torch.cat(parts), alone)
    assert not torch.equal(parts[0], parts[1])


COUNTS = [1, 2, 7, 40, 41]


def count_images(images: int) -> Any:
    """An image's label is right, by this classifier, for every third."""
    labels = torch.arange(images) % 3
    data = ImageSet(torch.zeros(images, 3, 8, 8, dtype=torch.uint8), labels, list("abc"))
    seen: list[int] = []

    class First(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            seen.append(len(batch))
            return torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(batch), 1)

    batches = TestBatches(
        data, batch_size=4, mean=(0, 0, 0), std=(1, 1, 1), device=torch.device("cpu"),
        part=distributed.rank(), parts=distributed.world_size(),
    )  # fmt: skip
    return evaluate(First(), batches), sum(seen)


@pytest.mark.parametrize("images", COUNTS)
def test_every_test_image_counts_once(three: dict[str, list[Any]], images: int) -> None:
    """Also where they don't divide, or are fewer than processes."""
    alone, _ = count_images(images)
    results = three[f"{images} images"]
    assert [accuracy for accuracy, _ in results] == [alone] * 3
    assert sum(seen for _, seen in results) == images


def test_what_batch_norms_remember_is_alike(two: dict[str, list[Any]]) -> None:
    one, other = two["kd"]
    means = [key for key in one["state"] if "running_mean" in key]
    assert means
    for key in means:
        assert torch.equal(one["state"][key], other["state"][key])
        assert one["state"][key].abs().sum() > 0


# ------------------------------------------------------------------------------------ agreements


def agree() -> dict[str, Any]:
    rank = distributed.rank()
    found: dict[str, Any] = {
        "by": distributed.rank0_only(lambda: rank),
        "highest": distributed.all_reduce_max(15 if rank == 1 else 0),
        "total": distributed.sum_over_ranks([rank, 1]),
        "gather": distributed.gather(torch.full((2, 3), rank)),
        "states": distributed.gather_states({"rank": rank}),
        "order": distributed.rank0_first(lambda: rank),
    }
    mine = torch.full((3,), float(rank))
    distributed.broadcast(mine)
    found["same"] = mine
    for failing in (distributed.rank0_only, distributed.rank0_first):
        try:
            failing(fail)
        except UserError as error:
            found[failing.__name__] = str(error)
    return found


def fail() -> None:
    raise UserError(f"process {distributed.rank()} can't")


def test_what_they_agree_on(three: dict[str, list[Any]]) -> None:
    for rank, found in enumerate(three["agree"]):
        assert found["by"] == 0
        assert found["highest"] == 15
        assert found["total"] == [0 + 1 + 2, 3]
        assert found["gather"].tolist() == [[0] * 3] * 2 + [[1] * 3] * 2 + [[2] * 3] * 2
        assert found["states"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert found["order"] == rank
        assert found["same"].tolist() == [0.0] * 3
        assert found["rank0_only"] == "process 0 can't"
        assert found["rank0_first"] == "process 0 can't"


def test_a_batch_that_does_not_divide_is_refused(three: dict[str, list[Any]]) -> None:
    for message in three["divide"]:
        assert "train.batch_size=256 does not divide among 3 processes" in message
        assert "choose 255 or 258" in message


def divide() -> str:
    with pytest.raises(UserError) as refused:
        distributed.rank_slice(256)
    return str(refused.value)


def test_one_process_needs_no_group() -> None:
    tensor = torch.ones(3)
    distributed.all_reduce_mean([tensor])
    assert distributed.world_size() == 1
    assert distributed.rank0_only(lambda: 4) == 4
    assert distributed.gather(tensor) is tensor
