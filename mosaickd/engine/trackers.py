"""Where a run's numbers and pictures go, beside its own folder."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, runtime_checkable

from mosaickd.constraints import Positive
from mosaickd.errors import UserError, printable
from mosaickd.metric_names import SAMPLES, STEP, TIME, TOP1
from mosaickd.run_dir import RunDir
from mosaickd.utils.account import has_api_key
from mosaickd.utils.files import read_json, write_json

log = logging.getLogger(__name__)

GRACE = 15.0  # seconds beyond W&B's own timeouts, after which it is taken for hung
INTERRUPTED = 10.0  # seconds that an interrupted run waits for uploads
TEARDOWN = 5.0  # seconds for W&B's service to end


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker follows."""

    folder: Path
    config: dict[str, Any]  # the whole config
    name: str  # the run in a few words
    group: str | None = None  # the sweep, or "teachers"
    job_type: str | None = None  # the method
    tags: tuple[str, ...] = ()  # images, teacher and student
    requested: bool = True  # False: a teacher that is trained because another run needs it


@runtime_checkable
class Tracker(Protocol):
    """What the trainer calls. Built with `run`, a `TrackedRun`, and its settings in the config."""

    def resume(self, step: int) -> None:
        """Continue after `step`, 0 for a new run. Earlier metrics and samples are in its folder."""

    def log(self, step: int, record: dict[str, Any]) -> None:
        """Log metrics by their names in `metric_names`: numbers, and lists of counts."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Log the picture at `path`."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table, at the end of a run."""

    def file(self, step: int, kind: str, path: Path) -> None:
        """Take a file that is complete: kind "checkpoint" (called from the thread that writes
        them, while training goes on) or "model" (the student)."""

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        """End the tracking. status: finished, interrupted or failed."""


class NoTracker:
    """Track nothing: metrics.jsonl and samples/ in the run's folder have it all."""

    def __init__(self, *, run: TrackedRun) -> None: ...
    def resume(self, step: int) -> None: ...
    def log(self, step: int, record: dict[str, Any]) -> None: ...
    def image(self, step: int, name: str, path: Path) -> None: ...
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...
    def file(self, step: int, kind: str, path: Path) -> None: ...
    def finish(self, status: str, summary: dict[str, Any]) -> None: ...


