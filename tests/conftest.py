"""The program as a user meets it: `python run.py ...` in a process of its own.

`cli` calls it in an empty folder, without network, accounts or a home that anyone lives in; `tiny`
makes runs that take a second or two; `teacher` is a trained one that all tests share.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from forked import Forked

REPO = Path(__file__).resolve().parent.parent
TIMEOUT = 120.0  # seconds that a tiny run never needs, however busy the machine is
NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses at once: no network

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: two workers share the cores
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def restore_signals() -> None:
    """Have the programs that are started obey SIGHUP and SIGINT.

    Under nohup, and in a script's background, these are ignored, which children inherit; a handler
    that does nothing is not inherited.
    """
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        restore_signals()  # where tests run; a worker is a child of pytest's own


def pytest_collection_finish() -> None:
    """Keep what is imported by now out of garbage collections: they take a fifth of the time."""
    gc.collect()
    gc.freeze()


# --------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Outcome:
    """What a finished process left on the terminal. code: -N where signal N killed it."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass
class Running:
    """A process that runs; its output goes to files, so that it never waits for a reader."""

    process: Any  # a Popen, or of `multiprocessing`
    poll: Callable[[], int | None]
    out: Path
    err: Path
    started_at: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def wait(self, timeout: float = TIMEOUT) -> Outcome:
        """Wait for its end. Raises TimeoutError after `timeout` seconds, and kills it then."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                text = self.kill().text
                raise TimeoutError(f"still running after {timeout:g} s:\n{text}")
            time.sleep(0.005)
        return self.outcome()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the process should bring about."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert self.poll() is None, f"ended early:\n{self.outcome().text}"
            assert time.monotonic() < deadline, f"nothing happened:\n{self.out.read_text()}"
            time.sleep(0.005)

    def send(self, number: signal.Signals) -> Outcome:
        os.kill(self.pid, number)
        return self.wait()

    def kill(self) -> Outcome:
        self.process.kill()
        while self.poll() is None:
            time.sleep(0.005)
        return self.outcome()

    def outcome(self) -> Outcome:
        code = self.poll()
        out, err = (path.read_text(errors="replace") for path in (self.out, self.err))
        return Outcome(-1 if code is None else code, out, err, time.monotonic() - self.started_at)


@dataclass
class Cli:
    """Calls `python run.py` in `folder`; what it prints, and a home for it, lie in `logs`."""

    folder: Path
    logs: Path
    started: list[Running] = field(default_factory=list)
    calls: int = 0

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        command: list[str] | None = None,
    ) -> Running:
        """command: in place of `python run.py ARGUMENTS`."""
        out, err = (self.logs / f"{len(self.started)}.{name}" for name in ("out", "err"))
        with out.open("wb") as to_out, err.open("wb") as to_err:
            process = subprocess.Popen(
                command or [sys.executable, str(REPO / "run.py"), *arguments],
                cwd=self.folder,
                env=self.environment() | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=to_out,
                stderr=to_err,
            )
        self.started.append(Running(process, process.poll, out, err))
        return self.started[-1]

    def __call__(
        self, *arguments: str, code: int = 0, env: Mapping[str, str] | None = None
    ) -> Outcome:
        """Run to the end; the exit code must be `code`, and no user sees a traceback.

        In a process that has imported everything already: what differs, `tests/forked.py` says.
        """
        from forked import Forked

        launches = any(argument.startswith("hydra/launcher=") for argument in arguments)
        if launches or "PYTHONPATH" in (env or {}):  # imports, or processes of its own, matter
            run = self.start(*arguments, env=env)
        else:
            self.calls += 1
            logs = self.logs / f"call{self.calls}"
            logs.mkdir()
            run = Forked(self.folder, logs).start(*arguments, env=env)
        outcome = run.wait()
        assert outcome.code == code, outcome.text
        assert "Traceback" not in outcome.text
        return outcome

    def report(self, *arguments: str) -> str:
        """Return what `python -m mosaickd.report` prints."""
        command = [sys.executable, "-m", "mosaickd.report", *arguments]
        outcome = self.start(command=command, env={"PYTHONPATH": str(REPO)}).wait()
        assert outcome.code == 0, outcome.text
        return outcome.out

    def environment(self) -> dict[str, str]:
        foreign = ("WANDB_", "HYDRA_", "PYTHONPATH", "CUDA_", "TERM", "COLUMNS")
        ours = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        proxies = {f"{kind}_proxy": NOWHERE for kind in ("http", "https", "HTTP", "HTTPS")}
        return ours | proxies | {
            "no_proxy": "",
            "HOME": str(self.logs),
            "OMP_NUM_THREADS": "1",  # tiny networks gain nothing from more
            "OMP_WAIT_POLICY": "PASSIVE",
            "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip


def new_cli(folder: Path) -> Cli:
    work, logs = folder / "work", folder / "logs"
    work.mkdir()
    logs.mkdir()
    return Cli(work, logs)


def stop(cli: Cli) -> None:
    """Leave nothing running, also where a test fails halfway."""
    for running in cli.started:
        if running.poll() is None:
            running.kill()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    command = new_cli(tmp_path)
    yield command
    stop(command)


@pytest.fixture
def forked(cli: Cli) -> Forked:
    """The same in processes that start at once (tests/forked.py says what differs)."""
    from forked import Forked

    return Forked(cli.folder, cli.logs)


@pytest.fixture(scope="session")
def shared_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    command = new_cli(tmp_path_factory.mktemp("shared"))
    yield command
    stop(command)


# ---------------------------------------------------------------------------------------- tiny runs

EXPERIMENT = """\
# @package _global_
defaults:
  - override /dataset: letters
  - override /ood: strokes
  - override /teacher: wrn16_2
  - override /student: wrn16_1
  - override /tracker: none
