"""Where a run's numbers and pictures go, beside its own folder."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, runtime_checkable

from mosaickd.account import has_api_key, server
from mosaickd.constraints import Positive
from mosaickd.engine.wandb_process import OUTBOX
from mosaickd.errors import UserError
from mosaickd.files import read_json, write_json
from mosaickd.metric_names import SAMPLES, STEP, TIME, TOP1
from mosaickd.run_dir import RunDir

log = logging.getLogger(__name__)

GRACE = 30.0  # seconds beyond W&B's own timeouts, after which its process is taken for hung
INTERRUPTED = 10.0  # seconds that a run which was asked to stop still waits
#: What an agent of a W&B sweep says to the run that it starts, and which no other run may hear.
AGENTS = ("WANDB_SWEEP_", "WANDB_RUN_ID")
BUNDLE = 1000  # records that are handed over together
BACKLOG = 10_000  # records that W&B may be behind
#: How wandb says, on the terminal only, that not all was sent, or that its service has crashed.
COMPLAINT = re.compile(r"^(?:wandb: (?:WARNING|ERROR) |(?=panic: ))(.*?)\.?$", re.MULTILINE)


@dataclass(frozen=True)
class Tracked:
    """The run that a tracker follows."""

    folder: Path
    settings: dict[str, Any]  # the whole config
    name: str  # the run in a few words
    group: str | None = None  # what it is one of: a sweep, the training of teachers
    job_type: str | None = None  # the method
    tags: tuple[str, ...] = ()  # what to find it by: images, teacher and student
    asked_for: bool = True  # whether the command was for this run, or it needs this one: a teacher


@runtime_checkable
class Tracker(Protocol):
    """What the loop asks of a tracker. It is built with `run`, a `Tracked`, and its settings."""

    def resume(self, step: int) -> None:
        """The run goes on after `step`, 0 for its beginning. metrics.jsonl and samples/ in its
        folder have what was logged up to there, by an earlier session."""

    def log(self, step: int, record: dict[str, Any]) -> None:
        """Metrics of a step by their names in `metric_names`: numbers, and lists of counts."""

    def image(self, step: int, name: str, path: Path) -> None:
        """A picture that was written at `path`."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """What the end of a run has to say of many things at once."""

    def file(self, step: int, kind: str, path: Path) -> None:
        """A file was written whole at `path`: a checkpoint, or a model (the student). Of
        checkpoints the thread that writes them tells, while the run goes on."""

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        """The run's last word. status: finished, interrupted or failed."""


class NoTracker:
    """Keeps nothing: metrics.jsonl and samples/ in the run's folder are all there is."""

    def __init__(self, *, run: Tracked) -> None: ...
    def resume(self, step: int) -> None: ...
    def log(self, step: int, record: dict[str, Any]) -> None: ...
    def image(self, step: int, name: str, path: Path) -> None: ...
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...
    def file(self, step: int, kind: str, path: Path) -> None: ...
    def finish(self, status: str, summary: dict[str, Any]) -> None: ...


