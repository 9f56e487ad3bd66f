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
from typing import Any, NamedTuple

import torch
from hydra import compose
from omegaconf import DictConfig
from torch import nn

from mosaickd.components import build
from mosaickd.config.run_key import run_key
from mosaickd.data.loader import TestBatches
from mosaickd.data.subset import fingerprint
from mosaickd.engine import distributed
from mosaickd.engine.device import Compute, describe_device, eagerly
from mosaickd.engine.evaluate import evaluate
from mosaickd.engine.interruption import Interruption
from mosaickd.errors import UserError, printable
from mosaickd.load_data import RunData
from mosaickd.models.weights import load_weights, weights_digest
from mosaickd.run_dir import Result, RunDir, differences
from mosaickd.tracking import TEACHERS
from mosaickd.utils.files import (
    file_digest,
    read_json,
    remove_temporaries,
    user_cache,
    write_atomically,
    write_json,
)
from mosaickd.utils.locks import build_lock

log = logging.getLogger(__name__)

#: `mosaickd.launch.launch`: to train a teacher is a run of its own.
Launch = Callable[[DictConfig, Path, Interruption, str], Result]

#: Points by which a measurement may fall below a record: another device or precision rounds
#: a few borderline images differently, wrong weights or wrong images cost far more.
TOLERANCE = 0.5

#: The settings of a training run that make a teacher what it is.
RECIPE = ("dataset.", "student.", "players.",
          "train.epochs", "train.steps", "train.batch_size", "train.clip")  # fmt: skip


class TeacherFile(NamedTuple):
    """Where a teacher lies, and the config it is trained by; None where the user named the file."""

    path: Path
    recipe: DictConfig | None


def get_or_train(
    cfg: DictConfig,
    run: RunDir,
    launch: Launch,
    interruption: Interruption,
    *,
    cut_short: int | None,
    discard: bool,
) -> TeacherFile:
    """Return where the run's teacher lies; train it first, once, where it is missing.

    cut_short: where the run is cut to so many steps, a teacher that it must train for itself is cut
    as well and stays in the run's folder: no other run should find it. discard: remove such a one
    of an earlier run. Many runs may ask for the same teacher at once: one trains, the others wait.
    Under torchrun all ranks train it together.
    """
    if cfg.teacher.get("checkpoint") is not None:
        return TeacherFile(Path(cfg.teacher.checkpoint).expanduser(), None)
    path = teacher_path(cfg)
    missing = distributed.rank0_only(lambda: not path.exists())
    if missing and cfg.teacher_missing == "error":
        raise UserError(
            f"no teacher at {path}: train it with method=scratch, name a file with "
            "teacher.checkpoint=FILE, or let this run train it (teacher_missing=train)"
        )
    if missing and cut_short is not None:
        log.info("no teacher at %s, and this run is cut to %d steps: so is the teacher it trains "
                 "for itself; its numbers mean little", path, cut_short)  # fmt: skip
        path = run.path / "teacher" / path.name
        if discard:
            distributed.rank0_only(partial(remove, path))
    recipe = scratch_config(cfg, cfg.teacher, cut_short if missing else None)
    if distributed.rank0_only(path.exists):
        return TeacherFile(path, recipe)

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.stem}.making")
    with distributed.rank0_holds(partial(build_lock, lock, str(path))):
        if not distributed.rank0_only(path.exists):  # another run may have made it meanwhile
            log.info("no teacher at %s: training it first, once", path)
            folder = training_folder(path)
            try:
                launch(recipe, folder, interruption, TEACHERS)
            except distributed.LostProcess:
                raise
            except UserError as error:
                raise UserError(
                    f"while training the teacher {cfg.teacher.name} ({error}); its recipe is "
                    "dataset.recipe.*, and teacher.checkpoint=FILE takes a trained one instead"
                ) from error
            distributed.rank0_only(lambda: install(folder, path))
    return TeacherFile(path, recipe)


def load_and_measure(
    cfg: DictConfig,
    teacher: nn.Module,
    file: TeacherFile,
    data: RunData,
    test_batches: TestBatches,
    compute: Compute,
) -> float:
    """Fill the teacher with weights; return its accuracy on the test images, in percent.

    Raises UserError where the file is not the teacher that was meant: another recipe than this run
    would train it by, a lower accuracy than its record says, predictions that are not finite.
    """
    record = load(teacher, file.path)
    if file.recipe is not None and "recipe" in record:
        check_recipe(differences(record["recipe"], run_key(file.recipe)), file.path)

    def measure() -> float:
        with eagerly():
            return evaluate(teacher, test_batches, autocast=compute.autocast).top1

    accuracy = cached_accuracy(accuracy_key(cfg, teacher, data, test_batches, compute), measure)
    log.info("teacher %s: %.2f %% on %s", file.path, accuracy, cfg.dataset.name)
    check_accuracy(accuracy, record, file.path)
    return round(accuracy, 4)


