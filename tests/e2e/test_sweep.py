"""A sweep: a table of its cells; the same command again finishes what is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Cli, Tiny, read_json

CELLS = ["mosaic/letters-strokes", "kd/letters-strokes", "kd/letters-letters"]


@pytest.fixture
def sweep(tiny: Tiny) -> list[str]:
    # ++: Hydra first composes what all cells share, and that has other readers than the letters'.
    sources = [f"++{override}" for role in ("dataset", "ood") for override in tiny.source(role)]
    small = ["train.steps=2", "train.batch_size=16", f"teacher.checkpoint={tiny.teacher}"]
    return ["-m", "sweep=quickstart", *small, *sources]


def finished_at(folder: Path) -> list[int]:
    return [(folder / "student.safetensors").stat().st_mtime_ns]


@pytest.mark.slow
def test_sweep(cli: Cli, sweep: list[str]) -> None:
    outcome = cli(*sweep)
    home = cli.folder / "outputs" / "quickstart"
    cells = {cell: home / cell / "wrn16_2-wrn16_1" / "seed0" for cell in CELLS}
    results = {cell: read_json(folder / "result.json") for cell, folder in cells.items()}
    assert {result["status"] for result in results.values()} == {"finished"}
    table = outcome.out[outcome.out.rindex("┏") :]
    rows = [line for line in table.splitlines() if line.startswith("│")]
    assert len(rows) == 4, "a teacher and three students, side by side"
    assert "teacher wrn16_2" in rows[0]
    shown = "\n".join(rows)
    for result in results.values():
        assert f"{result['accuracy']['last']:.2f} %" in shown
    for words in ("MosaicKD", "KD on strokes", "KD on letters"):
        assert words in shown

    # ---- Again: nothing to do.
    before = {cell: finished_at(folder) for cell, folder in cells.items()}
    again = cli(*sweep)
    assert again.out.count("is finished: nothing to do") == 3
    assert again.out.endswith(table)
    assert {cell: finished_at(folder) for cell, folder in cells.items()} == before

    # ---- Two cells fail, the last is run all the same; the sweep tells of each and ends with 1.
    for cell in CELLS:
        (cells[cell] / "result.json").unlink()
    broken = [cells[cell] / "checkpoints" / "last.pt" for cell in CELLS[:2]]
    for path in broken:
        os.truncate(path, 1000)
    failed = cli(*sweep, code=1)
    statuses = [read_json(cells[cell] / "result.json")["status"] for cell in CELLS]
    assert statuses == ["failed", "failed", "finished"]
    for path in broken:
        assert f"{path} can't be read" in failed.text
    assert "top-1 accuracy at the last step" in failed.out, "the table, with what there is"


@pytest.mark.slow
def test_a_table_is_narrowed_on_the_command_line(cli: Cli) -> None:
    """Each cell that fails is told of, and the next is tried."""
    some = ["method=kd,mosaic", "pair=wrn40_2-wrn16_1", "seed=0,1"]
    nowhere = ["dataset.root=nowhere", "dataset.reader.download=false"]
    outcome = cli("-m", "sweep=table1_cifar10", *some, *nowhere, code=1)
    home = cli.folder / "outputs" / "table1_cifar10"
    for method in ("kd", "mosaic"):
        for seed in (0, 1):
            folder = home / method / "cifar100-cifar10" / "wrn40_2-wrn16_1" / f"seed{seed}"
            assert f"{folder}: no cifar100 images" in outcome.out
            result = read_json(folder / "result.json")
            assert (result["status"], result["variant"]) == ("failed", None)
    assert len(list(home.rglob("result.json"))) == 4
