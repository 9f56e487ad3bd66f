"""The runs that a figure is drawn from, and what is said of those that it can't be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mosaickd.errors import UserError
from mosaickd.report.contents import read_json
from mosaickd.report.finding import about_links
from mosaickd.report.labels import images, short, shown
from mosaickd.report.page.classes import per_class
from mosaickd.report.results import Run, collect, last_step
from mosaickd.report.run_files import state_of
from mosaickd.report.table import one_a_seed

#: The losses of the mosaic game that a run can do without, as they are called in its settings.
LOSSES = ("local", "align", "adv", "balance")

#: Changes that `kind` tells of: of the ablations that there are, and of patches.
GAME = re.compile(r"ablation=(full|no_\w+|patch\w+)|discriminator(\.patch_size)?=\w+")


@dataclass
class Chosen:
    """Runs to draw, and why others are not among them."""

    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def choose(folders: Sequence[Path], *, finished: bool = True) -> Chosen:
    """All runs below the folders. finished: only those that have come to their end.

    Raises UserError where nothing is left, and says why.
    """
    found = collect(folders)
    chosen = Chosen()
    chosen.notes += [f"left out: {shown(path)}: {problem}" for path, problem in found.problems]
    if found.runs or found.begun:
        chosen.notes += [f"no run below {shown(path)}" for path in found.empty]
    if found.links:
        chosen.notes.append(about_links(found.links))
    for run in found.runs:
        if finished and not run.finished:
            step = last_step(run.folder) if run.under_way else run.steps
            why = f"{state_of(run)} at step {step}" + (f" ({run.error})" if run.error else "")
            chosen.notes.append(f"left out: {shown(run.folder)}: {why}")
        else:
            chosen.runs.append(run)
    chosen.notes += [
        f"left out: {shown(path)}: no result.json, at step {step}"
        for path, step in found.begun.items()
    ]
    if finished:
        chosen.runs, notes = one_a_seed(chosen.runs)
        chosen.notes += notes
    if not chosen.runs:
        raise nothing(folders, chosen.notes, "no finished run" if finished else "no run")
    return chosen


def keep(chosen: Chosen, problem: Callable[[Run], str | None]) -> Chosen:
    """Those runs that have no `problem`; what the others have becomes a note."""
    kept = Chosen(notes=list(chosen.notes))
    for run in chosen.runs:
        if reason := problem(run):
            kept.notes.append(f"left out: {shown(run.folder)}: {reason}")
        else:
            kept.runs.append(run)
    if not kept.runs:
        raise nothing([run.folder for run in chosen.runs], kept.notes, "no run that can be drawn")
    return kept


def only_one(chosen: Chosen) -> tuple[Run, list[str]]:
    """The first run, of a figure that shows one; the others become notes."""
    run, *others = chosen.runs
    left_out = [f"left out: {shown(other.folder)}: one run is drawn" for other in others]
    return run, [*chosen.notes, *left_out]


def nothing(folders: Iterable[Path], notes: Sequence[str], what: str) -> UserError:
    """With the first reasons."""
    reasons = [note.removeprefix("left out: ") for note in notes]
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    said = f" ({'; '.join(reasons[:3])}{more})" if reasons else ""
    return UserError(f"{what} below {', '.join(map(shown, list(folders)[:3]))}{said}")


@cache
def settings(run: Run) -> dict[str, Any]:
    """What config.json says; empty where there is none that can be read."""
    content = read_json(run.folder, "config.json")
    return content if isinstance(content, dict) else {}


def section(run: Run, name: str) -> dict[str, Any]:
    """Of the settings; empty where there is none."""
    found = settings(run).get(name)
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float | None:
    """None for what is none that a setting could have."""
    return float(value) if type(value) in (int, float) and abs(value) < 1e9 else None


def patch_size(run: Run) -> int | None:
    """Pixels that one logit of its discriminator sees, at most the image; None: no discriminator,
    or one that is not asked."""
    image = section(run, "dataset").get("image_size")
    if number(section(run, "method").get("local")) == 0 or not _is_size(image):
        return None
    settings = section(run, "discriminator")
    if "patch_size" not in settings:
        return None
    size = settings["patch_size"]
    return image if size is None else min(size, image) if _is_size(size) else None


def _is_size(value: Any) -> bool:
    """Pixels across."""
    return type(value) is int and 1 <= value <= 2**16


def missing_losses(run: Run) -> tuple[str, ...]:
    """Those whose weight is zero."""
    weights = section(run, "method")
    return tuple(name for name in LOSSES if number(weights.get(name)) == 0)


def kind(run: Run) -> str:
    """What a run plays, of the games with some of their parts changed."""
    if run.method != "mosaic":
        return short(run.method)
    without = missing_losses(run)
    if without:
        return f"without {' and '.join(without)}"
    size, image = patch_size(run), section(run, "dataset").get("image_size")
    if size is None:
        return short(run.method)
    return f"{'whole-image' if size == image else f'{size}×{size} patch'} discriminator"


def learned_from(run: Run) -> str:
    """The images that its student saw; empty where there are none."""
    return images(run.ood, run.ood_subset) or ""


def otherwise(run: Run) -> str:
    """What else its command has changed, beside what `kind` tells of the game."""
    if not run.variant:
        return ""
    changes = re.split(r", (?=[\w./@+~]+=)", run.variant)
    if run.method == "mosaic":
        left_out = {f"method.{name}" for name in missing_losses(run)}
        changes = [c for c in changes if not GAME.fullmatch(c) and c.split("=")[0] not in left_out]
    return ", ".join(changes)


def labels(runs: Sequence[Run]) -> dict[Run, str]:
    """What runs of the same models and domain are called beside each other, in as few words as tell
    them apart: those of one label differ in their seeds alone."""
    games = {kind(run) for run in runs if run.method == "mosaic"}
    called = {
        run: short(run.method) if run.method == "mosaic" and len(games) == 1 else kind(run)
        for run in runs
    }
    for more in (learned_from, otherwise):
        alike: dict[str, set[str]] = {}
        for run, label in called.items():
            alike.setdefault(label, set()).add(more(run))
        called = {
            run: f"{label} {'on' if more is learned_from else 'with'} {more(run)}"
            if len(alike[label]) > 1 and more(run) else label
            for run, label in called.items()
        }  # fmt: skip
    return called


def class_names(run: Run) -> list[str]:
    """From per_class.json; empty where there is none that can be read."""
    found, _ = per_class(run.folder)
    return [name[:24] for name in found.names] if found else []
