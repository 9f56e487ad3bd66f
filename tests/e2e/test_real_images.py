"""The commands on real CIFAR images, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Cli, read_json

SHARED = Path(os.environ.get("MOSAICKD_SHARED", Path(__file__).parents[3] / "shared"))
CIFAR = [
    f"dataset.root={SHARED / 'data' / 'cifar100'}",
    f"ood.root={SHARED / 'data' / 'cifar10'}",
]

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not (SHARED / "data").exists(), reason=f"no images in {SHARED / 'data'}"),
]


@pytest.mark.parametrize("experiment", ["cifar_mini", "cifar_mini_kd"])
def test_cifar_mini_cut_short(cli: Cli, experiment: str) -> None:
    cli(f"experiment={experiment}", *CIFAR, "tracker=none", "train.steps=2", "hydra.run.dir=run")
    result = read_json(cli.folder / "run" / "result.json")
    assert (result["status"], result["steps"]) == ("finished", 2)
    assert (result["dataset"], result["ood"]) == ("cifar_mini", "cifar10")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_headline_run_as_it_is(cli: Cli) -> None:
    """Full-size networks, images and batches on whatever device there is."""
    outcome = cli.start(*CIFAR, "tracker=none", "train.steps=2", "hydra.run.dir=run").wait(1700)
    assert outcome.code == 0, outcome.text
    result = read_json(cli.folder / "run" / "result.json")
    assert (result["status"], result["steps"]) == ("finished", 2)
    assert (result["teacher"], result["student"]) == ("wrn40_2", "wrn16_1")
    assert (result["dataset"], result["ood"]) == ("cifar100", "cifar10")
