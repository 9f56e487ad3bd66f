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
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent
PATIENCE = 120.0  # seconds that a tiny run never needs, however busy the machine is

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: two workers share the cores
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses at once: no network


def let_programs_hear() -> None:
    """Under nohup, and in a script's background, SIGHUP and SIGINT are ignored, also by the
    programs that are started: they inherit that. A handler that does nothing they don't."""
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        let_programs_hear()  # where tests run; a worker is a program of pytest's own


def pytest_collection_finish() -> None:
    """What is imported by now stays: to look through it for garbage takes a fifth of the time."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Outcome:
    """What a finished process left on the terminal."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass
class Started:
    """A process that runs; its output goes to files, so that it never waits for a reader."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    began: float

    def wait(self, timeout: float = PATIENCE) -> Outcome:
        code = self.process.wait(timeout)
        seconds = time.monotonic() - self.began
        return Outcome(code, self.out.read_text(), self.err.read_text(), seconds)

    def send(self, number: signal.Signals) -> Outcome:
        self.process.send_signal(number)
        return self.wait()

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that the process should bring about."""
        while not happened():
            if self.process.poll() is not None:
                outcome = self.wait()
                raise AssertionError(f"ended early with {outcome.code}:\n{outcome.text}")
            if time.monotonic() - self.began > PATIENCE:
                raise AssertionError(f"nothing happened:\n{self.out.read_text()}")
            time.sleep(0.01)


@dataclass
class Cli:
    """Calls `python run.py` in `folder`."""

    folder: Path
    logs: Path
    started: list[Started] = field(default_factory=list)
    calls: int = 0

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        script: str = "run.py",
        command: list[str] | None = None,
    ) -> Started:
        number = len(self.started)
        out, err = self.logs / f"{number}.out", self.logs / f"{number}.err"
        with out.open("wb") as to_out, err.open("wb") as to_err:
            process = subprocess.Popen(
                command or [sys.executable, str(REPO / script), *arguments],
                cwd=self.folder,
                env=self.environment() | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=to_out,
                stderr=to_err,
            )
        self.started.append(Started(process, out, err, time.monotonic()))
        return self.started[-1]

    def __call__(
        self, *arguments: str, code: int = 0, env: Mapping[str, str] | None = None
    ) -> Outcome:
        """Run to the end; the exit code must be `code`, and no user sees a traceback.

        Of a process that has imported everything already: what differs, `tests/forked.py` says.
        """
        from forked import Forked

        launches = any(argument.startswith("hydra/launcher=") for argument in arguments)
        if launches or "PYTHONPATH" in (env or {}):  # imports, or processes of its own, matter
            outcome = self.start(*arguments, env=env).wait()
        else:
            self.calls += 1
            logs = self.logs / f"call{self.calls}"
            logs.mkdir()
            outcome = Forked(self.folder, logs).start(*arguments, env=env).wait()
        assert outcome.code == code, outcome.text
        assert "Traceback" not in outcome.text
        return outcome

    def report(self, *arguments: str) -> str:
        """What `python -m mosaickd.report` prints."""
        command = [sys.executable, "-m", "mosaickd.report", *arguments]
        env = self.environment() | {"PYTHONPATH": str(REPO)}
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def environment(self) -> dict[str, str]:
        foreign = ("WANDB_", "HYDRA_", "PYTHONPATH", "CUDA_", "TERM", "COLUMNS")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        proxies = {f"{kind}_proxy": NOWHERE for kind in ("http", "https", "HTTP", "HTTPS")}
        return kept | proxies | {
            "no_proxy": "",
            "HOME": str(self.logs),
            "OMP_NUM_THREADS": "1",  # tiny networks gain nothing from more
            "OMP_WAIT_POLICY": "PASSIVE",
            "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip


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

    glyphs: Path  # where drawn glyphs are kept
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
        """The same as an experiment of the user's own, for whatever method and sweep: written to
        `folder`/conf. Four steps on strokes; a teacher that is missing has ten."""
        path = folder / "conf" / "experiment" / "tiny.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(EXPERIMENT.format(root=json.dumps(str(self.glyphs))))
        return ["--config-dir", str(path.parent.parent), "experiment=tiny", *more]


def new_cli(folder: Path) -> Cli:
    work, logs = folder / "work", folder / "logs"
    work.mkdir()
    logs.mkdir()
    return Cli(work, logs)


def stop(cli: Cli) -> None:
    """A test that fails halfway leaves nothing running."""
    for started in cli.started:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    command = new_cli(tmp_path)
    yield command
    stop(command)


@pytest.fixture
def forked(tmp_path: Path) -> Any:
    """The same in processes that start at once (tests/forked.py says what differs)."""
    from forked import Forked

    work, logs = tmp_path / "work", tmp_path / "logs"
    work.mkdir()
    logs.mkdir()
    return Forked(work, logs)


@pytest.fixture(scope="session")
def shared_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    command = new_cli(tmp_path_factory.mktemp("shared"))
    yield command
    stop(command)


@pytest.fixture(scope="session")
def teacher(shared_cli: Cli) -> Path:
    """A wrn16_2 that has seen 240 letters six times, with its record beside it."""
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
    """Those of a line of metrics.jsonl by player and name; none where it is of an evaluation."""
    return {k.removeprefix("loss/"): v for k, v in line.items() if k.startswith("loss/")}
