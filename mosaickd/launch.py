"""A run, from its config to its result.json: config -> parts -> fit -> result."""

from __future__ import annotations

import gc
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mosaickd import analysis, run_setup, teachers, tracking
from mosaickd.build import scratch_config, teacher_path
from mosaickd.config.run_key import config_hash, differences, identity, variant
from mosaickd.config.schema import images_of, needs
from mosaickd.config.validation import validate
from mosaickd.data import pictures
from mosaickd.engine import distributed
from mosaickd.engine.device import out_of_memory
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.engine.loop import TrainState
from mosaickd.engine.progress import counting
from mosaickd.errors import UserError
from mosaickd.fit import Fit
from mosaickd.git_info import code_version
from mosaickd.locks import InUse, Lost, owned
from mosaickd.parallel import share_of_machine
from mosaickd.programs import ignore_broken_pipe

log = logging.getLogger(__name__)

#: Of what is told otherwise, or later: it goes into run.log only.
QUIET = {"console": False}


def launch(cfg: DictConfig) -> dict[str, Any]:
    """The task of a Hydra job: validate, run, show. Returns what result.json says."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    sweeping = hydra.mode == RunMode.MULTIRUN
    group = hydra.runtime.choices.get("sweep") or Path(hydra.sweep.dir).name if sweeping else None
    interruption = Interruption()
    try:
        distributed.init()
        pictures.counting = counting  # one board for all that is shown
        if not distributed.is_rank0():
            leave_talking_to_the_first()
        distributed.rank0_only(lambda: check(cfg))
        owning = distributed.rank0_holds(partial(owned, folder))
        with explained(cfg, folder, {}), interruption.handling(), owning, share_of_machine(cfg):
            result = run(cfg, folder, interruption, group)
            offer_as_teacher(cfg, folder, result)
    except InUse as error:
        if not sweeping:
            sys.exit(f"error: {error}" if distributed.is_rank0() else 1)
        log.info("%s is being run by another process: left to it", folder, extra=QUIET)
        return {"status": "running elsewhere"}
    except UserError as error:
        # A sweep goes on with its next cell, so each cell's mistake is told where it ends
        # (`cells.told`); a single run's is the last thing that the command prints.
        together = distributed.all_ranks_failed()
        error.told |= together and not distributed.is_rank0()
        if not error.told:
            log.error("%s: %s", folder, error, extra=QUIET)
        if not sweeping or not together:  # past Hydra, which would print all overrides before it
            distributed.give_up()
            sys.exit(1 if error.told or sweeping else f"error: {error}")
        interruption.check()  # asked to stop while the cell was failing: no next one
        raise
    except Exception:
        if distributed.world_size() > 1:  # nobody can begin the next cell together
            log.exception("process %d failed", distributed.rank())
            distributed.give_up()
            sys.exit(1)
        raise
    finally:
        if sweeping:
            empty_frames(sys.exception())
            release_memory()
    if distributed.is_rank0() and not sweeping:  # a sweep ends with a table of all its cells
        with ignore_broken_pipe():
            analysis.show_run(folder)
    return result


def check(cfg: DictConfig) -> None:
    """Raise a UserError for what can't be meant, or can't be played by so many processes."""
    validate(cfg)
    if HydraConfig.get().job.chdir:
        raise UserError(
            "hydra.job.chdir=true would have relative paths (teachers_dir, the images' roots) "
            "begin in the run's folder: leave it out"
        )
    distributed.rank_slice(cfg.train.batch_size)


def leave_talking_to_the_first() -> None:
    """Of several processes that play a run together, one fills run.log and the terminal."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
        else:
            handler.setLevel(logging.ERROR)


