"""Table 1 of the paper: its numbers, and which runs measure which of its cells."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mosaickd.report.labels import images, short
from mosaickd.report.results import Run

DATASET = "cifar100"
ORIGINAL = "cifar100 (original)"
DATA_FREE = "data-free"

#: (method, data) and a column, such as "wrn40_2-wrn16_1".
Place = tuple[tuple[str, str], str]


@dataclass(frozen=True)
class Table1:
    """Top-1 accuracies in percent; rows in the paper's order."""

    pairs: tuple[str, ...]
    rows: dict[tuple[str, str], dict[str, float]]
    printed_averages: dict[tuple[str, str], float]

    @property
    def blocks(self) -> list[str]:
        """What the students learn from, in the paper's order."""
        return list(dict.fromkeys(data for _, data in self.rows))

    def average(self, row: tuple[str, str]) -> float:
        """Of the row's cells, whatever the paper prints."""
        return sum(self.rows[row].values()) / len(self.pairs)

    def misprints(self) -> Iterator[tuple[tuple[str, str], str]]:
        """Rows whose printed average is another number than theirs, not just cut to two digits."""
        for row, printed in self.printed_averages.items():
            if abs(self.average(row) - printed) > 0.011:
                yield (
                    row,
                    f"the paper prints the average {printed:.2f} for {short(row[0])} on {row[1]}; "
                    f"its row gives {self.average(row):.2f}, which is what stands here",
                )


@cache
def table1() -> Table1:
    text = Path(__file__).with_name("table1.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows, printed = {}, {}
    for line in csv.DictReader(lines):
        row = (line.pop("method"), line.pop("data"))
        printed[row] = float(line.pop("printed_average"))
        rows[row] = {pair: float(number) for pair, number in line.items()}
    return Table1(tuple(next(iter(rows.values()))), rows, printed)


def places(run: Run) -> list[Place]:
    """The cells that a run with its method's recipe measures: none, one, or a model's columns.

    A model that is trained from scratch is a student or a teacher of every column it stands in.
    """
    if run.dataset != DATASET or run.variant:
        return []
    table = table1()
    if run.method == "scratch":
        return [
            ((role, ORIGINAL), pair)
            for pair in table.pairs
            for role, model in zip(("teacher", "student"), pair.split("-"), strict=True)
            if model == run.student
        ]
    if run.method in ("teacher", "student"):  # names of rows, not of methods
        return []
    pair = f"{run.teacher}-{run.student}"
    data = images(run.ood, run.ood_subset) or DATA_FREE
    row = (run.method, ORIGINAL if data == DATASET else data)
    return [(row, pair)] if row in table.rows and pair in table.pairs else []
