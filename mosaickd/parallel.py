"""Jobs of a sweep side by side on one machine: what Hydra's joblib launcher leaves to us.

Each job takes its share of the processor's threads and the next CUDA device. Ctrl-C and SIGTERM
stop all jobs in order: joblib would kill their processes at once.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, open_dict, read_write

from mosaickd.engine import terminal
from mosaickd.engine.interruption import Interrupted
from mosaickd.locks import holder

log = logging.getLogger(__name__)

#: Of the environment: a file that exists once the sweep is to stop.
STOP_FILE = "MOSAICKD_STOP_FILE"

#: Seconds that a stopped sweep waits for its jobs' checkpoints.
PATIENCE = 60.0


def concurrent_jobs(hydra: Any) -> int:
    """Return how many jobs joblib runs at a time; 1 with every other launcher."""
    if "n_jobs" not in hydra.launcher:
        return 1
    jobs = hydra.launcher.n_jobs or 1  # negative: all cores but so many, plus one
    return int(jobs) if jobs > 0 else max(1, available_cores() + 1 + jobs)


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def take_share(cfg: DictConfig, hydra: Any) -> None:
    """Give a job its part of the machine: threads, and a device by its number in the sweep.

    Raises Interrupted where the sweep is to stop.
    """
    if (jobs := concurrent_jobs(hydra)) == 1:
        return
    import torch

    terminal.bars = False  # several would draw over each other
    if os.path.exists(os.environ.get(STOP_FILE, "")):
        raise Interrupted(signal.SIGTERM)
    devices = torch.cuda.device_count()
    if cfg.device in ("auto", "cuda") and devices > 1:
        cfg.device = f"cuda:{hydra.job.num % devices}"
    # Fewer where OMP_NUM_THREADS says so.
    torch.set_num_threads(min(torch.get_num_threads(), max(1, available_cores() // jobs)))


def prepare_joblib(hydra: DictConfig) -> None:
    """Prepare a sweep's own process for several jobs at a time."""
    if concurrent_jobs(hydra) == 1:
        return
    if hydra.launcher.get("batch_size") == "auto":
        # After some quick (finished) jobs, joblib would give one process several long ones.
        with read_write(hydra), open_dict(hydra):
            hydra.launcher.batch_size = "1"
    stop_file = Path(tempfile.mkdtemp(prefix="mosaickd-")) / "stop"
    os.environ[STOP_FILE] = str(stop_file)
    sweep_dir = Path(hydra.sweep.dir)

    def stop(number: int, frame: FrameType | None) -> None:
        if stop_file.exists():  # asked twice: joblib kills its processes
            raise Interrupted(number)
        log.info("stopping: each job writes its checkpoint first (once more: at once)")
        stop_file.touch()  # for jobs that would begin now
        for pid in [child.pid for child in multiprocessing.active_children() if child.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_for_jobs(sweep_dir)
        raise Interrupted(number)

    taken = (signal.SIGINT, signal.SIGTERM)
    for number in taken:
        signal.signal(number, stop)
    # Jobs' processes inherit blocked signals, so that a terminal's Ctrl-C, which reaches them too,
    # finds none unprepared: a job unblocks them while it can stop in order (`Interruption`). Here
    # a thread that doesn't block them receives them; Python handles them in the main thread.
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, taken)


def wait_for_jobs(sweep_dir: Path) -> None:
    """Wait until no process of this machine holds a run of the sweep, a minute at most."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        owners = [holder(path.parent) for path in sweep_dir.rglob(".owner")]
        if not any(owner is not None and owner.alive for owner in owners):
            return
        time.sleep(0.05)
    log.info("some jobs did not stop in time: they go on from their last checkpoint")