class WandbTracker:
    """Weights & Biases; offline where there is no API key, and never with a prompt.

    Nothing that happens to W&B ends, blocks or alters a run. It lives in a process of its own
    (`wandb_process.py`), for which a run waits at the start, at the end, and never in between. A
    server that can't be used leaves the run offline, any other trouble ends the tracking; either
    is one warning. A mistake (no wandb, a project's name that W&B refuses) is a UserError.

    The run's id lies in the run's folder, so that a resumed run continues the same curve; what W&B
    lacks of it a session gives first (docs/decisions/0020). A run that an agent of a W&B sweep has
    started takes the id that the agent gives it, and goes where the agent says.
    tags: beside those of every run. log_checkpoints: each checkpoint, and at the end the student,
    become artifacts. init_timeout, finish_timeout: seconds for W&B's server to answer, and to take
    what is left.
    """

    def __init__(
        self,
        *,
        run: Tracked,
        project: str = "mosaickd",
        entity: str | None = None,
        tags: list[str] | None = None,
        log_checkpoints: bool = False,
        init_timeout: Positive = 30.0,
        finish_timeout: Positive = 60.0,
    ) -> None:
        self.folder = run.folder.absolute()
        self.log_checkpoints = log_checkpoints
        self.finish_timeout = finish_timeout
        self.lock = threading.RLock()  # checkpoints come from a thread of their own
        self.process: Subprocess | None = None  # as long as W&B is followed
        self.files: Path | None = None  # where W&B keeps this session
        self.config = run.settings
        # A trial of a W&B sweep: its agent says what it is called and where it goes.
        trial = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        self.trial = trial if run.asked_for else None
        self.run_id = self.trial or _run_id(run.folder / "wandb.json")
        where = {"project": project, "entity": entity, "run_id": self.run_id}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(AGENTS)}
        if self.trial:
            elsewhere = {"WANDB_PROJECT": project} | ({"WANDB_ENTITY": entity} if entity else {})
            self.environment = elsewhere | dict(os.environ)
        self.about: dict[str, Any] = {
            **({} if self.trial else where),
            "run_name": run.name,
            "run_group": run.group,
            "run_job_type": run.job_type,
            # W&B takes 64 characters; a tag of the user's that is longer is a mistake to be told.
            "run_tags": [*dict.fromkeys((*(tag[:64] for tag in run.tags), *(tags or ())))] or None,
            "root_dir": str(self.folder),
            "program": sys.argv[0],
            "x_stats_pid": os.getpid(),  # whose memory and processors W&B draws
            "silent": True,
            "console": "off",
            "init_timeout": init_timeout,
            "finish_timeout": finish_timeout,
            "finish_timeout_raises": True,
        }
        mode = os.environ.get("WANDB_MODE") or ("online" if has_api_key() else "offline")
        trouble = self.begin(mode)
        if trouble and mode == "online":
            reason, trouble = trouble, self.begin("offline")
            if not trouble:
                log.warning("%s can't be used: %s. The run goes on offline; `wandb sync %s` sends "
                            "it later", server(), reason, self.files)  # fmt: skip
        if trouble:
            self.give_up(trouble)

    def begin(self, mode: str) -> str:
        """Start a process and wait until W&B's run has begun. -> the trouble with it, or ""."""
        about = {**self.about, "mode": mode, "resume": "allow" if mode == "online" else None}
        script = Path(__file__).with_name("wandb_process.py")
        try:
            process = Subprocess(script, self.environment)
        except OSError as error:
            return f"its process can't be started ({error})"
        try:
            process.send({"settings": about, "config": self.config, "argv": sys.argv})
            answer = process.answer(about["init_timeout"] + GRACE)
        except BaseException:  # the run was asked to stop
            process.kill()
            raise
        if "begun" in answer:
            self.process, self.files = process, Path(answer["begun"])
            return ""
        process.kill()
        if "missing" in answer:
            raise UserError(
                f"tracker=wandb: wandb can't be imported ({answer['missing']}); pip install wandb, "
                "or choose tracker=none"
            )
        if "mistake" in answer:
            raise UserError(f"W&B refuses a setting (tracker.*, WANDB_*): {answer['mistake']}")
        return _trouble(answer, process.printed())

    def resume(self, step: int) -> None:
        """Give W&B what it lacks of the run so far. A session on its own server lacks what was not
        sent; an offline one lacks all, as `wandb sync` puts each in the place of the one before."""
        orders: list[dict[str, Any]] = []
        for line in RunDir(self.folder).read_metrics() if step else []:
            at, when = line.pop(STEP), line.pop(TIME, None)
            orders.append({"step": at, "record": line} | ({"time": when} if when else {}))
            picture = RunDir(self.folder).sample(at)
            if TOP1 in line and picture.is_file():
                orders.append({"step": at, "image": SAMPLES, "path": str(picture)})
        for first in range(0, len(orders), BUNDLE):
            self.send({"orders": orders[first : first + BUNDLE]})

    def log(self, step: int, record: dict[str, Any]) -> None:
        self.send({"step": step, "record": record})

    def image(self, step: int, name: str, path: Path) -> None:
        self.send({"step": step, "image": name, "path": str(path.absolute())})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.send({"table": name, "columns": list(columns), "rows": [list(row) for row in rows]})

    def file(self, step: int, kind: str, path: Path) -> None:
        """An artifact with the run's name. W&B takes it later than now, when another file may lie
        at `path`: it is given a name of its own for as long."""
        if not self.log_checkpoints or self.process is None or self.files is None:
            return
        kept = self.files / OUTBOX / f"{kind}-step{step}{path.suffix}"
        try:
            kept.parent.mkdir(exist_ok=True)
            kept.unlink(missing_ok=True)
            try:
                os.link(path, kept)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, kept)
        except OSError as error:
            log.warning("%s does not become an artifact: %s", path, error)
            return
        name = f"{kind}-{self.run_id}"
        self.send({"step": step, "artifact": name, "kind": kind, "path": str(kept),
                   "file": path.name})  # fmt: skip

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        """Wait until W&B has taken all, but not for long where someone waits for an end."""
        self.send({"finish": status, "summary": summary})
        if self.process is None:
            return
        process = self.process
        seconds = self.finish_timeout + GRACE
        if status == "interrupted":
            seconds = min(INTERRUPTED, seconds)
        process.close()
        answer = process.answer(seconds)
        if not answer and status == "interrupted":  # it closes its files, within its own time
            self.give_up(f"not everything was sent within {seconds:g} s", ended=False)
        elif answer != {"ended": 0} or COMPLAINT.search(process.printed()):
            process.kill()
            self.give_up(_trouble(answer, process.printed()))
        self.process = None

    def send(self, order: dict[str, Any]) -> None:
        """Hand over, unless W&B is in trouble."""
        with self.lock:
            if self.process is None:
                return
            if answer := self.process.answer(0):
                self.give_up(_trouble(answer, self.process.printed()))
            elif self.process.waiting() > BACKLOG:
                self.process.kill()
                self.give_up(f"it has stopped taking records; {BACKLOG} are waiting")
            else:
                self.process.send(order)

    def give_up(self, trouble: str, ended: bool = True) -> None:
        """The one warning; from here on the run is without W&B."""
        self.process = None
        if self.files and ended:
            shutil.rmtree(self.files / OUTBOX, ignore_errors=True)
        online = "" if "offline-run-" in str(self.files) else "--include-online "
        sync = f", and `wandb sync {online}{self.files}` sends what W&B has of it"
        log.warning("W&B: %s. The run is not affected: %s has all numbers%s",
                    trouble, self.folder / "metrics.jsonl", sync if self.files else "")  # fmt: skip


