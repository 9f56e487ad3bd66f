"""What Hydra runs for each job: one run, in a process that may be one rank of several.

Launcher plugins hand `task` to other processes by this module's name, so that the import registers
there what a config needs.
"""

from __future__ import annotations

import gc
import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mosaickd import analysis
from mosaickd.cli import ignore_broken_pipe
from mosaickd.config.schema import register
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.errors import UserError
from mosaickd.parallel import take_share
from mosaickd.sweep import report_job

if TYPE_CHECKING:
    from mosaickd.run_dir import Result

register()

log = logging.getLogger(__name__)

#: Log records with this flag go to run.log, not to the console.
QUIET = {"console": False}


def task(cfg: DictConfig) -> float | None:
    """Run one job. Returns the student's last accuracy in percent, for sweepers that search."""
    try:
        with report_job() as results:
            results.append(run_job(cfg))
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    return results[0].last


def run_job(cfg: DictConfig) -> Result:
    """Launch the run of a Hydra job, alone or as one of a sweep. Returns its result."""
    from mosaickd import teachers  # late: --help and --cfg answer without torch
    from mosaickd.engine import distributed
    from mosaickd.launch import launch
    from mosaickd.locks import InUse
    from mosaickd.run_dir import Result, RunDir

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    sweeping = hydra.mode == RunMode.MULTIRUN
    group = None
    if sweeping:
        group = hydra.runtime.choices.get("sweep") or Path(hydra.sweep.dir).name
    interruption = Interruption()
    try:
        distributed.init()
        if not distributed.is_rank0():
            mute_rank()
        with interruption.handling():
            take_share(cfg, hydra)
            result = launch(cfg, folder, interruption, group)
            teachers.offer(cfg, RunDir(folder))
    except InUse as error:
        if not sweeping:
            sys.exit(f"error: {error}" if distributed.is_rank0() else 1)
        log.info("%s is being run by another process: left to it", folder, extra=QUIET)
        return Result("running elsewhere", cfg.method.name, cfg.dataset.name, cfg.student.name,
                      cfg.seed)  # fmt: skip
    except UserError as error:
        # A sweep goes on with its next job, so each job's mistake is reported where it ends; a
        # single run's is the last thing that the command prints.
        together = distributed.all_ranks_failed()
        error.reported |= together and not distributed.is_rank0()
        if not error.reported:
            log.error("%s: %s", folder, error, extra=QUIET)
        if not sweeping or not together:  # past Hydra, which would print all overrides before it
            distributed.give_up()
            sys.exit(1 if error.reported or sweeping else f"error: {error}")
        interruption.check()  # asked to stop while the job was failing: no next one
        raise
    except Exception:
        if distributed.world_size() > 1:  # nobody can begin the next job together
            log.exception("rank %d failed", distributed.rank())
            distributed.give_up()
            sys.exit(1)
        raise
    finally:
        if sweeping:
            release_job(sys.exception())
    if distributed.is_rank0() and not sweeping:  # a sweep ends with a table of all its jobs
        with ignore_broken_pipe():
            analysis.show_run(folder)
    return result


def mute_rank() -> None:
    """Leave run.log and the terminal to rank 0; of this rank, only errors are shown."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
        else:
            handler.setLevel(logging.ERROR)


def release_job(error: BaseException | None) -> None:
    """Free what a sweep's job has used, for the next one.

    Hydra keeps the errors of jobs to the sweep's end, and their tracebacks keep whole networks.
    """
    import torch

    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