def accuracy_key(
    cfg: DictConfig,
    teacher: nn.Module,
    data: RunData,
    test_batches: TestBatches,
    compute: Compute,
) -> str:
    """Return a hash of what the teacher's accuracy depends on: weights, images, arithmetic.

    Some predictions are part of it, for the network's code.
    """
    images, _ = next(iter(test_batches))
    with torch.no_grad(), compute.autocast(), eagerly():
        logits = teacher(images[:100])
    if not torch.isfinite(logits).all():
        raise UserError(
            f"the teacher {cfg.teacher.name} predicts values that are not finite: of its weights "
            "(the statistics of batch norms, too), dataset.mean and dataset.std, some are wrong"
        )
    domain = data.sources["dataset"]
    device = f"{describe_device(compute.device)}, {compute.precision}"
    facts = (weights_digest(teacher), fingerprint(data.test), domain.mean, domain.std, device,
             torch.__version__, logits.argmax(dim=1).tolist())  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def offer(cfg: DictConfig, run: RunDir) -> None:
    """Make a finished run of the data set's own scratch recipe the teacher, if there is none."""
    if cfg.method.name != "scratch" or not distributed.rank0_only(run.has_student):
        return
    changes = differences(run_key(scratch_config(cfg, cfg.student)), run_key(cfg))
    path = teacher_path(cfg, "student")
    if recipe_changes(changes):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with distributed.rank0_holds(
        partial(build_lock, path.with_name(f".{path.stem}.making"), str(path))
    ):
        if distributed.rank0_only(path.exists):
            return
        distributed.rank0_only(lambda: install(run.path, path))
    log.info("this is now the teacher %s", path)


# ----------------------------------------------------------------------------- recipes and places

#: Settings of `train` that belong to a method, not to how things are computed and watched.
METHOD_SETTINGS = ("epochs", "epoch_steps", "batch_size", "eval_every", "clip", "sync_batch_norm")


def scratch_config(cfg: DictConfig, model: DictConfig, steps: int | None = None) -> DictConfig:
    """Return the config that trains `model` on this run's data set by the data set's own recipe."""
    scratch = compose("config", overrides=["method=scratch"])
    scratch.dataset = cfg.dataset
    scratch.student = model.copy()
    if "checkpoint" in scratch.student:
        scratch.student.checkpoint = None
    scratch.tracker = cfg.tracker
    scratch.device = cfg.device
    for setting in cfg.train:  # how it computes and is watched; how long is the recipe's
        if setting not in METHOD_SETTINGS:
            scratch.train[setting] = cfg.train[setting]
    scratch.train.steps = steps
    return scratch


def teacher_path(cfg: DictConfig, role: str = "teacher") -> Path:
    """Return where the teacher of this run's data set and architecture lives."""
    folder = Path(cfg.teachers_dir) / build(cfg.dataset).label
    return folder / f"{cfg[role].name}.safetensors"


def training_folder(path: Path) -> Path:
    """Return where the run lies that trains the teacher for `path`."""
    return path.with_name(f"{path.stem}-training")


# ---------------------------------------------------------------------------------- one teacher


def install(run: Path, path: Path) -> None:
    """Copy the student of a finished scratch run to `path`, its record beside it."""
    remove_temporaries(path.parent, of=path.stem)
    trained = RunDir(run)
    weights = trained.student.read_bytes()
    result = trained.read_result()
    assert result is not None, "a finished run has a result"
    record = {
        "accuracy": result.last,
        "recipe": read_json(trained.run_key),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "steps": result.steps,
        "seconds": result.seconds,
        "device": result.device,
        "versions": result.versions,
        "code": result.code,
        "data_fingerprint": result.data_fingerprint,
    }
    write_json(path.with_suffix(".json"), record)  # first: weights without a record say less
    write_atomically(path, lambda file: file.write(weights))


def remove(path: Path) -> None:
    """Remove a teacher, its record, and the run that trained it."""
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    if training_folder(path).is_dir():
        shutil.rmtree(training_folder(path))


def load(teacher: nn.Module, path: Path) -> dict[str, Any]:
    """Fill a frozen teacher with weights; return what is recorded of them."""
    record = load_weights(teacher, path, role="teacher")
    digest = record.get("sha256")
    if digest and path.suffix == ".safetensors" and file_digest(path) != digest:
        raise UserError(
            f"{path} is not the file that {path.with_suffix('.json')} describes: delete "
            "both to train this teacher anew, or the JSON if you replaced the weights"
        )
    return record


def cached_accuracy(key: str, measure: Callable[[], float]) -> float:
    """Return what `measure` came to in an earlier run of this user with the same `key`, or now.

    On a CPU measuring takes longer than all else before the first iteration.
    """

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
    """Return those of the differences (`path: old -> new`) that make another teacher.

    Where the images lie, how the arithmetic is done and the seed may differ.
    """
    return [line for line in differences if line.startswith(RECIPE) and "root:" not in line]


def check_recipe(differences: list[str], path: Path) -> None:
    """Raise UserError for a teacher that is not the one that this run would have trained.

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
    """Raise UserError for a teacher that is worse than its record says: another one was meant."""
    recorded = record.get("accuracy")
    if recorded is not None and measured < recorded - TOLERANCE:
        raise UserError(
            f"the teacher {path} reaches {measured:.2f} % here, but its record says "
            f"{recorded:.2f} %: other test images, other statistics or another class order than "
            "those it was trained with"
        )