class Subprocess:
    """A script in a process of its own: orders in, answers out, one JSON object a line.

    Sending never waits and never fails. The last answer is {"ended": exit code}.
    """

    def __init__(self, script: Path, environment: dict[str, str] | None = None) -> None:
        self._stderr = tempfile.TemporaryFile("a+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the run alone
        )
        self._orders: SimpleQueue[str | None] = SimpleQueue()
        self._answers: SimpleQueue[dict[str, Any]] = SimpleQueue()
        for work in (self._write, self._read):
            threading.Thread(target=work, daemon=True).start()

    def send(self, order: dict[str, Any]) -> None:
        self._orders.put(json.dumps(order, default=str, skipkeys=True))

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer; {} where there is none within so many seconds."""
        try:
            return self._answers.get(timeout=seconds)
        except Empty:
            return {}

    def printed(self) -> str:
        """What it has written to stderr."""
        self._stderr.seek(0)
        return self._stderr.read()

    def waiting(self) -> int:
        """Orders that were not taken yet."""
        return self._orders.qsize()

    def close(self) -> None:
        """No more orders."""
        self._orders.put(None)

    def kill(self) -> None:
        self._process.kill()
        self.close()

    def _write(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError), self._process.stdin as stdin:  # it may be gone
            for order in iter(self._orders.get, None):
                stdin.write(f"{order}\n".encode())
                stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as stdout:
            for line in stdout:
                self._answers.put(json.loads(line))
        self._answers.put({"ended": self._process.wait()})
        self.close()


def _trouble(answer: dict[str, Any], printed: str) -> str:
    """What is wrong, in words."""
    if complaints := COMPLAINT.findall(printed):
        return str(complaints[0])
    if "trouble" in answer:
        return str(answer["trouble"]).rstrip(".")
    if "ended" in answer:
        return f"its process has ended with code {answer['ended']}"
    return "it does not answer"


def _run_id(path: Path) -> str:
    """The id that `path` keeps; a new one where there is none yet, or none that can be used."""
    try:
        kept = read_json(path)
        if kept is not None:
            if not re.fullmatch(r"[\w-]{1,64}", kept["id"], re.ASCII):
                raise ValueError(f"id {str(kept['id'])[:80]!r}")
            return str(kept["id"])
    except Exception as error:
        log.warning("%s holds no id of a W&B run (%s): a new curve begins", path, error)
    run_id = uuid.uuid4().hex[:8]
    try:
        write_json(path, {"id": run_id})
    except OSError as error:
        log.warning("%s can't be written (%s): a resumed run will begin a new curve", path, error)
    return run_id
