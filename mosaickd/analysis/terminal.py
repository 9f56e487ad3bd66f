"""Tables in a terminal: of a run, of a sweep, and of a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from mosaickd.analysis.labels import EVALUATIONS, describe, number, percent, short, signed
from mosaickd.analysis.runs import load_runs, read_run
from mosaickd.run_dir import RunDir

if TYPE_CHECKING:  # pandas takes a second, and every command imports this module
    from mosaickd.analysis.table import Report

#: Columns that a table has room for; with more seeds they stand in one column.
SEED_COLUMNS = 6


class PipeConsole(Console):
    """A console that leaves it to the program what becomes of it when its reader has gone."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """Return where tables go. A pipe has no width: nothing is folded that a script may read."""
    own = PipeConsole(highlight=False)
    return own if own.is_terminal else PipeConsole(highlight=False, width=200)


def show_run(folder: Path) -> None:
    """Print what a run came to and where its products lie."""
    run = read_run(RunDir(folder))
    result = run.result
    if result is None:
        return
    how = describe(result)
    table = Table(title=Text(f"{how}, seed {result.seed}: {run.state}"))
    table.add_column("model")
    table.add_column("how it learned")
    table.add_column(Text(f"accuracy on {result.dataset}"), justify="right")
    if result.teacher:
        learned = f"from labelled {result.dataset}"
        _add(table, f"teacher {result.teacher}", learned, percent(result.teacher_accuracy))
    _add(table, f"student {result.student}", how, percent(result.last))
    step = result.accuracy.get("best_step")
    _add(table, "", f"(its best evaluation, at step {step})", percent(result.best))
    out = console()
    out.print(table)
    where = f"{result.steps} steps in {result.seconds:.0f} s on {result.device}"
    if result.variant:
        where += f"; not the method's own recipe: {result.variant}"
    out.print(Text(where), soft_wrap=True)
    for path, words in ((run.run_dir.student, "weights"), (run.run_dir.samples, "pictures")):
        if path.exists():
            out.print(Text(f"{words}: {path}"), soft_wrap=True)


def show_sweep(root: Path) -> None:
    """Print a sweep's table and, where its runs measure cells of the paper's, that table too."""
    runs = load_runs([root]) if root.is_dir() else []
    if not runs:  # it ended before its first run began
        return
    from mosaickd.analysis.table import build_report

    report = build_report(runs, split=False)
    out = console()
    if len(report.other):
        out.print(plain_table(report, f"{root.resolve().name}: top-1 accuracy at the last step"))
    if len(report.cells):
        out.print(paper_table(report))
    _show_rest(report, out)


def show_report(report: Report, title: str) -> None:
    """Print all that a report says. title: of the table of runs that the paper has no cell for."""
    out = console()
    if len(report.cells):
        out.print(paper_table(report))
    if len(report.other):
        out.print(plain_table(report, title))
    _show_rest(report, out)


def _show_rest(report: Report, out: Console) -> None:
    if report.unfinished:
        table = Table(title="not finished, so not counted", title_justify="left")
        for name in ("run", "status", "step", "error"):
            table.add_column(name, overflow="fold")
        for run in report.unfinished:
            _add(table, run["folder"], run["status"], str(run["steps"]), run["error"] or "")
        out.print(table)
    for line in remarks(report):
        out.print(Text(line), soft_wrap=True)


def remarks(report: Report) -> list[str]:
    """Return what to know beside the tables: damaged results, and notes."""
    lines = [f"left out: {problem['problem']}" for problem in report.problems]
    return lines + [f"note: {note}" for note in report.notes]


def unfinished_lines(report: Report) -> list[str]:
    return [
        f"not counted: {run['folder']}: {run['status']} at step {run['steps']}"
        + (f" ({run['error']})" if run["error"] else "")
        for run in report.unfinished
    ]


# ----------------------------------------------------------------------------------------- tables


def paper_table(report: Report) -> Group:
    """Return the paper's layout; each cell holds the paper's number, ours and the difference.

    It fits into eighty columns.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in report.columns:
        table.add_column(Text(column.replace("-", "\n")), justify="right", no_wrap=True)
    for data, rows in report.blocks().items():
        table.add_section()
        table.add_row(Text(data.replace(" (", "\n("), style="bold"))
        for method, cells in rows.items():
            several = any(cell["sd"] is not None for cell in cells)
            labels = ["paper", "ours", *(["± (n)"] if several else []), "diff."]
            columns = [labels, *(_cell_lines(cell, several=several) for cell in cells)]
            table.add_row(Text(f" {short(method)}"), *map(_stack, columns))
    title = f"Table 1: top-1 accuracy on CIFAR-100, %; ours: {EVALUATIONS[report.evaluation]}"
    legend = "± over seeds (their number); a cell without a run is empty"
    return Group(Text(title, style="italic"), table, Text(legend, style="dim"))


def _cell_lines(cell: dict[str, Any], *, several: bool) -> list[str]:
    spread = f"{cell['sd']:.2f} ({cell['n']})" if cell["sd"] is not None else ""
    middle = [spread] if several else []
    return [number(cell["paper"]), number(cell["mean"]), *middle, signed(cell["difference"])]


def _stack(lines: list[str]) -> Text:
    """Return a cell's lines, ours (the second) in bold."""
    text = Text("\n".join(lines))
    start = len(lines[0]) + 1
    text.stylize("bold", start, start + len(lines[1]))
    return text


def plain_table(report: Report, title: str) -> Table:
    """Return one row a model of `report.other`; a column a seed, as long as there are few."""
    from mosaickd.analysis.table import records, variants

    rows, letters = records(report.other), variants(report)
    seeds = sorted({one["seed"] for row in rows for one in row["ours"]})
    wide = len(seeds) <= SEED_COLUMNS
    table = Table(title=Text(title))
    for name in ("model", "how it learned", "tested on", *(["settings"] if letters else [])):
        table.add_column(name)
    for name in [f"seed {seed}" for seed in seeds] if wide else ["seeds"]:
        table.add_column(name, justify="right")
    table.add_column("mean", justify="right")
    for row in rows:
        settings = [letters.get(row["variant"], "")] if letters else []
        by_seed = {one["seed"]: percent(one["accuracy"]) for one in row["ours"]}
        if wide:
            values = [by_seed.get(seed, "-") for seed in seeds]
        else:
            values = ["\n".join(f"{seed}: {text}" for seed, text in by_seed.items())]
        _add(table, row["model"], row["how"], row["dataset"], *settings, *values, mean_of(row))
    if letters:
        table.caption = Text("\n".join(f"{letter}: {text}" for text, letter in letters.items()))
        table.caption_justify = "left"
    return table


def mean_of(row: dict[str, Any], *, count: bool = True) -> str:
    """Return 62.00 %, or 62.00 ± 2.65 % (3)."""
    if row["sd"] is None:
        return percent(row["mean"])
    return f"{row['mean']:.2f} ± {row['sd']:.2f} %" + (f" ({row['n']})" if count else "")


def _add(table: Table, *cells: str) -> None:
    """Add a row of texts as they are: what comes from files is no markup."""
    table.add_row(*map(Text, cells))
