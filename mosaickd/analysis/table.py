"""A report: the paper's Table 1 beside what runs measured, and all other runs.

Two tables in long form: a line for each cell of Table 1 (CELLS), and one for each model of other
runs (OTHER). Accuracies in percent; sd: of a sample; ours: a list of {"seed", "accuracy"}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mosaickd.analysis.labels import describe, images
from mosaickd.analysis.runs import ROW, Run, to_frame
from mosaickd.analysis.table1 import ORIGINAL, cells_of, table1
from mosaickd.errors import UserError

CELLS = ["column", "method", "data", "teacher", "student", "paper", "ours", "mean", "sd", "n",
         "difference"]  # fmt: skip
OTHER = ["model", "how", "method", "variant", "dataset", "ood", "teacher", "student", "ours",
         "mean", "sd", "n"]  # fmt: skip
KEY = ["method", "data", "column"]
AVERAGE = "average"
#: Accuracies of one teacher that differ by less were measured on different devices: these round a
#: few borderline images differently. What lies further apart are two teachers.
SAME_TEACHER = 0.1
KILLED = "no process holds its folder; the same command goes on"

#: Settings that runs of one row may differ in: where files lie, and how the arithmetic is done.
FREE = ("seed", "train.precision", "train.channels_last", "train.compile", "train.cuda_graph",
        "train.deterministic", "teacher.checkpoint")  # fmt: skip
FREE_ENDINGS = (".root", ".download")
#: How many runs that are out of line a report names.
NAMED = 5


@dataclass
class Report:
    """evaluation: which one the tables compare, "last" or "best". runs: all; unfinished: those of
    them that don't count."""

    evaluation: str
    runs: Sequence[Run]
    cells: pd.DataFrame
    other: pd.DataFrame
    unfinished: list[dict[str, Any]] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Return the shown columns of Table 1, in the paper's order."""
        return list(dict.fromkeys(self.cells["column"]))

    def blocks(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Return Table 1 by data and method: of each row its cells, in the order of `columns`."""
        table: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for cell in records(self.cells):
            table.setdefault(cell["data"], {}).setdefault(cell["method"], []).append(cell)
        return table


def build_report(
    runs: Sequence[Run], evaluation: str = "last", everything: bool = False, split: bool = True
) -> Report:
    """Return what the runs came to.

    everything: also cells of the paper's table without a run. split: `other` holds only runs that
    the paper's table has no cell for.
    """
    frame = to_frame(runs)
    finished, notes = one_per_seed(frame[frame["state"] == "finished"].copy())
    finished["accuracy"] = finished[evaluation]
    finished = finished.dropna(subset=["accuracy"])
    finished["cells"] = _column([cells_of(run.result) for run in finished["run"]], finished)
    cells = _fill_table1(finished, everything)
    outside = finished[finished["cells"].map(len) == 0] if split else finished
    report = Report(evaluation, runs, cells, _other_rows(outside))
    report.notes = notes + _out_of_line(finished)
    if evaluation == "best" and "teacher" in set(cells["method"]):
        report.notes.append("teachers are shown as they taught, after their last step")
    if AVERAGE in report.columns:
        rows = set(zip(cells["method"], cells["data"], strict=True))
        report.notes += [note for row, note in table1().misprints() if row in rows]
    for run in runs:
        if run.problem:
            report.problems.append({"file": str(run.run_dir.result), "problem": run.problem})
        elif not run.finished:
            error = KILLED if run.state == "killed" else run.result and run.result.error
            report.unfinished.append({"folder": str(run.folder), "status": run.state,
                                      "steps": run.steps, "error": error})  # fmt: skip
    return report


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's lines, with None where there is nothing."""
    return [
        {str(name): value for name, value in line.items()}
        for line in frame.astype(object).where(frame.notna(), None).to_dict("records")
    ]


def variants(report: Report) -> dict[str, str]:
    """Return a number for each text of `variant`: they are long."""
    texts = dict.fromkeys(report.other["variant"].dropna())
    return {text: f"({i})" for i, text in enumerate(texts, 1)}


def summarize(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return mean, sd and n of `accuracy` over the seeds of each group, and `ours`."""
    frame = frame.sort_values("seed", kind="stable")
    groups = frame.groupby(by, dropna=False, sort=False)
    table = groups["accuracy"].agg(mean="mean", sd="std", n="count")
    pairs = [
        {"seed": None if pd.isna(seed) else int(seed), "accuracy": accuracy}
        for seed, accuracy in zip(frame["seed"], frame["accuracy"], strict=True)
    ]
    frame = frame.assign(ours=_column(pairs, frame))
    table["ours"] = frame.groupby(by, dropna=False, sort=False)["ours"].agg(list)
    return table.reset_index()


def _column(values: list[Any], frame: pd.DataFrame) -> Any:
    """Return a column of Python objects, as they are, beside those of `frame`."""
    return pd.Series(values, frame.index, dtype=object)


# ---------------------------------------------------------------------- which runs make up a row


def one_per_seed(finished: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return of runs of the same row and seed the one with the most steps; and notes on it."""
    notes = []
    ordered = finished.sort_values("steps", ascending=False, kind="stable")
    for _, same in ordered.groupby([*ROW, "seed"], dropna=False, sort=False):
        first, *others = same["run"]
        if others:
            most = "the most" if others[0].steps < first.steps else "as many"
            notes.append(
                f"{len(same)} runs of the same cell and seed: {first.folder} counts, which has "
                f"{most} steps ({first.steps}), not {', '.join(str(run.folder) for run in others)}"
            )
    repeated = ordered.duplicated([*ROW, "seed"])
    return ordered[~repeated].sort_index(), notes


def _out_of_line(finished: pd.DataFrame) -> list[str]:
    """Return a note on each run that differs from the first of its row in more than the seed."""
    notes = []
    for _, same in finished.groupby(ROW, dropna=False, sort=False):
        first, *others = same["run"]
        for run in others:
            if different := differences(first, run):
                notes.append(
                    f"{run.folder} stands in one row with {first.folder}, and has more than "
                    f"another seed: {'; '.join(different[:3])}"
                )
    more = len(notes) - NAMED
    return notes[:NAMED] + ([f"and {more} more such runs"] if more > 0 else [])


def differences(first: Run, run: Run) -> list[str]:
    """Return in which settings, images or teacher two runs differ that should be alike."""
    before, now = _settings(first), _settings(run)
    different = [
        f"{name} is {before.get(name)} there, {now.get(name)} here"
        for name in sorted(before.keys() | now.keys())
        if before and now and before.get(name) != now.get(name)
    ]
    for name, words in (("data_fingerprint", "other images"),
                        ("teacher_fingerprint", "another teacher")):  # fmt: skip
        one, other = getattr(first.result, name), getattr(run.result, name)
        if one and other and one != other:
            different.append(words)
    return different


def _settings(run: Run) -> dict[str, Any]:
    """Return what decides what the run computes, as {"train.steps": 3, ...}."""
    try:
        settings = run.run_dir.read_run_key()
    except (UserError, OSError):
        return {}
    (flat,) = pd.json_normalize(settings).to_dict("records") or [{}]
    return {
        str(name): value
        for name, value in flat.items()
        if name not in FREE and not str(name).endswith(FREE_ENDINGS)
    }


# ---------------------------------------------------------------------------------- the paper


def _fill_table1(finished: pd.DataFrame, everything: bool) -> pd.DataFrame:
    paper = table1()
    ours = _measurements(finished)
    columns = set(paper.pairs) if everything else _columns(ours)
    table = pd.DataFrame(
        [(method, data, pair, *pair.split("-"), row[pair])
         for (method, data), row in paper.rows.items() for pair in paper.pairs],
        columns=[*KEY, "teacher", "student", "paper"],
    )  # fmt: skip
    table = table.merge(summarize(ours, KEY), how="left", on=KEY)
    averages = _averages(table)
    table = table[table["column"].isin(columns)]
    if not everything:
        filled = table.groupby(["method", "data"])["n"].transform("max") > 0
        table = table[filled]
        averages = averages.merge(table[["method", "data"]].drop_duplicates())
    if everything or (columns == set(paper.pairs) and averages["mean"].notna().any()):
        table = pd.concat([table, averages[averages["paper"].notna()]])
    order = {row: i for i, row in enumerate(paper.rows)}
    rank = [order[row] for row in zip(table["method"], table["data"], strict=True)]
    table = table.assign(rank=rank).sort_values("rank", kind="stable")
    table["difference"] = table["mean"] - table["paper"]
    return table[CELLS].reset_index(drop=True).astype({"n": "Int64"})


def _measurements(finished: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each cell that a run measures, and for each teacher that one was taught by.

    Teachers count as they teach: after their last step.
    """
    lines: list[tuple[str, str, str, int | None, float | None, str]] = []
    runs = list(zip(finished["run"], finished["accuracy"], finished["cells"], strict=True))
    for run, accuracy, cells in runs:
        for (method, data), column in cells:
            value = run.result.last if method == "teacher" else accuracy
            lines.append((method, data, column, run.result.seed, value, str(run.folder)))
    for run, _, cells in runs:
        accuracy = run.result.teacher_accuracy
        for column in table1().pairs if cells and accuracy is not None else ():
            if column.split("-")[0] == run.result.teacher:
                known = [line[4] for line in lines if (line[0], line[2]) == ("teacher", column)]
                if all(abs(accuracy - value) >= SAME_TEACHER for value in known if value):
                    lines.append(("teacher", ORIGINAL, column, None, accuracy, ""))
    return pd.DataFrame(lines, columns=[*KEY, "seed", "accuracy", "folder"])


def _columns(ours: pd.DataFrame) -> set[str]:
    """Return the pairs that runs measured. A model that was trained from scratch stands in several:
    it adds its columns only where no other run has one of them."""
    models = ours["method"].isin(["teacher", "student"])
    columns = set(ours.loc[~models, "column"])
    for method in ("student", "teacher"):
        trained = ours[(ours["method"] == method) & (ours["folder"] != "")]
        for _, pairs in trained.groupby("folder")["column"]:
            if not columns & set(pairs):
                columns |= set(pairs)
    return columns


def _averages(table: pd.DataFrame) -> pd.DataFrame:
    """Return the average cell of each row: ours only where each column has a number."""
    rows = table.groupby(["method", "data"], sort=False)
    averages = rows["paper"].mean().to_frame()
    averages["mean"] = rows["mean"].agg(lambda values: values.mean(skipna=False))
    averages["column"] = AVERAGE
    return averages.reset_index()


# --------------------------------------------------------------------------------- all other runs


def _other_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Return teachers first, then a row a cell: equal settings together, better ones first."""
    several = runs["teacher"].dropna().nunique() > 1
    results = [run.result for run in runs["run"]]
    of = [f" of {r.teacher}" if several and r.teacher else "" for r in results]
    runs = runs.assign(
        how=[describe(result) for result in results],
        model=[f"student {r.student}{name}" for r, name in zip(results, of, strict=True)],
        ood=_column([images(r.ood, r.ood_subset) for r in results], runs),
    )
    table = summarize(runs, [*ROW, "how", "model"])
    table["best"] = table.groupby(["dataset", "variant"], dropna=False)["mean"].transform("max")
    table = table.sort_values(
        ["dataset", "best", "variant", "mean"],
        ascending=[True, False, True, False],
        na_position="first",
    )
    table = pd.concat([_teacher_rows(runs), table])[OTHER].reset_index(drop=True)
    return table.astype({"n": "Int64"})


def _teacher_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row a teacher: its accuracy under the seeds of those that it taught."""
    taught = runs.dropna(subset=["teacher", "teacher_accuracy"])
    # Runs that were cut short may each have trained a teacher of their own.
    other = taught.groupby(["teacher", "dataset", "seed"])["teacher_accuracy"].transform(
        lambda values: (values.sort_values(ascending=False).diff() <= -SAME_TEACHER).cumsum()
    )
    rows = []
    by = ["teacher", "dataset", "other"]
    for (teacher, dataset, number), same in taught.assign(other=other).groupby(by):
        values = same["teacher_accuracy"].sort_values()
        values = values[~(values.diff() < SAME_TEACHER)]
        by_seed = same.drop_duplicates("seed").sort_values("seed")
        rows.append({
            "model": f"teacher {teacher}",
            "how": f"from labelled {dataset}{', another' if number else ''}",
            "method": "scratch", "dataset": dataset, "teacher": teacher,
            "mean": values.mean(), "sd": values.std(), "n": len(values),
            "ours": [{"seed": int(seed), "accuracy": accuracy} for seed, accuracy
                     in zip(by_seed["seed"], by_seed["teacher_accuracy"], strict=True)],
        })  # fmt: skip
    return pd.DataFrame(rows, columns=OTHER)
