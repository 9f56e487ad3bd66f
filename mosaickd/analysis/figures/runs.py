"""Which runs a figure is drawn from, and how they are labelled."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaickd.analysis.labels import images, short
from mosaickd.analysis.runs import load_runs, to_frame
from mosaickd.analysis.table import one_per_seed
from mosaickd.errors import UserError
from mosaickd.run_dir import Result, RunDir

log = logging.getLogger(__name__)

#: The losses of MosaicKD that a run can do without, by the names of their weights.
LOSSES = ("local", "align", "adv", "balance")

#: Changes that `Run.game` covers.
GAME_CHANGES = re.compile(r"ablation=(full|no_\w+|patch\w+)|discriminator(\.patch_size)?=\w+")


@dataclass(frozen=True)
class Run:
    """A run that has a result, whether or not it has ended; settings: of its config.json."""

    run_dir: RunDir
    result: Result
    settings: dict[str, Any]

    def section(self, name: str) -> dict[str, Any]:
        return self.settings.get(name) or {}

    @property
    def plays_mosaic(self) -> bool:
        """Return whether the method has the losses of MosaicKD."""
        return set(LOSSES) <= self.section("method").keys()

    @property
    def missing_losses(self) -> tuple[str, ...]:
        """Return the losses of MosaicKD whose weight is zero."""
        return tuple(name for name in LOSSES if self.section("method").get(name) == 0)

    @property
    def patch_size(self) -> int | None:
        """Return how many pixels wide the discriminator's patches are, at most the image."""
        if "patch_size" not in self.section("discriminator"):
            return None
        image_size: int = self.section("dataset")["image_size"]
        return min(self.section("discriminator")["patch_size"] or image_size, image_size)

    @property
    def game(self) -> str:
        """Return the method's name, or of an ablation of MosaicKD what is changed."""
        if self.plays_mosaic and self.missing_losses:
            return f"without {' and '.join(self.missing_losses)}"
        size = self.patch_size if self.plays_mosaic else None
        if size is None:
            return short(self.result.method)
        whole = size == self.section("dataset")["image_size"]
        return f"{'whole-image' if whole else f'{size}×{size} patch'} discriminator"

    @property
    def training_images(self) -> str:
        """Return which images the student saw; "" where there are none."""
        return images(self.result.ood, self.result.ood_subset) or ""

    @property
    def other_changes(self) -> str:
        """Return how the run departs from its recipe, beside what `game` covers."""
        changes = re.split(r", (?=[\w./@+~]+=)", self.result.variant or "")
        if self.plays_mosaic:
            weights = {f"method.{name}" for name in self.missing_losses}
            changes = [change for change in changes if not GAME_CHANGES.fullmatch(change)
                       and change.partition("=")[0] not in weights]  # fmt: skip
        return ", ".join(changes)

    @property
    def models(self) -> str:
        """Return the data set and the models: runs that differ in these share no plot."""
        pair = f", {self.result.teacher} to {self.result.student}" if self.result.teacher else ""
        return f"{self.result.dataset}{pair}"

    @property
    def setting(self) -> str:
        """Return all that tells runs apart, beside what an ablation changes and the seed."""
        parts = (
            self.models,
            self.training_images and f"from {self.training_images}",
            self.other_changes,
        )
        return ", ".join(part for part in parts if part)


def select_runs(folders: Sequence[Path], *, finished: bool = True) -> list[Run]:
    """Return all runs below some folders. finished: only these, and one a seed.

    Raises UserError where there are none.
    """
    selected = []
    for run in load_runs(folders):
        if run.result is None:
            warn_left_out(run.run_dir, run.problem or f"{run.state}, no result.json")
        elif finished and not run.finished:
            error = f" ({run.result.error})" if run.result.error else ""
            warn_left_out(run.run_dir, f"{run.state} at step {run.steps}{error}")
        else:
            selected.append(run)
    if not selected:
        which = "no finished run" if finished else "no run"
        raise UserError(f"{which} below {', '.join(map(str, folders))}")
    if finished:
        frame, notes = one_per_seed(to_frame(selected))
        selected = list(frame["run"])
        for note in notes:
            log.warning("%s", note)
    return [Run(run.run_dir, run.result, run.run_dir.read_run_key())
            for run in selected if run.result]  # fmt: skip


def drawable(runs: Sequence[Run], problem: Callable[[Run], str | None]) -> list[Run]:
    """Return the runs that have no `problem`; it may also raise one as a UserError.

    Raises UserError where none is left.
    """
    selected = []
    for run in runs:
        try:
            reason = problem(run)
        except UserError as error:
            reason = str(error)
        if reason:
            warn_left_out(run.run_dir, reason)
        else:
            selected.append(run)
    if not selected:
        raise UserError("none of these runs can be drawn")
    return selected


def warn_left_out(run: RunDir, reason: str) -> None:
    log.warning("left out: %s: %s", run.path, reason)


def label_runs(runs: Sequence[Run]) -> list[str]:
    """Return a label for each run, as short as tells them apart.

    Runs of the same label differ by their seeds only, if they have the same `models`.
    """
    games = {run.game for run in runs if run.plays_mosaic}
    labels = [short(run.result.method) if run.plays_mosaic and len(games) == 1 else run.game
              for run in runs]  # fmt: skip
    for word, detail in (("on", "training_images"), ("with", "other_changes")):
        details: dict[str, set[str]] = {}
        for run, label in zip(runs, labels, strict=True):
            details.setdefault(label, set()).add(getattr(run, detail))
        labels = [
            f"{label} {word} {text}"
            if len(details[label]) > 1 and (text := getattr(run, detail)) else label
            for run, label in zip(runs, labels, strict=True)
        ]  # fmt: skip
    return labels
