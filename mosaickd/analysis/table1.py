"""Table 1 of the paper: its numbers, and which of its cells a run measures."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mosaickd.analysis.labels import images, short
from mosaickd.run_dir import Result

DATASET = "cifar100"
ORIGINAL = "cifar100 (original)"
DATA_FREE = "data-free"

#: (method, data), and a pair such as "wrn40_2-wrn16_1".
CellKey = tuple[tuple[str, str], str]


@dataclass(frozen=True)
class Table1:
    """Top-1 accuracies in percent; rows are (method, data), in the paper's order."""

    pairs: tuple[str, ...]
    rows: dict[tuple[str, str], dict[str, float]]
    printed_averages: dict[tuple[str, str], float]

    @property
    def blocks(self) -> list[str]:
        """Return what the students learn from, in the paper's order."""
        return list(dict.fromkeys(data for _, data in self.rows))

    def average(self, row: tuple[str, str]) -> float:
        """Compute the average of the row's cells, whatever the paper prints."""
        return sum(self.rows[row].values()) / len(self.pairs)

    def misprints(self) -> Iterator[tuple[tuple[str, str], str]]:
        """Yield rows whose printed average is off by more than rounding, and a note on each."""
        for row, printed in self.printed_averages.items():
            if abs(self.average(row) - printed) > 0.011:
                yield (
                    row,
                    f"the paper prints the average {printed:.2f} for {short(row[0])} on {row[1]}; "
                    f"its row gives {self.average(row):.2f}, which is what stands here",
                )


@cache
def table1() -> Table1:
    """Read the paper's numbers from table1.csv."""
    text = Path(__file__).with_name("table1.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows, printed = {}, {}
    for line in csv.DictReader(lines):
        row = (line.pop("method"), line.pop("data"))
        printed[row] = float(line.pop("printed_average"))
        rows[row] = {pair: float(value) for pair, value in line.items()}
    return Table1(tuple(next(iter(rows.values()))), rows, printed)


def cells_of(result: Result) -> list[CellKey]:
    """Return the cells that a run with its method's recipe measures: none, one, or a model's.

    A model that is trained from scratch is a student or a teacher of every column it stands in.
    """
    if result.dataset != DATASET or result.variant:
        return []
    table = table1()
    if result.method == "scratch":
        return [
            ((role, ORIGINAL), pair)
            for pair in table.pairs
            for role, model in zip(("teacher", "student"), pair.split("-"), strict=True)
            if model == result.student
        ]
    if result.method in ("teacher", "student"):  # names of rows, not of methods
        return []
    pair = f"{result.teacher}-{result.student}"
    data = images(result.ood, result.ood_subset) or DATA_FREE
    row = (result.method, ORIGINAL if data == DATASET else data)
    return [(row, pair)] if row in table.rows and pair in table.pairs else []