class WandbTracker:
    """Log to Weights & Biases; offline where there is no API key, and never with a prompt.

    A failure of W&B is one warning and ends the tracking, never the run. So wandb is called in a
    thread of its own: training never waits for it, and its start and its end have deadlines.
    Raises UserError where wandb is not installed, or refuses a setting.

    The run's id is kept in its folder, so that a resumed run continues its curve (docs/metrics.md).
    A trial of a W&B sweep takes its id and project from its agent.
    tags: beside those of every run. log_checkpoints: each checkpoint, and at the end the student,
    become artifacts. init_timeout, finish_timeout: seconds for W&B's server to answer, and to take
    what is left.
    """

    def __init__(
        self,
        *,
        run: TrackedRun,
        project: str = "mosaickd",
        entity: str | None = None,
        tags: list[str] | None = None,
        log_checkpoints: bool = False,
        init_timeout: Positive = 30.0,
        finish_timeout: Positive = 60.0,
    ) -> None:
        self.run_dir = RunDir(run.folder.absolute())
        self.log_checkpoints = log_checkpoints
        self.finish_timeout = finish_timeout
        self._wandb: Any = None  # the module
        self._run: Any = None  # wandb's
        self._step, self._row = 0, dict[str, Any]()  # the last step, which is not sent yet
        self._messages = Messages()
        self._failed = False
        self._fail_lock = threading.Lock()
        self._jobs: SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = SimpleQueue()

        mode = os.environ.get("WANDB_MODE") or ("online" if has_api_key() else "offline")
        settings = {
            "mode": mode,
            "resume": "allow" if mode == "online" else None,
            "run_name": run.name,
            "run_group": run.group,
            "run_job_type": run.job_type,
            # W&B takes 64 characters
            "run_tags": [*dict.fromkeys([*(tag[:64] for tag in run.tags), *(tags or ())])] or None,
            "root_dir": str(self.run_dir.path),
            "silent": True,
            "console": "off",
            "init_timeout": init_timeout,
            "finish_timeout": finish_timeout,
            "finish_timeout_raises": True,
        }
        agents = {"WANDB_SWEEP_ID", "WANDB_RUN_ID"}
        self._is_trial = run.requested and agents <= os.environ.keys()
        if self._is_trial:  # its agent has set the rest
            self.run_id = os.environ["WANDB_RUN_ID"]
        else:
            self.run_id = _read_run_id(self.run_dir.tracker_id)
            settings |= {"project": project, "entity": entity, "run_id": self.run_id}
        threading.Thread(target=self._work, daemon=True, name="wandb").start()
        try:
            self._wait(lambda: self._begin(settings, run.config), init_timeout + GRACE)
        except BaseException:  # also where the run was asked to stop
            self._close()
            raise
        if self._failed:
            self._close()

    # ------------------------------------------------------------------ called by the trainer

    def resume(self, step: int) -> None:
        """Log again what earlier sessions have logged. An online run skips what its server has; an
        offline one needs all, as `wandb sync` puts the last session in the place of others."""
        for record in self.run_dir.read_metrics() if step else []:
            at = record.pop(STEP)
            if TIME in record:
                record["_timestamp"] = record.pop(TIME)
            self.log(at, record)
            if TOP1 in record and self.run_dir.sample(at).is_file():
                self.image(at, SAMPLES, self.run_dir.sample(at))

    def log(self, step: int, record: dict[str, Any]) -> None:
        self._submit(lambda: self._log(step, record))

    def image(self, step: int, name: str, path: Path) -> None:
        self._submit(lambda: self._log(step, {name: self._wandb.Image(str(path))}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        def log_table() -> None:
            self._send()  # first: a table becomes an artifact, which may fail where numbers don't
            table = self._wandb.Table(list(columns), [list(row) for row in rows])
            self._run.log({name: table}, step=self._step)

        self._submit(log_table)

    def file(self, step: int, kind: str, path: Path) -> None:
        """Make the file a version of an artifact with the run's id."""
        if not self.log_checkpoints or self._failed:
            return
        try:
            artifact = self._wandb.Artifact(f"{kind}-{self.run_id}", kind, metadata={"step": step})
            artifact.add_file(str(path), path.name, skip_cache=True)  # copies: the next replaces it
        except Exception as error:
            self._fail(error)
        else:
            aliases = ["latest", f"step{step}"]
            self._submit(lambda: self._run.log_artifact(artifact, aliases=aliases))

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        """Wait until W&B has taken all, but not for long where the run was asked to stop."""
        limit = INTERRUPTED if status == "interrupted" else self.finish_timeout + GRACE
        self._wait(lambda: self._finish(status, summary), limit)
        self._close()

    # ------------------------------------------------------------------ the thread

    def _submit(self, job: Callable[[], Any]) -> Future[None]:
        future: Future[None] = Future()
        self._jobs.put((future, job))
        return future

    def _work(self) -> None:
        for future, job in iter(self._jobs.get, None):
            try:
                if not self._failed:
                    job()
                future.set_result(None)
            except UserError as error:
                future.set_exception(error)
            except (Exception, SystemExit) as error:
                self._fail(error)
                future.set_result(None)

    def _wait(self, job: Callable[[], None], seconds: float) -> None:
        if self._failed:
            return
        try:
            self._submit(job).result(seconds)
        except TimeoutError:
            self._fail(TimeoutError(f"no answer within {seconds:g} s"))

    def _fail(self, error: BaseException) -> None:
        """Give the one warning; from here on the run is without W&B."""
        with self._fail_lock:
            if self._failed:
                return
            self._failed = True
        reason = [*self._messages.warnings, f"{type(error).__name__}: {error}"][0].rstrip(".")
        sync = ""
        if self._run:
            online = "" if self._run.offline else "--include-online "
            sync = f", and `wandb sync {online}{self._run.sync_dir}` sends what W&B has of it"
        log.warning("W&B: %s. The run is not affected: %s has all numbers%s",
                    printable(reason), self.run_dir.metrics, sync)  # fmt: skip

    def _close(self) -> None:
        """End W&B's service. The first thing that this does is to remove wandb's hook at Python's
        exit, which would wait for the service without a deadline."""
        self._failed = True
        self._jobs.put(None)

        def teardown() -> None:
            with suppress(Exception, SystemExit):  # the service may be gone
                import wandb

                wandb.teardown(exit_code=1)

        thread = threading.Thread(target=teardown, daemon=True)
        thread.start()
        thread.join(TEARDOWN)

    # ------------------------------------------------------------------ called in the thread

    def _begin(self, settings: dict[str, Any], config: dict[str, Any]) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            if error.name != "wandb":
                raise
            raise UserError(
                "tracker=wandb: wandb is not installed; pip install wandb, or choose tracker=none"
            ) from error
        self._wandb = wandb
        exit_function, excepthook = sys.exit, sys.excepthook
        try:
            try:
                session = wandb.setup(wandb.Settings(**settings))
            except (ValueError, wandb.errors.UsageError) as error:
                reason = printable(str(error))
                raise UserError(f"W&B refuses a setting (tracker.*, WANDB_*): {reason}") from error
            if not self._is_trial:  # of a sweep, if an agent has started this process
                session.settings.sweep_id = session.settings.sweep_param_path = None
            wandb.termsetup(wandb.Settings(silent=True), self._messages)
            run = wandb.init(config=None if self._is_trial else config)
        finally:
            sys.exit, sys.excepthook = exit_function, excepthook  # wandb has replaced them
        if self._is_trial:  # wandb has put what the agent chose into the config
            run.config.update(_without(config, set(run.config.keys())))
        self._messages.warnings.clear()  # what hinders wandb from starting it raises
        run.summary["status"] = "running"  # not what an earlier session came to
        self._run, self._step = run, run.starting_step
        if run.offline and not has_api_key():
            log.info("W&B is offline, without an API key; `wandb sync %s` sends the run later",
                     run.sync_dir)  # fmt: skip

    def _log(self, step: int, record: dict[str, Any]) -> None:
        """Collect all that belongs to a step: W&B takes no step twice."""
        if step < self._step:
            return  # its server has it from an earlier session
        if step > self._step:
            self._send()
            self._step = step
        for name, value in record.items():
            self._row[name] = self._histogram(value) if isinstance(value, list) else value

    def _send(self) -> None:
        row, self._row = self._row, {}
        if row:
            self._run.log(row, step=self._step)

    def _histogram(self, counts: list[int]) -> Any:
        """Return a histogram whose bar i is counts[i]; where there are many, neighbours share."""
        width = -(-len(counts) // self._wandb.Histogram.MAX_LENGTH)
        bars = [sum(counts[i : i + width]) for i in range(0, len(counts), width)]
        edges = [width * i - 0.5 for i in range(len(bars) + 1)]
        return self._wandb.Histogram(np_histogram=(bars, edges))

    def _finish(self, status: str, summary: dict[str, Any]) -> None:
        # Online, a run that stops in the middle of a step leaves it to the session that resumes.
        if status != "interrupted" or self._run.offline:
            self._send()
        self._run.summary.update({"status": status, **summary})
        self._run.finish(exit_code=0 if status == "finished" else 1)
        if self._messages.warnings:  # `finish` says nothing of uploads that were given up
            raise RuntimeError(self._messages.warnings[0])


class Messages:
    """Take, as a logger, what wandb would print on the terminal."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def info(self, message: str) -> None: ...

    def warning(self, message: str) -> None:
        text = re.sub(r"\x1b\[[0-9;]*m", "", message)
        self.warnings.append(re.sub(r"^(wandb:)? *(WARNING|ERROR)? *", "", text))

    error = warning


def _read_run_id(path: Path) -> str:
    """Return the id that is kept at `path`, a new one where there is none yet."""
    content = read_json(path) or {"id": uuid.uuid4().hex[:8]}
    write_json(path, content)
    return str(content["id"])


def _without(config: dict[str, Any], chosen: set[str]) -> dict[str, Any]:
    """Return the config without what a sweep's agent has chosen.

    Where it has chosen `method=kd`, the section `method` is spread: `method.balance` and so on.
    """
    sections = {name.split(".")[0] for name in chosen}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in sections and isinstance(value, dict):
            flat |= {f"{key}.{name}": setting for name, setting in value.items()}
        else:
            flat[key] = value
    return {key: value for key, value in flat.items() if key not in chosen}
