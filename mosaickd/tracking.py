"""A run as trackers file it: its name, group and tags, and what its end has to say."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mosaickd import metric_names
from mosaickd.build import build
from mosaickd.config.schema import to_plain
from mosaickd.engine.loop import PER_CLASS
from mosaickd.engine.trackers import Tracked, Tracker
from mosaickd.errors import UserError
from mosaickd.files import read_json

log = logging.getLogger(__name__)

#: The group of teachers that are trained because a run needs them.
TEACHERS = "teachers"


def title(result: dict[str, Any]) -> str:
    """A run in a few words."""
    r = result
    pair = f"{r['teacher']} to {r['student']}" if r["teacher"] else r["student"]
    images = f"{r['dataset']} from {r['ood']}" if r["ood"] else r["dataset"]
    return f"{r['method']}: {images}, {pair}, seed {r['seed']}"


def tracked(cfg: DictConfig, folder: Path, result: dict[str, Any], group: str | None) -> Tracked:
    """result: what result.json says of the run."""
    r = result
    images = [f"{r['ood']}-subset"] if r.get("ood_subset") else [r["ood"]]
    pair = f"{r['teacher']}-{r['student']}" if r["teacher"] else r["student"]
    tags = [r["dataset"], *images, pair]
    return Tracked(
        folder=folder,
        settings=to_plain(cfg),
        name=title(r),
        group=group,
        job_type=r["method"],
        tags=tuple(tag for tag in tags if tag),
        asked_for=group != TEACHERS,
    )


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Last and best, whatever the last session of the run has logged."""
    accuracy = result["accuracy"]
    numbers = {
        metric_names.TOP1: accuracy["last"],
        metric_names.TOP5: accuracy.get("top5_last"),
        metric_names.BEST: accuracy["best"],
        metric_names.BEST_STEP: accuracy.get("best_step"),
        metric_names.TEACHER: result["teacher_accuracy"],
    }
    return {name: value for name, value in numbers.items() if value is not None}


def show_classes(tracker: Tracker, folder: Path) -> None:
    """The last evaluation's accuracy, class by class."""
    try:
        content = read_json(folder / PER_CLASS) or {"classes": []}
        rows = [
            [row["class"], row["images"], 100 * row["right"] / row["images"]]
            for row in content["classes"]
            if row["images"]
        ]
    except (UserError, LookupError, TypeError) as error:  # somebody's edit: no run fails by it
        log.warning("%s can't be read (%s)", folder / PER_CLASS, error)
        return
    tracker.table(metric_names.PER_CLASS, ["class", "test images", "accuracy"], rows)


def tell_again(cfg: DictConfig, folder: Path, result: dict[str, Any], group: str | None) -> None:
    """What a finished run came to, where an agent of a W&B sweep has asked for it: to the sweep a
    trial that is silent has failed."""
    if not os.environ.get("WANDB_SWEEP_ID") or group == TEACHERS:
        return
    tracker: Tracker = build(cfg.tracker, run=tracked(cfg, folder, result, group))
    tracker.resume(result["steps"])
    show_classes(tracker, folder)
    tracker.finish("finished", summary(result))
