"""How many cells a sweep has, before it begins; and how long it will take, if that can be told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
from composing import cells, composed, composing
from mosaickd.cells import Sweep, counted, without_value
from omegaconf import DictConfig, open_dict, read_write


@pytest.fixture(autouse=True, scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


def multirun(sweep: str, *arguments: str) -> DictConfig:
    """Hydra's part of the config of `python run.py -m sweep=NAME ARGUMENTS`."""
    hydra = composed(f"sweep={sweep}").hydra
    with open_dict(hydra), read_write(hydra):
        hydra.overrides.task = [f"sweep={sweep}", *arguments]
    return cast(DictConfig, hydra)


@pytest.mark.parametrize(
    ("sweep", "arguments", "varying"),
    [
        ("figure6", [], {"ablation"}),
        ("table1_svhn", [], {"method", "pair"}),
        ("table1_svhn", ["method=kd,mosaic", "pair=wrn40_2-wrn16_1", "seed=0,1,2"],
         {"method", "seed"}),
        ("figure6", ["seed=range(4)", "train.steps=5"], {"ablation", "seed"}),
        ("figure6", ["method=glob(*,exclude=d*)", "ablation=full"], {"method"}),
    ],
)  # fmt: skip
def test_as_many_as_hydra_launches(sweep: str, arguments: list[str], varying: set[str]) -> None:
    count, keys = counted(multirun(sweep, *arguments))
    if "glob" not in "".join(arguments):
        assert count == len(cells(sweep, *arguments))
    assert count is not None
    assert count > 1
    assert set(keys) == varying


def test_what_leaves_a_sweep_without_cells_is_named() -> None:
    for empty in ("method=glob(q*)", "seed=range(3,1)"):
        hydra = multirun("figure6", empty, "train.steps=5")
        assert counted(hydra)[0] == 0
        assert without_value(hydra) == [empty]


def test_what_only_a_sweeper_knows_is_left_to_it() -> None:
    other = multirun("figure6")
    with open_dict(other), read_write(other):
        other.sweeper._target_ = "hydra_plugins.some.Sweeper"
    assert counted(other) == (None, [])
    assert counted(multirun("figure6", "seed=interval(0,1)")) == (None, []), (
        "Hydra says what is wrong with it"
    )


def test_time_left_is_told_when_a_cell_has_taken_some() -> None:
    sweep = Sweep("mine", 4)
    assert sweep.left() is None
    sweep.counts["skipped"] += 1
    assert sweep.left() is None, "to skip a cell says nothing of how long one takes"
    sweep.counts["finished"] += 1
    sweep.ran.append(100.0)
    assert sweep.left() == pytest.approx(200.0, abs=1)
    unknown = Sweep("mine", None)
    unknown.ran.append(100.0)
    assert unknown.left() is None
