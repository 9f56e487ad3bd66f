"""What a report says, whatever it is printed as: cells with the paper's number and ours."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mosaickd.report.finding import about_links
from mosaickd.report.labels import describe, images, shown, times
from mosaickd.report.mixed import mixed
from mosaickd.report.paper import ORIGINAL, Place, places, table1
from mosaickd.report.results import Found, Run, last_step
from mosaickd.report.run_files import under_way

KILLED = "no process holds its folder; the same command goes on"
#: Accuracies of one teacher that differ by less were measured on different devices: these round a
#: few borderline images differently. What lies further apart are two teachers.
SAME_TEACHER = 0.1


@dataclass(frozen=True)
class Cell:
    """In percent. sd: over seeds, of a sample; None where there is one seed."""

    paper: float | None = None
    mean: float | None = None
    sd: float | None = None
    values: tuple[tuple[int | None, float], ...] = ()  # by seed
    runs: tuple[Run, ...] = ()

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def difference(self) -> float | None:
        """Ours − paper."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper


@dataclass(frozen=True)
class Row:
    """A method on some data, in the paper's table."""

    method: str
    data: str
    cells: dict[str, Cell]  # by pair
    average: Cell  # ours only where all five columns have a number


@dataclass(frozen=True)
class PlainRow:
    """A model of runs that the paper's table has no cell for."""

    model: str
    how: str
    method: str
    variant: str | None
    dataset: str
    ood: str | None
    teacher: str | None
    student: str | None  # None: the row is the teacher's
    by_seed: dict[int, float | None]  # None: that run has not finished
    cell: Cell


@dataclass(frozen=True)
class Unfinished:
    folder: str
    status: str
    steps: int
    error: str | None


@dataclass
class Report:
    evaluation: str = "last"  # or "best"
    pairs: list[str] = field(default_factory=list)  # the columns
    with_average: bool = False
    rows: list[Row] = field(default_factory=list)
    plain: list[PlainRow] = field(default_factory=list)
    unfinished: list[Unfinished] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)  # file and what's wrong with it
    notes: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)  # finished ones

    def blocks(self) -> list[tuple[str, list[Row]]]:
        """Rows by what the students learn from."""
        names = dict.fromkeys(row.data for row in self.rows)
        return [(data, [row for row in self.rows if row.data == data]) for data in names]

    def variants(self) -> dict[str, str]:
        """A letter for each text of `variant`: they are long."""
        texts = dict.fromkeys(row.variant for row in self.plain if row.variant)
        return {text: _letters(i) for i, text in enumerate(texts)}


def build(found: Found, *, evaluation: str = "last", everything: bool = False) -> Report:
    """everything: also those rows and columns of the paper's table that there is nothing for."""
    report = Report(evaluation, problems=problems_of(found))
    report.runs, report.notes = one_a_seed([run for run in found.runs if run.finished])
    held: dict[Place, list[Run]] = {}
    elsewhere = []
    for run in report.runs:
        if not (cells := places(run)):
            elsewhere.append(run)
        for place in cells:
            held.setdefault(place, []).append(run)
    _fill_paper(report, held, everything)
    report.plain = plain_rows(elsewhere, evaluation)

    for run in found.runs:
        if run.under_way:
            steps = last_step(run.folder) or run.steps
            report.unfinished.append(_begun(run.folder, steps))
        elif not run.finished:
            folder = shown(run.folder)
            report.unfinished.append(Unfinished(folder, run.status, run.steps, run.error))
    for path, steps in found.begun.items():
        report.unfinished.append(_begun(path, steps))
    report.notes += [f"there is no result.json below {shown(path)}" for path in found.empty]
    if found.links:
        report.notes.append(about_links(found.links))
    _note_what_to_know(report, held)
    return report


def _begun(folder: Path, steps: int) -> Unfinished:
    """A run that had not ended when its files were written."""
    state = under_way(folder)
    return Unfinished(shown(folder), state, steps, KILLED if state == "killed" else None)


