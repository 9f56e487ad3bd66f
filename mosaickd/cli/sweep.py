"""A multirun: what a person sees of its jobs, and what jobs side by side on one machine need.

In a terminal a bar stands above the run's; elsewhere, and where a launcher runs several jobs at
once, there are lines only, one at a job's start and one at its end.
"""

from __future__ import annotations

import _thread
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from mosaickd.cli import ignore_broken_pipe
from mosaickd.engine.interruption import Interrupted
from mosaickd.engine.progress import Bar, console, is_rank0, say
from mosaickd.errors import CommandFailed, UserError, printable
from mosaickd.utils.durations import duration

if TYPE_CHECKING:
    from mosaickd.run_dir import Result

#: What a job came to: as its line says it, and as such jobs are counted.
ENDS = {
    "finished": ("finished", "finished"),
    "skipped": ("is finished: nothing to do", "finished before"),
    "running elsewhere": ("is being run by another process: left to it", "left to another process"),
    "interrupted": ("interrupted", "interrupted"),
    "failed": ("failed", "failed"),
}

#: What stops jobs side by side in order, and the seconds that their checkpoints may take.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 60.0


class Sweep(Callback):
    """Says how many jobs a multirun has, which one runs, how each one ended, and how long is left.

    Hydra calls it in the command's process, and a pickled copy in each process of a launcher.
    """

    current: Sweep | None = None  # of this process

    def __init__(self) -> None:
        self.name, self.folder = "", ""
        self.jobs: int | None = None
        self.varying: list[str] = []
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []  # that the finished jobs of this session took
        self.began = self.job_began = time.monotonic()
        self.job, self.choices = "", ""
        self.bar: Bar | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"bar": None}

    # ------------------------------------------------------------------------- called by Hydra

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from mosaickd.run_dir import SWEEP

        os.environ[SWEEP] = uuid4().hex
        hydra = config.hydra
        self.folder = str(hydra.sweep.dir)
        self.name = hydra.runtime.choices.get("sweep") or Path(self.folder).name
        values = swept_values(hydra)
        if values is not None:
            self.jobs, self.varying = math.prod(values.values()), [*values]
        if self.jobs == 0:
            raise CommandFailed(UserError(f"the sweep has no jobs: {empty_overrides(hydra)}"))
        if "n_jobs" in hydra.launcher:
            prepare_joblib(config)
        if not is_rank0():
            return
        Sweep.current = self
        say(f"{self.name}: {self.count('jobs, ')}in {self.folder}")
        if hydra.launcher._target_.endswith(".BasicLauncher"):  # others run jobs elsewhere
            self.bar = Bar(self.name, self.jobs, self.describe)
            self.bar.start()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        hydra = config.hydra
        if hydra.mode != RunMode.MULTIRUN or not is_rank0():
            return
        Sweep.current = self
        self.job = f"job {hydra.job.num + 1}" + (f" of {self.jobs}" if self.jobs else "")
        task = hydra.overrides.task
        self.choices = " ".join(o for o in task if o.partition("=")[0] in self.varying)
        self.choices = printable(self.choices or " ".join(task), 300)
        self.job_began = time.monotonic()
        if self.bar is None or self.bar.disable:
            say(f"{self.job}  {self.choices}  begins")

    # -------------------------------------------------------------------------------- its jobs

    def end_job(
        self, how: str, result: Result | None = None, error: BaseException | None = None
    ) -> None:
        """Say what the job came to (a key of ENDS), and why it failed."""
        self.counts[how] += 1
        seconds = time.monotonic() - self.job_began
        words = [self.job, self.choices, ENDS[how][0]]
        if result is not None and result.last is not None:
            words.append(f"{result.last:.2f} %")
        if how not in ("skipped", "running elsewhere"):
            words.append(duration(seconds))
        say("  ".join(words))
        if isinstance(error, UserError):
            folder = HydraConfig.get().runtime.output_dir
            say(f"  {error}" if str(error).startswith(folder) else f"  {folder}: {error}")
        if how == "finished" and result is not None:
            self.seconds.append(min(seconds, result.seconds))  # without its teacher's training
        self.job = self.choices = ""
        if self.bar is not None:
            self.bar.show(self.counts.total())

    def seconds_left(self) -> float | None:
        """Return the seconds until the end, if jobs take what those before took; None: unknown."""
        if not self.seconds or self.jobs is None or self.counts.total() >= self.jobs:
            return None
        mean = sum(self.seconds) / len(self.seconds)
        spent = time.monotonic() - self.job_began if self.job else 0.0
        return mean * (self.jobs - self.counts.total()) - min(spent, mean)

    def describe(self) -> tuple[str, str]:
        """Return what stands beside the sweep's bar, and below it the job."""
        left = self.seconds_left()
        remaining = f"  about {duration(left)} left" if left is not None else ""
        counts = f"{self.counts['finished']} finished, {self.counts['failed']} failed"
        return f"{counts}{remaining}", f"{self.job}  {self.choices}" if self.job else ""

    def count(self, what: str) -> str:
        """Return `3 jobs`, or nothing where only the sweeper knows."""
        return "" if self.jobs is None else f"{self.jobs} {what}"

    def close(self) -> None:
        """Leave the terminal as it was; print what the jobs came to, and their table."""
        if self.bar is not None:
            self.bar.stop()
        if self.counts:
            counts = ", ".join(f"{self.counts[end]} {ENDS[end][1]}" for end in ENDS
                               if self.counts[end])  # fmt: skip
            of = f" of {self.count('jobs')}" if self.jobs is not None else ""
            took = duration(time.monotonic() - self.began)
            say(f"{self.name}: {self.counts.total()}{of}: {counts}  {took}")
        from mosaickd import analysis

        analysis.show_sweep(Path(self.folder))


