"""Calls of `python run.py` in processes of their own, in a folder that goes away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mosaickd.errors import UserError

RUN = Path(__file__).resolve().parent.parent / "run.py"
PATIENCE = 1800.0  # seconds until a run counts as hung


class Runs:
    """Runs of the quickstart in `folder`: its images are drawn once, its teacher trained once."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        self.folder = folder
        self.common = ["tracker=none", f"device={device}"]
        self.calls = 0

    def quickstart(self, *more: str) -> list[str]:
        """Overrides of a run that finds its images and its teacher, a barely trained one."""
        teacher = self.folder / "teacher" / "student.safetensors"
        if not teacher.exists():
            images = self.images("dataset")
            self.finish("method=scratch", "dataset=letters", "student=wrn16_2", "train.steps=20",
                        f"hydra.run.dir={teacher.parent}", *images)  # fmt: skip
        given = [*self.images("dataset"), *self.images("ood"), f"teacher.checkpoint={teacher}"]
        return ["experiment=quickstart", *given, *more]

    def images(self, role: str) -> list[str]:
        return [f"{role}.root={self.folder / 'glyphs'}"]

    def start(
        self, *overrides: str, processes: int = 1, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a run; what it says goes to a file. Several processes: as torchrun starts them."""
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc_per_node={processes}"]
        self.calls += 1
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*command, str(RUN), *self.common, *overrides],
                cwd=self.folder,
                env=os.environ | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> Path:
        """Of the run that was started last."""
        return self.folder / f"{self.calls}.log"

    def finish(
        self, *overrides: str, processes: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        """Run to the end. Raises a UserError with the run's last words if that isn't a good one."""
        process = self.start(*overrides, processes=processes, environment=environment)
        self.wait(process)

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            code = None
        if code != 0:
            words = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            how = f"hung for {PATIENCE:.0f} s" if code is None else f"ended with {code}"
            raise UserError(f"a run that was to be timed {how}; its last words:\n{words}")

    def time_to_first_iteration(self, run_folder: Path, *overrides: str) -> float:
        """Seconds from the start of the process until its first iteration's losses are on disk."""
        metrics = run_folder / "metrics.jsonl"
        begun = time.perf_counter()
        process = self.start(f"hydra.run.dir={run_folder}", "train.steps=1", *overrides)
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.002)
        seconds = time.perf_counter() - begun
        self.wait(process)
        return seconds


@contextmanager
def temporary_runs(device: str) -> Iterator[Runs]:
    with tempfile.TemporaryDirectory(prefix="mosaickd-benchmark-") as folder:
        yield Runs(Path(folder), device)


def metrics_of(run_folder: Path) -> list[dict[str, Any]]:
    """The lines that a run has logged."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
