"""Teachers: found, or trained once under a lock; measured before anything is distilled.

A teacher lives in <teachers_dir>/<dataset>/<model>.safetensors, with its record in a JSON file
beside it: {"accuracy", "recipe", "sha256", ...}.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from mosaickd.engine import distributed
from mosaickd.errors import UserError, printable
from mosaickd.files import (
    file_digest,
    read_json,
    remove_temporaries,
    user_cache,
    write_atomically,
    write_json,
)
from mosaickd.locks import build_lock
from mosaickd.models.weights import load_weights

log = logging.getLogger(__name__)

#: Points by which a measurement may fall below a record: another device or precision rounds
#: a few borderline images differently, wrong weights or wrong images cost far more.
TOLERANCE = 0.5

#: The settings of a training run that make a teacher what it is.
RECIPE = ("dataset.", "student.", "players.",
          "train.epochs", "train.steps", "train.batch_size", "train.clip")  # fmt: skip


def obtain(path: Path, *, missing: str, train: Callable[[], Path]) -> None:
    """Make sure that a teacher is at `path`.

    missing: "train" or "error". train: trains one and returns the finished run's folder. Many
    runs may ask for the same teacher at once: one trains, the others wait for it. Of several
    processes that play a run together, all train.
    """
    if distributed.rank0_only(path.exists):
        return
    if missing == "error":
        raise UserError(
            f"no teacher at {path}: train it with method=scratch, name a file with "
            "teacher.checkpoint=FILE, or let this run train it (teacher_missing=train)"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.stem}.making")
    with distributed.rank0_holds(partial(build_lock, lock, str(path))):
        if not distributed.rank0_only(
            path.exists
        ):  # while this run waited, another may have made it
            log.info("no teacher at %s: training it first, once", path)
            folder = train()
            distributed.rank0_only(lambda: install(folder, path))


def install(run: Path, path: Path) -> None:
    """Copy the student of a finished scratch run to `path`, its record beside it."""
    remove_temporaries(path.parent, of=path.stem)
    weights = (run / "student.safetensors").read_bytes()
    result = read_json(run / "result.json")
    record = {
        "accuracy": result["accuracy"]["last"],
        "recipe": read_json(run / "config.json"),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "steps": result["steps"],
        "seconds": result["seconds"],
        "device": result["device"],
        "versions": result["versions"],
        "code": result["code"],
        "data_fingerprint": result["data_fingerprint"],
    }
    write_json(path.with_suffix(".json"), record)  # first: weights without a record say less
    write_atomically(path, lambda file: file.write(weights))


def training_folder(path: Path) -> Path:
    """Where the run that trains the teacher for `path` lies."""
    return path.with_name(f"{path.stem}-training")


def remove(path: Path) -> None:
    """A teacher, its record, and the run that trained it."""
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    if training_folder(path).is_dir():
        shutil.rmtree(training_folder(path))


def load(teacher: nn.Module, path: Path) -> dict[str, Any]:
    """Fill a frozen teacher with weights; -> what is recorded of them."""
    record = load_weights(teacher, path, role="teacher")
    digest = record.get("sha256")
    if digest and path.suffix == ".safetensors" and file_digest(path) != digest:
        raise UserError(
            f"{path} is not the file that {path.with_suffix('.json')} describes: delete "
            "both to train this teacher anew, or the JSON if you replaced the weights"
        )
    return record


def measured(key: str, measure: Callable[[], float]) -> float:
    """What `measure` comes to, or came to in an earlier run of this user with the same `key`: on
    a CPU it takes longer than all else before the first iteration."""

    def recall() -> float | None:
        try:
            return float(json.loads((user_cache() / "accuracies" / f"{key}.json").read_text()))
        except (OSError, RuntimeError, ValueError, TypeError):
            return None

    def remember() -> None:
        with suppress(OSError, RuntimeError):
            write_json(user_cache() / "accuracies" / f"{key}.json", accuracy)

    accuracy = distributed.rank0_only(recall)
    if accuracy is None:
        accuracy = measure()
        distributed.rank0_only(remember)
    return accuracy


def recipe_changes(differences: list[str]) -> list[str]:
    """Those of the differences (`path: old -> new`) that make another teacher.

    Where the images lie, how the arithmetic is done and the seed may differ.
    """
    return [line for line in differences if line.startswith(RECIPE) and "root:" not in line]


def check_recipe(differences: list[str], path: Path) -> None:
    """A teacher that was found must be the one that this run would have trained.

    differences: between the recorded training run and that one.
    """
    changes = recipe_changes(differences)
    if changes:
        shown = "; ".join(printable(line, 200) for line in changes[:5])
        raise UserError(
            f"the teacher {path} was trained with other settings ({shown}). "
            "Remove it to train one with these, choose another folder with teachers_dir=FOLDER, "
            f"or take it all the same with teacher.checkpoint={path}"
        )


def check_accuracy(measured: float, record: dict[str, Any], path: Path) -> None:
    """A teacher that is worse than its record says is not the teacher that was meant."""
    recorded = record.get("accuracy")
    if recorded is not None and measured < recorded - TOLERANCE:
        raise UserError(
            f"the teacher {path} reaches {measured:.2f} % here, but its record says "
            f"{recorded:.2f} %: other test images, other statistics or another class order than "
            "those it was trained with"
        )