@contextmanager
def summary() -> Iterator[None]:
    """End what the block shows of a sweep, however that ends.

    (Hydra calls no `on_multirun_end` when a job has failed.)
    """
    try:
        yield
    finally:
        with ignore_broken_pipe():  # also what Hydra has printed, as for --help
            if Sweep.current is not None:
                Sweep.current.close()


def swept_values(hydra: DictConfig) -> dict[str, int] | None:
    """Return how many values each swept key has; None where only another sweeper knows."""
    if not hydra.sweeper._target_.endswith(".BasicSweeper"):
        return None
    params = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        overrides = parser.parse_overrides([*params, *hydra.overrides.task])
        last = {override.get_key_element(): override for override in overrides}
        return {
            key: len([*override.sweep_string_iterator()])
            for key, override in last.items()
            if override.is_sweep_override()
        }
    except Exception:  # Hydra will say what is wrong, in a moment
        return None


def empty_overrides(hydra: DictConfig) -> str:
    """Return which overrides leave a sweep without jobs."""
    params = {str(key): f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()}
    given = params | {override.partition("=")[0]: override for override in hydra.overrides.task}
    empty = [key for key, count in (swept_values(hydra) or {}).items() if not count]
    return f"{', '.join(given[key] for key in empty)} stands for no value"


# ---------------------------------------------------------------------------------- side by side


def share_machine(cfg: DictConfig) -> None:
    """Give one of the jobs that joblib runs side by side its CUDA device; lines in place of bars.

    The jobs take the devices in turn, unless one was asked for by number. (The CPU's cores joblib
    divides itself: it sets OMP_NUM_THREADS.)
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN or "n_jobs" not in hydra.launcher:
        return
    import torch

    console.is_interactive = False
    count = torch.cuda.device_count()
    if cfg.device in ("auto", "cuda") and count > 1:
        cfg.device = f"cuda:{hydra.job.num % count}"


def prepare_joblib(config: DictConfig) -> None:
    """Have joblib hand out jobs one by one, and stop them in order."""
    launcher = config.hydra.launcher
    if launcher.get("batch_size") == "auto":
        # After jobs that are finished already, it would give several others to one process.
        with read_write(config.hydra), open_dict(config.hydra):
            launcher.batch_size = "1"
    stop_jobs_on_signals(Path(config.hydra.sweep.dir))


def stop_jobs_on_signals(folder: Path) -> None:
    """Have Ctrl-C and SIGTERM stop the jobs in order, and then this process, by Interrupted.

    joblib would kill its processes at once. These are started with both signals blocked, so that
    the Ctrl-C of a terminal, which reaches them too, waits until a job can stop in order
    (`Interruption.handling`). Here a thread waits for them, on behalf of the main one.
    """
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:  # asked twice: joblib kills its processes
            raise Interrupted(number)
        stopping = True
        say("stopping: each job writes its checkpoint first (once more: at once)")
        workers = [child.pid for child in multiprocessing.active_children() if child.pid]
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while any_holds(workers, folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        raise Interrupted(number)

    def forward() -> None:
        while True:
            _thread.interrupt_main(signal.Signals(signal.sigwait(STOP_SIGNALS)))

    resource_tracker.ensure_running()  # Python starts it later otherwise, and unblocks both then
    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=forward, daemon=True).start()


def any_holds(processes: list[int], folder: Path) -> bool:
    """Return whether one of these processes holds a run below the folder."""
    from mosaickd.run_dir import find_run_dirs
    from mosaickd.utils.locks import holder

    holders = [holder(run.path) for run in find_run_dirs(folder)]
    return any(h.here and h.alive and h.pid in processes for h in holders if h)