def problems_of(found: Found) -> list[tuple[str, str]]:
    return [(shown(path), problem) for path, problem in found.problems]


def measured(
    values: Iterable[tuple[int | None, float]],
    paper: float | None = None,
    runs: Iterable[Run] = (),
) -> Cell:
    values = tuple(sorted(values, key=lambda value: (value[0] is not None, value[0] or 0)))
    numbers = [number for _, number in values]
    return Cell(
        paper,
        statistics.fmean(numbers) if numbers else None,
        statistics.stdev(numbers) if len(numbers) > 1 else None,
        values,
        tuple(runs),
    )


def one_a_seed(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Of runs of the same cell and seed, the one with the most steps; and notes that say so, and
    which runs of a row are more than seeds apart."""
    by_cell: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        by_cell.setdefault((*run.row, run.seed), []).append(run)
    kept, notes = [], []
    for same in by_cell.values():
        first, *others = sorted(same, key=lambda run: -run.steps)  # of equals, the one found first
        kept.append(first)
        if others:
            folders = ", ".join(shown(run.folder) for run in others)
            most = "the most" if others[0].steps < first.steps else "as many"
            notes.append(
                f"{times(len(same), 'run')} of the same cell and seed: {shown(first.folder)} "
                f"counts, which has {most} steps ({first.steps}), not {folders}"
            )
    return kept, notes + mixed(kept)


# --------------------------------------------------------------------------------------- the paper


def _fill_paper(report: Report, held: dict[Place, list[Run]], everything: bool) -> None:
    table = table1()
    columns = set(table.pairs) if everything else _columns(held)
    report.pairs = [pair for pair in table.pairs if pair in columns]
    teachers = {pair: _teacher(pair, held) for pair in table.pairs}
    for method, data in table.rows:
        paper = table.rows[method, data]
        cells = {}
        for pair in table.pairs:
            runs = held.get(((method, data), pair), [])
            values = [(run.seed, run.accuracy(report.evaluation)) for run in runs]
            known = [(seed, value) for seed, value in values if value is not None]
            cells[pair] = measured(known, paper[pair], runs)
            if method == "teacher":
                cells[pair] = measured(teachers[pair], paper[pair], runs)
        if everything or any(cells[pair].n for pair in report.pairs):
            ours = [m for pair in report.pairs if (m := cells[pair].mean) is not None]
            mean = statistics.fmean(ours) if len(ours) == len(table.pairs) else None
            average = Cell(table.average((method, data)), mean)
            report.rows.append(Row(method, data, cells, average))
            report.with_average |= everything or mean is not None


def _columns(held: dict[Place, list[Run]]) -> set[str]:
    """The pairs of the runs. Models trained from scratch add columns only where no run has one."""
    columns = {pair for (method, _), pair in held if method not in ("teacher", "student")}
    for role in ("student", "teacher"):
        own: dict[Path, set[str]] = {}
        for ((method, _), pair), runs in held.items():
            for run in runs if method == role else ():
                own.setdefault(run.folder, set()).add(pair)
        for pairs in own.values():
            if not pairs & columns:
                columns |= pairs
    return columns


def _teacher(pair: str, held: dict[Place, list[Run]]) -> list[tuple[int | None, float]]:
    """Runs that trained this teacher, and teachers of unknown seed that other runs measured.

    Always after their last step, as they teach.
    """
    name = pair.split("-")[0]
    trained = held.get((("teacher", ORIGINAL), pair), [])
    values: list[tuple[int | None, float]] = [
        (run.seed, run.last) for run in trained if run.last is not None
    ]
    for runs in held.values():
        for run in runs:
            if run.teacher == name and run.teacher_accuracy is not None:
                _add_teacher(values, run.teacher_accuracy)
    return values


def _add_teacher(values: list[tuple[int | None, float]], accuracy: float) -> None:
    if all(abs(accuracy - known) >= SAME_TEACHER for _, known in values):
        values.append((None, accuracy))


def _note_what_to_know(report: Report, held: dict[Place, list[Run]]) -> None:
    old = {run.folder: None for runs in held.values() for run in runs if not run.tells_variant}
    if old:
        first = ", ".join(map(shown, list(old)[:3])) + (", …" if len(old) > 3 else "")
        report.notes.append(
            f"{times(len(old), 'run')} of an older version, which didn't record whether a run has "
            f"the method's recipe, stand as if they had it: {first}"
        )
    if report.evaluation == "best" and any(row.method == "teacher" for row in report.rows):
        report.notes.append("teachers are shown as they taught, after their last step")
    if report.with_average:
        rows = {(row.method, row.data) for row in report.rows}
        report.notes += [note for row, note in table1().misprints() if row in rows]


# ---------------------------------------------------------------------------------- all other runs


def plain_rows(runs: Sequence[Run], evaluation: str) -> list[PlainRow]:
    """Teachers first, then a row a cell: settings that belong together, the better ones first."""
    ranked = sorted(runs, key=lambda run: -(run.accuracy(evaluation) or 0))
    rows = _teacher_rows(ranked)
    teachers = {run.teacher for run in runs} - {None}
    cells: dict[tuple[object, ...], list[Run]] = {}
    for run in ranked:
        cells.setdefault(run.row, []).append(run)
    students = []
    for same in cells.values():
        by_seed: dict[int, float | None] = {}
        for run in same:
            value = run.accuracy(evaluation)
            if by_seed.get(run.seed) is None:
                by_seed[run.seed] = value
        first = same[0]
        of = f" of {first.teacher}" if first.teacher and len(teachers) > 1 else ""
        students.append(
            PlainRow(
                model=f"student {first.student}{of}",
                how=describe(vars(first)),
                method=first.method,
                variant=first.variant,
                dataset=first.dataset,
                ood=images(first.ood, first.ood_subset),
                teacher=first.teacher,
                student=first.student,
                by_seed=by_seed,
                cell=measured(
                    [(seed, value) for seed, value in by_seed.items() if value is not None],
                    runs=same,
                ),
            )
        )
    best: dict[tuple[str, str | None], float] = {}
    for row in students:
        group = (row.dataset, row.variant)
        best[group] = max(best.get(group, 0.0), row.cell.mean or 0.0)
    students.sort(
        key=lambda row: (
            row.dataset,
            -best[row.dataset, row.variant],
            row.variant or "",
            -(row.cell.mean or 0.0),
        )
    )
    return rows + students


def _teacher_rows(runs: Sequence[Run]) -> list[PlainRow]:
    """One a teacher, its accuracy under the seeds of those that it taught."""
    found: dict[tuple[str, str, int], dict[int, float | None]] = {}
    for run in runs:
        accuracy = run.teacher_accuracy
        if run.teacher is None or accuracy is None:
            continue
        number = 0  # runs that were cut short may each have trained a teacher of their own
        while (
            other := found.setdefault((run.teacher, run.dataset, number), {}).get(run.seed)
        ) is not None and abs(other - accuracy) >= SAME_TEACHER:
            number += 1
        found[run.teacher, run.dataset, number].setdefault(run.seed, accuracy)
    rows = []
    for (teacher, dataset, number), by_seed in sorted(found.items()):
        values: list[tuple[int | None, float]] = []
        for value in by_seed.values():
            if value is not None:
                _add_teacher(values, value)
        rows.append(
            PlainRow(
                model=f"teacher {teacher}",
                how=f"from labelled {dataset}{', another' if number else ''}",
                method="scratch",
                variant=None,
                dataset=dataset,
                ood=None,
                teacher=teacher,
                student=None,
                by_seed=by_seed,
                cell=measured(values),
            )
        )
    return rows


def _letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa"""
    letter = chr(ord("a") + number % 26)
    return letter if number < 26 else _letters(number // 26 - 1) + letter