dataset:
  root: {root}
  reader: {{train_images: 240, test_images: 48}}
  recipe: {{epochs: 2, batch_size: 48, lr: 0.05, weight_decay: 5.0e-4}}
ood:
  root: {root}
  reader: {{train_images: 64, test_images: 48}}
generator: {{latent_dim: 16, width: 8}}
discriminator: {{width: 8}}
train: {{epochs: 1, batch_size: 16, precision: fp32}}
"""


@dataclass(frozen=True)
class Tiny:
    """Overrides of runs that take a second or two."""

    glyphs: Path  # where drawn glyphs are cached
    teacher: Path | None = None

    def source(self, role: str, images: int = 240) -> list[str]:
        return [
            f"{role}.root={self.glyphs}",
            f"{role}.reader.train_images={images}",
            f"{role}.reader.test_images=48",
        ]

    def scratch(self, *more: str) -> list[str]:
        recipe = "dataset.recipe={epochs: 6, batch_size: 48, lr: 0.05, weight_decay: 5e-4}"
        chosen = ["method=scratch", "dataset=letters", "student=wrn16_1", recipe, "tracker=none"]
        return [*chosen, *self.source("dataset"), *more]

    def distil(self, method: str, *more: str) -> list[str]:
        """kd or mosaic on strokes, from the shared teacher."""
        experiment = {"mosaic": "quickstart", "kd": "quickstart_kd"}[method]
        chosen = [f"experiment={experiment}", "tracker=none", "train.batch_size=16"]
        teacher = [f"teacher.checkpoint={self.teacher}"]
        return [*chosen, *teacher, *self.source("dataset"), *self.source("ood"), *more]

    def mosaic(self, *more: str) -> list[str]:
        return self.distil("mosaic", *more)

    def experiment(self, folder: Path, *more: str) -> list[str]:
        """The same as an experiment of the user's own, for any method and sweep, in `folder`/conf.

        Four steps on strokes; a teacher that is missing is trained for ten.
        """
        path = folder / "conf" / "experiment" / "tiny.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(EXPERIMENT.format(root=json.dumps(str(self.glyphs))))
        return ["--config-dir", str(path.parent.parent), "experiment=tiny", *more]


@pytest.fixture(scope="session")
def teacher(shared_cli: Cli) -> Path:
    """A wrn16_2 trained for six epochs of 240 letters, its record beside it."""
    tiny = Tiny(shared_cli.folder / "glyphs")
    shared_cli(*tiny.scratch("student=wrn16_2", "hydra.run.dir=teacher"))
    return shared_cli.folder / "checkpoints" / "letters" / "wrn16_2.safetensors"


@pytest.fixture(scope="session")
def tiny(shared_cli: Cli, teacher: Path) -> Tiny:
    return Tiny(shared_cli.folder / "glyphs", teacher)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(line: dict[str, Any]) -> dict[str, float]:
    """Return the losses in a line of metrics.jsonl by player/name; of an evaluation's line, none."""
    return {k.removeprefix("loss/"): v for k, v in line.items() if k.startswith("loss/")}
