"""Results for people: a run's table, and a sweep's runs side by side. Reads files only.

python -m mosaickd.report outputs/quickstart
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

#: Each method's words for a newcomer; other methods go by their name.
WORDS = {
    "scratch": "trained from scratch on labelled {dataset}",
    "kd": "plain distillation on {ood}",
    "mosaic": "MosaicKD: images mosaicked from {ood}",
}


#: What a result.json must have to be one of ours.
FIELDS = {"status", "method", "dataset", "ood", "teacher", "student", "seed", "accuracy",
          "teacher_accuracy", "steps", "seconds", "device"}  # fmt: skip


def read_result(folder: Path) -> dict[str, Any] | None:
    """A run's result.json; None where there is none or it can't be read."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.keys() >= FIELDS else None


def find_results(root: Path) -> dict[Path, dict[str, Any]]:
    """All runs below `root`, by folder; teachers' own training runs are left out."""
    found = {}
    for path in sorted(root.rglob("result.json")):
        parts = path.relative_to(root).parts
        if "teacher" not in parts and (result := read_result(path.parent)):
            found[path.parent] = result
    return found


def console() -> Console:
    """Where tables go. A pipe has no width of its own: don't fold what a script may read."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=120)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def describe(result: dict[str, Any]) -> str:
    """What a run did, in a few words."""
    words = WORDS.get(result["method"], "{method} on {ood}")
    return words.format(**result)


def show_run(folder: Path) -> None:
    """Print what a run came to and where its products lie."""
    result = read_result(folder)
    if result is None:
        return
    accuracy = result["accuracy"]
    table = Table(title=f"{describe(result)}, seed {result['seed']}: {result['status']}")
    table.add_column("model")
    table.add_column("how it learned")
    table.add_column(f"accuracy on {result['dataset']}", justify="right")
    if result["teacher"]:
        table.add_row(
            f"teacher {result['teacher']}",
            f"from labelled {result['dataset']}",
            percent(result["teacher_accuracy"]),
        )
    table.add_row(f"student {result['student']}", describe(result), percent(accuracy["last"]))
    table.add_row(
        "", f"(its best evaluation, at step {accuracy['best_step']})", percent(accuracy["best"])
    )
    out = console()
    out.print(table)
    out.print(
        f"{result['steps']} steps in {result['seconds']:.0f} s on {result['device']}",
        soft_wrap=True,
    )
    for name, words in (("student.safetensors", "weights"), ("samples", "pictures")):
        if (folder / name).exists():
            out.print(f"{words}: {folder / name}", soft_wrap=True)


def sweep_table(root: Path) -> Table:
    """One row a cell (mean over seeds of the last evaluation), teachers first."""
    results = find_results(root)
    table = Table(title=f"{root.name}: top-1 accuracy at the last step")
    for name in ("model", "how it learned", "tested on"):
        table.add_column(name)
    seeds = sorted({r["seed"] for r in results.values()})
    for seed in seeds:
        table.add_column(f"seed {seed}", justify="right")
    table.add_column("mean", justify="right")

    teachers = {r["teacher"] for r in results.values()} - {None}
    rows: dict[tuple[str, str, str], dict[int, float | None]] = {}
    for r in sorted(results.values(), key=lambda r: -(r["accuracy"]["last"] or 0)):
        if r["teacher"] and r["teacher_accuracy"] is not None:
            teacher = (f"teacher {r['teacher']}", f"from labelled {r['dataset']}", r["dataset"])
            rows.setdefault(teacher, {})[r["seed"]] = r["teacher_accuracy"]
    for r in sorted(results.values(), key=lambda r: -(r["accuracy"]["last"] or 0)):
        of = f" of {r['teacher']}" if r["teacher"] and len(teachers) > 1 else ""
        key = (f"student {r['student']}{of}", describe(r), r["dataset"])
        while r["seed"] in rows.get(key, {}):  # other settings of the same method
            key = (key[0], f"{key[1]}, again", key[2])
        rows.setdefault(key, {})[r["seed"]] = (
            r["accuracy"]["last"] if r["status"] == "finished" else None
        )
    for key, by_seed in rows.items():
        known = [v for v in by_seed.values() if v is not None]
        mean = sum(known) / len(known) if known else None
        table.add_row(*key, *(percent(by_seed.get(s)) for s in seeds), percent(mean))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="A table of the runs below a folder.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not find_results(folder):
        sys.exit(f"error: no result.json below {folder}")
    console().print(sweep_table(folder))


if __name__ == "__main__":
    main()
