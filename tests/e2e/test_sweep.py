"""A sweep: a table of its cells; the same command again finishes what is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Cli, Tiny, read_json

CELLS = ["mosaic/letters-strokes", "kd/letters-strokes", "kd/letters-letters"]


@pytest.fixture
def sweep(tiny: Tiny) -> list[str]:
    # KD on the letters reads both from one place; a reader's settings must suit all cells.
    sources = [*tiny.source("dataset"), *tiny.source("ood")]
    small = ["train.steps=2", "train.batch_size=16", f"teacher.checkpoint={tiny.teacher}"]
    return ["-m", "sweep=quickstart", *small, *sources]


def finished_at(folder: Path) -> list[int]:
    return [(folder / "student.safetensors").stat().st_mtime_ns]


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
    for words in ("MosaicKD", "plain distillation on strokes", "plain distillation on letters"):
        assert words in shown

    # ---- Again: nothing to do.
    before = {cell: finished_at(folder) for cell, folder in cells.items()}
    again = cli(*sweep)
    assert again.out.count("is finished: nothing to do") == 3
    assert again.out.endswith(table)
    assert {cell: finished_at(folder) for cell, folder in cells.items()} == before

    # ---- One cell fails, in the middle: the others are run, and the sweep says so.
    broken = cells[CELLS[1]]
    (broken / "result.json").unlink()
    os.truncate(broken / "checkpoints" / "last.pt", 1000)
    (cells[CELLS[2]] / "result.json").unlink()
    failed = cli(*sweep, code=1)
    assert str(broken / "checkpoints" / "last.pt") in failed.err
    assert read_json(broken / "result.json")["status"] == "failed"
    assert read_json(cells[CELLS[2]] / "result.json")["status"] == "finished"
    assert "┏" in failed.out[failed.out.rindex("nothing to do") :], "the table is shown all the same"
    assert "plain distillation on strokes" in failed.out[failed.out.rindex("┏") :]