def run(
    cfg: DictConfig, folder: Path, interruption: Interruption, group: str | None = None
) -> dict[str, Any]:
    """Fit in `folder`: begin, go on from its checkpoint, or skip what is finished there."""
    chosen = json.loads(json.dumps(identity(cfg)))
    if (folder / "checkpoints").resolve() == Path(cfg.teachers_dir).resolve():
        raise UserError(
            f"the run's own checkpoints would lie among the teachers in {cfg.teachers_dir}: "
            "choose another hydra.run.dir=FOLDER or teachers_dir=FOLDER"
        )
    before, discards = distributed.rank0_only(lambda: run_setup.enter(cfg, folder, chosen))
    if before.get("status") == "finished":
        log.info("%s is finished: nothing to do (force=true runs it anew)", folder,
                 extra={"console": group is None})  # fmt: skip
        if distributed.is_rank0():
            tracking.tell_again(cfg, folder, before, group)
        return before | {"skipped": True}

    parts = needs(cfg)
    result: dict[str, Any] = {
        "status": "failed",
        "method": cfg.method.name,
        "dataset": cfg.dataset.name,
        "ood": cfg.ood.name if images_of(cfg) == "ood" else None,
        "ood_subset": bool(images_of(cfg) == "ood" and cfg.ood_subset),
        "teacher": cfg.teacher.name if "teacher" in parts else None,
        "student": cfg.student.name,
        "seed": cfg.seed,
        "variant": variant(cfg),
        # What an earlier session of this run came to stays true until this one gets further.
        "accuracy": before.get("accuracy", TrainState().accuracy),
        "teacher_accuracy": before.get("teacher_accuracy"),
        "steps": before.get("steps", 0),
        "total_steps": before.get("total_steps"),
        "seconds": before.get("seconds", 0.0),
        "seconds_per_step": before.get("seconds_per_step"),
        "broken_images": before.get("broken_images", {}),
        "device": None,
        "memory_mb": None,
        "processes": distributed.world_size(),
        "versions": versions(),
        "config_hash": config_hash(chosen),
        "code": code_version(),
        "data_fingerprint": before.get("data_fingerprint"),
        "teacher_fingerprint": before.get("teacher_fingerprint"),
        "error": None,
    }
    discard: Callable[[], None] | None = None
    if discards:
        log.info("force=true: the run in %s is discarded as soon as this one can begin", folder)
        discard = partial(run_setup.discard, cfg, folder, chosen)
    fit: Fit | None = None

    def another_lies_there() -> bool:
        return discards and (fit is None or fit.discard is not None)

    try:
        with explained(cfg, folder, result):
            if distributed.is_rank0() and not discards:  # for those who look from outside
                run_setup.keep_result(folder, result | {"status": "preparing"})
            fit = Fit(cfg, folder, interruption, group, result, run, discard)
            fit.fit()
        result["status"] = "finished"
    except Interrupted as stop:
        result |= {"status": "interrupted", "error": str(stop)}
        if another_lies_there():
            log.info("%s before it began: nothing was discarded", stop)
        else:
            same = "the same command, without force=true," if cfg.force else "the same command"
            log.info("%s at step %d; %s goes on from there", stop, result["steps"], same)
        raise
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
        if not isinstance(error, UserError):
            log.exception("the run in %s failed", folder)
        raise
    finally:
        if result["status"] == "running":
            result["status"] = "failed"
        lost = isinstance(sys.exception(), Lost)
        if distributed.is_rank0() and not lost and not another_lies_there():
            run_setup.keep_result(folder, result)
    return result


@contextmanager
def explained(cfg: DictConfig, folder: Path, result: dict[str, Any]) -> Iterator[None]:
    """What the machine lacks (memory, room on the disk) as a UserError: what to do about it.

    result: of a run under way, or empty.
    """
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise UserError(
            f"{error.strerror or error}{where}{at_step(result)}. What was written before is whole, "
            "and the same command goes on from there when that is mended; "
            f"hydra.run.dir=FOLDER chooses another place than {folder}"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if (reason := out_of_memory(error)) is None:
            raise
        size = cfg.dataset.image_size
        raise UserError(
            f"out of memory{at_step(result)}, with train.batch_size={cfg.train.batch_size} and "
            f"images of {size}x{size} on {result.get('device') or cfg.device} ({reason}). Lower "
            "train.batch_size (train.eval_batch_size, if it came while testing), image_size or "
            "the size of the networks; train.precision=bf16 halves what a batch takes"
        ) from error


def at_step(result: dict[str, Any]) -> str:
    return f" at step {result['steps']}" if "steps" in result else ""


def offer_as_teacher(cfg: DictConfig, folder: Path, result: dict[str, Any]) -> None:
    """A finished run of the data set's own scratch recipe becomes the teacher, if none is there."""
    if result["status"] != "finished" or cfg.method.name != "scratch":
        return
    if not distributed.rank0_only(lambda: run_setup.has_weights(folder)):
        return
    changes = differences(identity(scratch_config(cfg, cfg.student)), identity(cfg))
    path = teacher_path(cfg, "student")
    offered = not teachers.recipe_changes(changes)
    if offered and not distributed.rank0_only(path.exists):
        teachers.obtain(path, missing="train", train=lambda: folder)
        log.info("this is now the teacher %s", path)


def empty_frames(error: BaseException | None) -> None:
    """Hydra keeps the errors of a sweep's cells to its end: not also the networks and images that
    the frames of their tracebacks hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def release_memory() -> None:
    """Between the cells of a sweep: what one has used is the next one's."""
    gc.collect()  # a run's parts refer to each other
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("mosaickd", "torch", "torchvision", "hydra-core"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
