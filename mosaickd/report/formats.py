"""A report as text for other programs: Markdown, CSV, LaTeX, JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mosaickd.report.labels import EVALUATIONS, percent, plain, short, signed
from mosaickd.report.table import Cell, Report
from mosaickd.report.terminal import mean_of, with_spread


def title(report: Report) -> str:
    return f"Table 1: top-1 accuracy on CIFAR-100 (%), ours at {EVALUATIONS[report.evaluation]}"


def other_title(report: Report) -> str:
    what = "Other settings" if report.rows else "Runs"
    return f"{what}: top-1 accuracy (%) at {EVALUATIONS[report.evaluation]}"


# --------------------------------------------------------------------------------------- Markdown


def markdown(report: Report) -> str:
    """GitHub's tables."""
    parts = []
    if report.rows:
        legend = "paper / **ours ± standard deviation** (seeds) / ours − paper"
        head = ["", *report.pairs, *(["average"] if report.with_average else [])]
        lines = []
        for data, rows in report.blocks():
            lines.append([f"**{_md(data)}**", *("" for _ in head[1:])])
            for row in rows:
                cells = [_md_cell(row.cells[pair]) for pair in report.pairs]
                average = [_md_cell(row.average)] if report.with_average else []
                lines.append([short(row.method), *cells, *average])
        parts += [f"**{title(report)}**", f"{legend}; a lone number is the paper's", _md_table(
            head, lines, right=len(head) - 1)]  # fmt: skip
    if report.plain:
        head = ["model", "how it learned", "tested on", "settings"]
        lines = [
            [*map(_md, (row.model, row.how, row.dataset, row.variant or "")),
             mean_of(row.cell, count=False), str(row.cell.n), _seeds(row.by_seed, percent)]
            for row in report.plain
        ]  # fmt: skip
        head += ["mean", "n", "by seed"]
        parts += [f"**{other_title(report)}**", _md_table(head, lines, right=3)]
    return "\n\n".join(parts) + "\n"


def _md_cell(cell: Cell) -> str:
    if cell.mean is None:
        return plain(cell.paper)
    spread = with_spread(cell).partition(" (")
    number = f"**{spread[0]}**{spread[1]}{spread[2]}"
    return f"{plain(cell.paper)} / {number} / {signed(cell.difference)}"


def _md_table(head: Sequence[str], lines: Iterable[Sequence[str]], right: int) -> str:
    rule = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def _md(text: str) -> str:
    """Text that a table shows as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\|`*[]~$" else c for c in text)


def _seeds(by_seed: dict[int, float | None], show: Callable[[float | None], str]) -> str:
    return ", ".join(f"{seed}: {show(value)}" for seed, value in sorted(by_seed.items()))


# ------------------------------------------------------------------------------------------- LaTeX

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "±": r"$\pm$", "−": r"$-$", "…": r"\dots{}",
    "[": "{[}", "]": "{]}",  # after \\ or a rule, a bracket would begin its argument
}  # fmt: skip


def latex(report: Report) -> str:
    """booktabs tabulars, to be put into a table environment."""
    parts = [r"% \usepackage{booktabs}; \usepackage{graphicx} to fit the page's width:"]
    parts[0] += "\n" + r"% \resizebox{\textwidth}{!}{...}"
    if report.rows:
        columns = [*report.pairs, *(["average"] if report.with_average else [])]
        groups = [rf"\multicolumn{{2}}{{c}}{{{_latex(column)}}}" for column in columns]
        rules = [rf"\cmidrule(lr){{{2 + 2 * i}-{3 + 2 * i}}}" for i in range(len(columns))]
        lines = [
            f"% {title(report)}",
            "% ours: mean, standard deviation over seeds (their number); below it ours - paper",
            rf"\begin{{tabular}}{{l{'rr' * len(columns)}}}",
            r"\toprule",
            " & ".join(["", *groups]) + r" \\",
            " ".join(rules),
            " & ".join(["", *["paper & ours"] * len(columns)]) + r" \\",
        ]
        for data, rows in report.blocks():
            lines.append(r"\midrule")
            lines.append(rf"\multicolumn{{{1 + 2 * len(columns)}}}{{l}}{{{_latex(data)}}} \\")
            for row in rows:
                cells = [row.cells[pair] for pair in report.pairs]
                cells += [row.average] if report.with_average else []
                numbers = [part for c in cells for part in (plain(c.paper), _latex_ours(c))]
                below = [part for c in cells for part in ("", _latex_small(signed(c.difference)))]
                lines.append(" & ".join([_latex(short(row.method)), *numbers]) + r" \\")
                lines.append(" & ".join(["", *below]) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    if report.plain:
        lines = [
            f"% {other_title(report)}",
            r"\begin{tabular}{lllp{5cm}rrl}",
            r"\toprule",
            r"model & how it learned & tested on & settings & mean & $n$ & by seed \\",
            r"\midrule",
        ]
        for other in report.plain:
            texts = [other.model, other.how, other.dataset, other.variant or ""]
            texts += [
                mean_of(other.cell, count=False),
                str(other.cell.n),
                _seeds(other.by_seed, plain),
            ]
            lines.append(" & ".join(map(_latex, texts)) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def _latex_ours(cell: Cell) -> str:
    number, _, spread = with_spread(cell).partition(" ")
    return f"{number}~{_latex_small(spread)}" if spread else number


def _latex_small(text: str) -> str:
    return rf"{{\scriptsize {_latex(text)}}}" if text else ""


def _latex(text: str) -> str:
    """Text that LaTeX prints as it is; what its fonts may lack becomes a question mark."""
    return "".join(LATEX.get(c, c if c.isascii() else "?") for c in text)


# --------------------------------------------------------------------------------- CSV and JSON


def cells(report: Report) -> list[dict[str, Any]]:
    """The shown cells of the paper's table, in its order; `ours` by seed."""
    found = []
    for row in report.rows:
        for pair in [*report.pairs, *([None] if report.with_average else [])]:
            teacher, student = pair.split("-") if pair else (None, None)
            place = {"method": row.method, "data": row.data, "teacher": teacher}
            cell = row.cells[pair] if pair else row.average
            found.append(place | {"student": student} | _numbers(cell))
    return found


