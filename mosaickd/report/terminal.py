"""Tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mosaickd.report.labels import EVALUATIONS, describe, percent, plain, short, signed
from mosaickd.report.results import Found, collect, read_result, to_run
from mosaickd.report.table import (
    Cell,
    PlainRow,
    Report,
    build,
    one_a_seed,
    plain_rows,
    problems_of,
)

#: Columns that a plain table has room for; with more seeds they stand in one column.
SEED_COLUMNS = 6


class Printer(Console):
    """A console that leaves it to the program what becomes of it when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """Where tables go. A pipe has no width of its own: don't fold what a script may read."""
    own = Printer(highlight=False)
    return own if own.is_terminal else Printer(highlight=False, width=200)


def show_run(folder: Path) -> None:
    """Print what a run came to and where its products lie."""
    result = read_result(folder)
    if result is None:
        return
    run = to_run(folder, result)
    how = describe(vars(run))
    table = Table(title=Text(f"{how}, seed {run.seed}: {run.status}"))
    table.add_column("model")
    table.add_column("how it learned")
    table.add_column(Text(f"accuracy on {run.dataset}"), justify="right")
    if run.teacher:
        learned = f"from labelled {run.dataset}"
        _add(table, f"teacher {run.teacher}", learned, percent(run.teacher_accuracy))
    _add(table, f"student {run.student}", how, percent(run.last))
    step = result["accuracy"].get("best_step")
    _add(table, "", f"(its best evaluation, at step {step})", percent(run.best))
    out = console()
    out.print(table)
    where = f"{run.steps} steps in {result['seconds']:.0f} s on {run.device}"
    if run.variant:
        where += f"; not the method's own recipe: {run.variant}"
    out.print(Text(where), soft_wrap=True)
    for name, words in (("student.safetensors", "weights"), ("samples", "pictures")):
        if (folder / name).exists():
            out.print(Text(f"{words}: {folder / name}"), soft_wrap=True)


def sweep_table(root: Path) -> Table:
    """One row a cell (mean over seeds of the last evaluation), teachers first."""
    return _sweep_table(root, collect([root]))


def _sweep_table(root: Path, found: Found) -> Table:
    runs, notes = one_a_seed([run for run in found.runs if run.finished])
    runs += [run for run in found.runs if not run.finished]
    title = f"{root.resolve().name}: top-1 accuracy at the last step"
    said = remarks(Report(problems=problems_of(found), notes=notes))
    return plain_table(plain_rows(runs, "last"), title, remarks=said)


def show_sweep(root: Path) -> None:
    """Print a sweep's table and, where its runs measure cells of the paper's, that table too."""
    if not root.is_dir():  # it ended before its first run began
        return
    found = collect([root])
    if not found.runs:
        return
    out = console()
    out.print(_sweep_table(root, found))
    report = build(found)
    if report.rows:
        out.print(paper_table(report, out))
    for note in report.notes if report.rows else []:
        out.print(Text(note), soft_wrap=True)


def show_report(report: Report, title: str) -> None:
    """Print all that a report says. title: of the table of runs that the paper has no cell for."""
    out = console()
    if report.rows:
        out.print(paper_table(report, out))
    if report.plain:
        out.print(plain_table(report.plain, title))
    if report.unfinished:
        table = Table(title="not finished, so not counted", title_justify="left")
        for name in ("run", "status", "step", "error"):
            table.add_column(name, overflow="fold")
        for run in report.unfinished:
            _add(table, run.folder, run.status, str(run.steps), run.error or "")
        out.print(table)
    for line in remarks(report):
        out.print(Text(line), soft_wrap=True)


def remarks(report: Report) -> list[str]:
    """Files that couldn't be read, and notes."""
    files = [f"left out: {path}: {problem}" for path, problem in report.problems]
    return files + [f"note: {note}" for note in report.notes]


def unfinished_lines(report: Report) -> list[str]:
    return [
        f"not counted: {run.folder}: {run.status} at step {run.steps}"
        + (f" ({run.error})" if run.error else "")
        for run in report.unfinished
    ]


# ----------------------------------------------------------------------------------------- tables


