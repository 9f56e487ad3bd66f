"""A report as text for other programs: Markdown, CSV, LaTeX, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd

from mosaickd.analysis.labels import EVALUATIONS, number, percent, short, signed
from mosaickd.analysis.table import Report, records
from mosaickd.analysis.terminal import mean_of

#: What a row of runs outside of the paper's table says in Markdown and LaTeX.
HEAD = ["model", "how it learned", "tested on", "settings", "mean", "n", "by seed"]


def titles(report: Report) -> tuple[str, str]:
    """Return the titles of the paper's table and of that of all other runs."""
    at = EVALUATIONS[report.evaluation]
    other = "Other settings" if len(report.cells) else "Runs"
    return (
        f"Table 1: top-1 accuracy on CIFAR-100 (%), ours at {at}",
        f"{other}: top-1 accuracy (%) at {at}",
    )


def other_table(report: Report) -> list[list[str]]:
    """Return the rows of all other runs, under HEAD."""
    return [
        [row["model"], row["how"], row["dataset"], row["variant"] or "",
         mean_of(row, count=False), str(row["n"]),
         ", ".join(f"{one['seed']}: {percent(one['accuracy'])}" for one in row["ours"])]
        for row in records(report.other)
    ]  # fmt: skip


def with_spread(cell: dict[str, Any]) -> str:
    """Return 60.50, or 60.50 ± 0.40 (3): mean, sample standard deviation, number of seeds."""
    spread = f" ± {cell['sd']:.2f} ({cell['n']})" if cell["sd"] is not None else ""
    return number(cell["mean"]) + spread


# --------------------------------------------------------------------------------------- Markdown


def to_markdown(report: Report) -> str:
    """Return GitHub's tables."""
    parts = []
    if len(report.cells):
        rows = []
        for data, methods in report.blocks().items():
            rows.append([f"**{_escape(data)}**", *("" for _ in report.columns)])
            for method, cells in methods.items():
                rows.append([_escape(short(method)), *map(_markdown_cell, cells)])
        parts += [
            f"**{titles(report)[0]}**",
            "paper / **ours ± standard deviation** (seeds) / ours − paper; a lone number is the "
            "paper's",
            _markdown_table(["", *report.columns], rows, right=len(report.columns)),
        ]
    if len(report.other):
        rows = [[_escape(text) for text in row] for row in other_table(report)]
        parts += [f"**{titles(report)[1]}**", _markdown_table(HEAD, rows, right=3)]
    return "\n\n".join(parts) + "\n"


def _markdown_cell(cell: dict[str, Any]) -> str:
    if cell["mean"] is None:
        return number(cell["paper"])
    mean, seeds, count = with_spread(cell).partition(" (")
    return f"{number(cell['paper'])} / **{mean}**{seeds}{count} / {signed(cell['difference'])}"


def _markdown_table(head: list[str], rows: list[list[str]], right: int) -> str:
    rule = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *rows])


def _escape(text: str) -> str:
    """Return text that a Markdown table shows as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\|`*[]~$_" else c for c in " ".join(text.split()))


# ------------------------------------------------------------------------------------------- LaTeX


def to_latex(report: Report) -> str:
    """Return booktabs tabulars, to be put into a table environment."""
    parts = [
        "% \\usepackage{booktabs,multirow}; \\usepackage{graphicx} to fit the page's width:\n"
        "% \\resizebox{\\textwidth}{!}{...}"
    ]
    if len(report.cells):
        table = {}
        for data, methods in report.blocks().items():
            for method, cells in methods.items():
                table[data, short(method)] = {
                    (cell["column"], name): text
                    for cell in cells
                    for name, text in (("paper", number(cell["paper"])),
                                       ("ours", with_spread(cell)),
                                       ("diff.", signed(cell["difference"])))
                }  # fmt: skip
        frame = pd.DataFrame.from_dict(table, orient="index")
        columns: Any = list(frame)
        frame.columns = pd.MultiIndex.from_tuples(columns)
        legend = "% ours: mean, standard deviation over seeds (their number); diff.: ours - paper\n"
        text = _latex(frame, multicolumn_format="c", column_format="ll" + "r" * frame.shape[1])
        parts.append(f"% {titles(report)[0]}\n{legend}{text}")
    if len(report.other):
        frame = pd.DataFrame(other_table(report), columns=HEAD)
        text = _latex(frame, index=False, column_format="lllp{5cm}rrl")
        parts.append(f"% {titles(report)[1]}\n{text}")
    return "\n\n".join(parts) + "\n"


def _latex(frame: pd.DataFrame, **options: Any) -> str:
    text = frame.to_latex(escape=True, **options).strip()
    return text.replace("±", r"$\pm$").replace("−", "$-$")


# --------------------------------------------------------------------------------- CSV and JSON


def to_csv(report: Report) -> str:
    """Return one line a cell; `ours` holds seed=accuracy, by seed."""
    cells = report.cells.assign(table="paper")
    other = report.other.assign(table="other", data=report.other["ood"])
    other["column"] = other["model"].str.partition(" ")[0] if len(other) else ""
    both = pd.concat([cells, other])
    both["ours"] = [
        " ".join(f"{'?' if one['seed'] is None else one['seed']}={one['accuracy']}" for one in ours)
        if isinstance(ours, list) else ""
        for ours in both["ours"]
    ]  # fmt: skip
    columns = ["table", "column", "method", "data", "variant", "dataset", "teacher", "student",
               "paper", "mean", "sd", "n", "difference", "ours"]  # fmt: skip
    return both[columns].round(4).to_csv(index=False)


def to_json(report: Report) -> str:
    """Return all that a report says as one object."""
    cells = report.cells.round(4)
    other = report.other.round(4).drop(columns="how")
    other["model"] = other["model"].str.partition(" ")[0] if len(other) else ""
    content = {
        "evaluation": report.evaluation,
        "cells": [cell | {"ours": cell["ours"] or []} for cell in records(cells)],
        "other": records(other),
        "unfinished": report.unfinished,
        "problems": report.problems,
        "notes": report.notes,
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


FORMATTERS: dict[str, Callable[[Report], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
    "json": to_json,
}