def others(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "model": "student" if row.student else "teacher",
            "method": row.method,
            "variant": row.variant,
            "dataset": row.dataset,
            "ood": row.ood,
            "teacher": row.teacher,
            "student": row.student,
        }
        | _numbers(row.cell)
        for row in report.plain
    ]


def _numbers(cell: Cell) -> dict[str, Any]:
    def cut(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return {
        "paper": cut(cell.paper),
        "ours": [{"seed": seed, "accuracy": value} for seed, value in cell.values],
        "mean": cut(cell.mean),
        "sd": cut(cell.sd),
        "n": cell.n or None,  # of an average over columns, and where there is no run
        "difference": cut(cell.difference),
    }


def as_json(report: Report) -> str:
    content = {
        "evaluation": report.evaluation,
        "cells": [{"column": _column(cell), **cell} for cell in cells(report)],
        "other": [{k: v for k, v in row.items() if k not in ("paper", "difference")}
                  for row in others(report)],
        "unfinished": [vars(run) for run in report.unfinished],
        "problems": [{"file": path, "problem": text} for path, text in report.problems],
        "notes": report.notes,
    }  # fmt: skip
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _column(cell: dict[str, Any]) -> str:
    return f"{cell['teacher']}-{cell['student']}" if cell["teacher"] else "average"


CSV = ("table", "column", "method", "data", "variant", "dataset", "teacher", "student",
       "paper", "mean", "sd", "n", "difference", "ours")  # fmt: skip


def as_csv(report: Report) -> str:
    """One line a cell; `ours` holds seed=accuracy, by seed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV, lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    lines = [{"table": "paper", "column": _column(cell), **cell} for cell in cells(report)]
    lines += [{"table": "other", **row, "column": row["model"], "data": row["ood"]}
              for row in others(report)]  # fmt: skip
    for line in lines:
        seeds = " ".join(
            f"{'?' if one['seed'] is None else one['seed']}={one['accuracy']}"
            for one in line["ours"]
        )
        writer.writerow({k: _csv(v) for k, v in line.items()} | {"ours": seeds})
    return text.getvalue()


def _csv(value: Any) -> Any:
    """A text that begins like a formula is one to a spreadsheet, unless it is quoted."""
    return (
        f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
    )


FORMATS: dict[str, Callable[[Report], str]] = {
    "md": markdown,
    "csv": as_csv,
    "latex": latex,
    "json": as_json,
}