def paper_table(report: Report, out: Console) -> RenderableType:
    """The paper's layout; each cell holds the paper's number, ours and the difference."""
    wide = _paper_table(report, narrow=False)
    if out.measure(wide, options=out.options.update(width=1000)).maximum <= out.width:
        return wide
    return _paper_table(report, narrow=True)


def _paper_table(report: Report, *, narrow: bool) -> RenderableType:
    """narrow: for a terminal of eighty columns, with standard deviations below the numbers."""
    table = Table(
        title=f"Table 1: top-1 accuracy on CIFAR-100, %\nours: {EVALUATIONS[report.evaluation]}",
        box=box.SIMPLE_HEAD if narrow else box.HEAVY_HEAD,
        show_edge=not narrow,
        padding=(0, 0) if narrow else (0, 1),
    )
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for pair in report.pairs:
        table.add_column(Text(pair.replace("-", "\n")), justify="right", no_wrap=True)
    if report.with_average:
        table.add_column("average", justify="right", no_wrap=True)
    for data, rows in report.blocks():
        table.add_section()
        table.add_row(Text(data.replace(" (", "\n(") if narrow else data, style="bold"))
        for row in rows:
            cells = [row.cells[pair] for pair in report.pairs]
            cells += [row.average] if report.with_average else []
            several = any(cell.sd is not None for cell in cells)
            labels = ["paper", "ours", *(["± (n)"] if narrow and several else [])]
            labels.append("diff." if narrow else "ours − paper")
            columns = [_lines(cell, narrow=narrow, several=several) for cell in cells]
            name = Text(f" {short(row.method)}")
            table.add_row(name, *(_stacked(lines) for lines in (labels, *columns)))
    words = "± over seeds (their number); a cell without a run is empty"
    return Group(table, Text(words, style="dim"))


def _stacked(lines: list[str]) -> Text:
    """The paper's number, ours (bold), and what is to be said of it."""
    text = Text("\n".join(lines))
    start = len(lines[0]) + 1
    text.stylize("bold", start, start + len(lines[1]))
    return text


def _lines(cell: Cell, *, narrow: bool, several: bool) -> list[str]:
    ours = plain(cell.mean) if narrow else with_spread(cell)
    spread = f"{cell.sd:.2f} ({cell.n})" if cell.sd is not None else ""
    between = [spread] if narrow and several else []
    return [plain(cell.paper), ours, *between, signed(cell.difference)]


def with_spread(cell: Cell) -> str:
    """60.50, or 60.50 ± 0.40 (3): mean, sample standard deviation, number of seeds."""
    spread = f" ± {cell.sd:.2f} ({cell.n})" if cell.sd is not None else ""
    return plain(cell.mean) + spread


def plain_table(rows: list[PlainRow], title: str, remarks: Sequence[str] = ()) -> Table:
    """One row a model; a column a seed, as long as there are few."""
    letters = Report(plain=rows).variants()
    seeds = sorted({seed for row in rows for seed in row.by_seed})
    wide = len(seeds) <= SEED_COLUMNS
    table = Table(title=Text(title))
    for name in ("model", "how it learned", "tested on"):
        table.add_column(name)
    if letters:
        table.add_column("settings")
    for name in [f"seed {seed}" for seed in seeds] if wide else ["seeds"]:
        table.add_column(name, justify="right")
    table.add_column("mean", justify="right")
    for row in rows:
        settings = [letters.get(row.variant or "", "")] if letters else []
        known = [f"{seed}: {percent(value)}" for seed, value in sorted(row.by_seed.items())]
        values = [percent(row.by_seed.get(seed)) for seed in seeds] if wide else ["\n".join(known)]
        _add(table, row.model, row.how, row.dataset, *settings, *values, mean_of(row.cell))
    if below := [*(f"{letter}: {text}" for text, letter in letters.items()), *remarks]:
        table.caption = Text("\n".join(below))
        table.caption_justify = "left"
    return table


def mean_of(cell: Cell, *, count: bool = True) -> str:
    """62.00 %, or 62.00 ± 2.65 % (3)"""
    if cell.sd is None:
        return percent(cell.mean)
    number = f" ({cell.n})" if count else ""
    return f"{plain(cell.mean)} ± {cell.sd:.2f} %{number}"


def _add(table: Table, *cells: str) -> None:
    """A row of texts as they are: what comes from files is no markup."""
    table.add_row(*map(Text, cells))
