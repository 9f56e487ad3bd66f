"""What Hydra runs for each job: one run, in a process that may be one rank of several.

Launcher plugins hand `task` to other processes by this module's name, so that the import registers
there what a config needs.
"""

from __future__ import annotations

import gc
import logging
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mosaickd.cli import describe_os_error, ignore_broken_pipe
from mosaickd.cli.sweep import Sweep, share_machine
from mosaickd.config.schema import register
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.errors import CommandFailed, UserError

if TYPE_CHECKING:
    from mosaickd.run_dir import Result

register()

log = logging.getLogger(__name__)

#: Log records with this flag go to run.log, not to the console.
QUIET = {"console": False}


def task(cfg: DictConfig) -> Result:
    """Run one job, alone or as one of a sweep; return its result.

    Raises UserError where a sweep goes on with its next job, CommandFailed where none should
    follow, and SystemExit after a signal: what a launcher's processes hand on.
    """
    sweep = Sweep.current if HydraConfig.get().mode == RunMode.MULTIRUN else None
    try:
        result = run_job(cfg)
    except (Exception, CommandFailed, Interrupted, KeyboardInterrupt) as error:
        # Asked to stop while it was failing, a job has failed.
        reason = error.__cause__ if isinstance(error, Interrupted) else error
        if sweep is not None:
            failed = isinstance(reason, Exception | CommandFailed)
            sweep.end_job("failed" if failed else "interrupted", error=reason)
        if isinstance(error, Interrupted):
            raise SystemExit(error.exit_code) from None
        raise
    if sweep is not None:
        sweep.end_job("skipped" if result.skipped else result.status, result)
    return result


def run_job(cfg: DictConfig) -> Result:
    """Launch the run of a job; return its result."""
    try:  # late: --help and --cfg answer without torch
        from mosaickd import analysis, teachers
        from mosaickd.engine import distributed
        from mosaickd.launch import launch
        from mosaickd.run_dir import Result, RunDir
        from mosaickd.utils.locks import InUse
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise CommandFailed(UserError(f"a package can't be loaded: {reason}")) from error

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    group = None
    if hydra.mode == RunMode.MULTIRUN:
        group = hydra.runtime.choices.get("sweep") or Path(hydra.sweep.dir).name
    interruption = Interruption()
    try:
        distributed.init()
        if not distributed.is_rank0():
            mute_rank()
        with interruption.handling():
            share_machine(cfg)
            result = launch(cfg, folder, interruption, group)
            teachers.offer(cfg, RunDir(folder))
    except Exception as error:
        if isinstance(error, InUse) and group is not None:
            log.info("%s: left to it", error, extra=QUIET)
            return Result("running elsewhere", cfg.method.name, cfg.dataset.name, cfg.student.name,
                          cfg.seed)  # fmt: skip
        fail(error, folder, interruption, in_sweep=group is not None)
    finally:
        if group is not None:
            release_memory()
    if distributed.is_rank0() and group is None:  # a sweep ends with a table of all its jobs
        with ignore_broken_pipe():
            analysis.show_run(folder)
    return result


def fail(error: Exception, folder: Path, interruption: Interruption, *, in_sweep: bool) -> NoReturn:
    """Write down why a job failed; end the command, or only the job where a sweep can go on."""
    from mosaickd.engine import distributed

    together = distributed.all_ranks_failed()
    if isinstance(error, UserError):
        reason = error
        reason.reported |= together and not distributed.is_rank0()
        if not reason.reported:
            log.error("%s: %s", folder, error, extra=QUIET)
    elif isinstance(error, OSError):  # a full disk, before the run has begun
        reason = UserError(f"{folder}: {describe_os_error(error)}")
        log.error("%s", reason, extra=QUIET)
    else:
        log.error("the run in %s failed", folder, exc_info=error)
        reason = UserError(f"{folder}: {type(error).__name__}: {error} (run.log has more)")
    clear_frames(error)
    if in_sweep and together:
        try:
            interruption.check()
        except Interrupted as stop:  # asked while the job was failing: no next one
            raise stop from reason
        raise reason
    distributed.give_up()
    raise CommandFailed(reason)  # past Hydra, which would print all overrides before it


def clear_frames(error: BaseException | None) -> None:
    """Empty the frames of an error's tracebacks: Hydra keeps it, and they keep whole networks."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def mute_rank() -> None:
    """Leave run.log and the terminal to rank 0; of this rank, only errors are shown."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
        else:
            handler.setLevel(logging.ERROR)


def release_memory() -> None:
    """Free what a sweep's job has used, for the next one."""
    import torch

    gc.collect()  # a run's parts refer to each other
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
