"""How many jobs a sweep has before it begins, how long it will take, and a job's device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from composing import cells, composed, composing
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mosaickd.cli.sweep import Sweep, empty_overrides, share_machine, swept_values
from mosaickd.engine.progress import console
from mosaickd.run_dir import Result


@pytest.fixture(autouse=True, scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


def multirun(sweep: str, *arguments: str) -> DictConfig:
    """Return Hydra's part of the config of `python run.py -m sweep=NAME ARGUMENTS`."""
    hydra = composed(f"sweep={sweep}").hydra
    with open_dict(hydra), read_write(hydra):
        hydra.overrides.task = [f"sweep={sweep}", *arguments]
    return cast(DictConfig, hydra)


@pytest.mark.parametrize(
    ("sweep", "arguments", "varying"),
    [
        ("table1_svhn", [], {"method", "pair"}),
        ("table1_svhn", ["method=kd,mosaic", "pair=wrn40_2-wrn16_1", "seed=0,1,2"],
         {"method", "seed"}),
        ("figure6", ["seed=range(4)", "train.steps=5"], {"ablation", "seed"}),
    ],
)  # fmt: skip
def test_jobs_are_counted_as_hydra_launches_them(
    sweep: str, arguments: list[str], varying: set[str]
) -> None:
    values = swept_values(multirun(sweep, *arguments))
    assert values is not None
    assert set(values) == varying
    count = 1
    for number in values.values():
        count *= number
    assert count == len(cells(sweep, *arguments)) > 1


@pytest.mark.parametrize("empty", ["method=glob(q*)", "seed=range(3,1)"])
def test_what_leaves_a_sweep_without_jobs_is_named(empty: str) -> None:
    hydra = multirun("figure6", empty, "train.steps=5")
    assert 0 in (swept_values(hydra) or {}).values()
    assert empty_overrides(hydra) == f"{empty} stands for no value"


def test_what_only_a_sweeper_knows_is_left_to_it() -> None:
    other = multirun("figure6")
    with open_dict(other), read_write(other):
        other.sweeper._target_ = "hydra_plugins.some.Sweeper"
    assert swept_values(other) is None
    assert swept_values(multirun("figure6", "seed=interval(0,1)")) is None, (
        "Hydra says what's wrong"
    )


def test_the_time_left_follows_from_jobs_that_were_run() -> None:
    sweep = Sweep()
    sweep.jobs = 4
    result = Result("finished", "kd", "letters", "wrn16_1", 0, seconds=0.0)
    sweep.end_job("skipped", result)
    assert sweep.seconds_left() is None, "to skip a job says nothing of how long one takes"
    sweep.job_began -= 100
    result.seconds = 60.0
    sweep.end_job("finished", result)
    assert sweep.seconds_left() == pytest.approx(120, abs=1), "without the teacher's training"


@pytest.mark.parametrize(
    ("asked", "devices", "taken"),
    [
        ("auto", 3, ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]),
        ("cuda", 2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        ("cuda:1", 4, ["cuda:1"] * 4),
        ("auto", 1, ["auto"] * 4),
    ],
)
def test_jobs_side_by_side_take_devices_in_turn(
    monkeypatch: pytest.MonkeyPatch, asked: str, devices: int, taken: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(console, "is_interactive", True)

    def device(number: int, launcher: dict[str, Any]) -> str:
        hydra = {"mode": RunMode.MULTIRUN, "launcher": launcher, "job": {"num": number}}
        monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra))
        cfg = OmegaConf.create({"device": asked})
        share_machine(cfg)
        return str(cfg.device)

    assert device(2, {}) == asked, "one job at a time has the machine to itself"
    assert console.is_interactive
    assert [device(number, {"n_jobs": 2}) for number in range(4)] == taken
    assert not console.is_interactive, "bars of several jobs would write over each other"
