"""What trackers are told of a run: its name, group and tags, and its summary at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mosaickd import metric_names
from mosaickd.components import build
from mosaickd.config.schema import to_plain
from mosaickd.engine.trackers import TrackedRun, Tracker
from mosaickd.run_dir import Result, RunDir

#: The group of teachers that are trained because a run required_inputs them.
TEACHERS = "teachers"


def run_title(result: Result) -> str:
    """Return a run's name for people: method, images, networks and seed."""
    pair = f"{result.teacher} to {result.student}" if result.teacher else result.student
    images = f"{result.dataset} from {result.ood}" if result.ood else result.dataset
    return f"{result.method}: {images}, {pair}, seed {result.seed}"


def run_heading(result: Result, group: str | None) -> str:
    """Return the run's title for a terminal: a teacher's training says that it is one."""
    if group != TEACHERS:
        return run_title(result)
    return f"teacher {result.student}: {result.dataset}, seed {result.seed}"


def tracked_run(cfg: DictConfig, folder: Path, result: Result, group: str | None) -> TrackedRun:
    """Return what a tracker is built with. group: the sweep, or TEACHERS."""
    ood = f"{result.ood}-subset" if result.ood_subset else result.ood
    pair = f"{result.teacher}-{result.student}" if result.teacher else result.student
    return TrackedRun(
        folder=folder,
        config=to_plain(cfg),
        name=run_title(result),
        group=group,
        job_type=result.method,
        tags=tuple(tag for tag in (result.dataset, ood, pair) if tag),
        requested=group != TEACHERS,
    )


def summary(result: Result) -> dict[str, Any]:
    """Return the last and the best accuracies by their metric names, without those not known."""
    numbers = {
        metric_names.TOP1: result.last,
        metric_names.TOP5: result.accuracy.get("top5_last"),
        metric_names.BEST: result.best,
        metric_names.BEST_STEP: result.accuracy.get("best_step"),
        metric_names.TEACHER: result.teacher_accuracy,
    }
    return {name: value for name, value in numbers.items() if value is not None}


def log_per_class(tracker: Tracker, folder: Path) -> None:
    """Log the last evaluation's accuracy of each class, in percent, as a table."""
    rows = [
        [row["class"], row["images"], 100 * row["right"] / row["images"]]
        for row in RunDir(folder).read_per_class()
        if row["images"]
    ]
    tracker.table(metric_names.PER_CLASS, ["class", "test images", "accuracy"], rows)


def report_finished(cfg: DictConfig, folder: Path, result: Result, group: str | None) -> None:
    """Tell the agent of a W&B sweep, if one has asked for it, what a finished run came to: for the
    sweep a trial that logs nothing has failed."""
    if not os.environ.get("WANDB_SWEEP_ID") or group == TEACHERS:
        return
    tracker: Tracker = build(cfg.tracker, run=tracked_run(cfg, folder, result, group))
    tracker.resume(result.steps)
    log_per_class(tracker, folder)
    tracker.finish("finished", summary(result))
