"""Cells of a sweep side by side on one machine: what Hydra's launcher plugins leave to us.

The command that a user starts is the parent. The processes in which a plugin runs the cells share a
folder of its slots, numbers that a lock gives to one cell at a time. A cell's number chooses its
CUDA device; by the locks the parent sees when all cells have stopped.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from mosaickd.engine.interruption import Interrupted
from mosaickd.locks import InUse, run_lock

log = logging.getLogger(__name__)

#: Where the processes of a sweep find their folder of slots: a variable of their environment.
SLOTS = "MOSAICKD_SLOTS"

#: Seconds that a stopped sweep waits for its cells' checkpoints.
PATIENCE = 60.0


def at_once(hydra: Any, cores: int) -> int | None:
    """How many cells share this machine; None where a run has it to itself or a cluster divides."""
    if hydra.mode != RunMode.MULTIRUN:
        return None
    if "n_jobs" in hydra.launcher:  # joblib; negative numbers count down from all cores
        jobs = hydra.launcher.n_jobs or 1
        return int(jobs) if jobs > 0 else max(1, cores + 1 + jobs)
    if hydra.launcher._target_.endswith(".LocalLauncher"):  # submitit: a batch, or all cells
        return hydra.sweeper.get("max_batch_size") or 1
    return None


def available_cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# -------------------------------------------------------------------------------------- in a cell


@contextmanager
def share_of_machine(cfg: DictConfig) -> Iterator[None]:
    """Inside, `cfg.device` and PyTorch's threads are this cell's part of the machine."""
    folder, cores = os.environ.get(SLOTS), available_cores()
    cells = at_once(HydraConfig.get(), cores)
    if folder is None or cells is None:
        yield
        return
    import torch  # late: the parent needs none

    from mosaickd.engine import terminal

    with slot(Path(folder)) as number:
        if (Path(folder) / "stop").exists():
            raise Interrupted(signal.SIGTERM)
        cfg.device = device_of(number, cfg.device, torch.cuda.device_count())
        # Fewer where OMP_NUM_THREADS says so.
        torch.set_num_threads(min(torch.get_num_threads(), max(1, cores // cells)))
        terminal.bars = False  # several would write over each other
        yield


def device_of(number: int, asked: str, count: int) -> str:
    """Slot `number`'s device where there are `count`; one that was asked for by number holds."""
    if asked in ("auto", "cuda") and count > 1:
        return f"cuda:{number % count}"
    return asked


@contextmanager
def slot(folder: Path) -> Iterator[int]:
    """Hold the lowest number that no other process holds; a kill releases it.

    A process that had one before takes it again if it can: each device that it uses costs memory.
    """
    before = _last.get(folder)
    numbers = itertools.count() if before is None else itertools.chain([before], itertools.count())
    with ExitStack() as held:
        for number in numbers:
            place = folder / f"slot{number}"
            place.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(run_lock(place))
            except InUse:
                continue
            _last[folder] = number
            yield number
            return


_last: dict[Path, int] = {}


# ---------------------------------------------------------------------------------- in the parent


class SideBySide(Callback):
    """Prepares a sweep for a launcher that runs several cells at a time on this machine."""

    folder: tempfile.TemporaryDirectory[str] | None = None  # of the class: instances are pickled

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if at_once(config.hydra, available_cores()) is None:
            return
        SideBySide.folder = tempfile.TemporaryDirectory(prefix="mosaickd-")
        os.environ[SLOTS] = SideBySide.folder.name
        launcher = config.hydra.launcher
        if "n_jobs" in launcher:
            if launcher.get("batch_size") == "auto":
                # After a few cells that are finished already, joblib would give several of those
                # that are not to one process, and none to the others.
                with read_write(config.hydra), open_dict(config.hydra):
                    launcher.batch_size = "1"
            stop_cells_on_signals()


def stop_cells_on_signals() -> None:
    """From here on Ctrl-C and SIGTERM stop the cells in order, and then this process.

    joblib would kill its processes at once. Those inherit blocked signals, so that the Ctrl-C of a
    terminal, which reaches them too, finds no process unprepared: a cell unblocks them while it can
    stop in order (`Interruption.handling`).
    """
    taken = (signal.SIGINT, signal.SIGTERM)
    for number in taken:
        signal.signal(number, _stop)
    # A thread that doesn't block them receives them; Python handles them in the main thread.
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, taken)


def _stop(number: int, frame: FrameType | None) -> None:
    """Have the cells write their checkpoints, wait for that, then raise Interrupted."""
    assert SideBySide.folder is not None
    folder = Path(SideBySide.folder.name)
    if (folder / "stop").exists():  # asked twice: joblib kills its processes
        raise Interrupted(number)
    log.info("stopping: each cell writes its checkpoint first (once more: at once)")
    (folder / "stop").touch()  # for cells that would begin now
    for pid in [child.pid for child in multiprocessing.active_children() if child.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while any(_taken(place) for place in folder.glob("slot*")):
        if time.monotonic() > deadline:
            log.info("some cells did not stop in time: they go on from their last checkpoint")
            break
        time.sleep(0.05)
    raise Interrupted(number)


def _taken(place: Path) -> bool:
    try:
        with run_lock(place):
            return False
    except InUse:
        return True
