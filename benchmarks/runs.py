"""Calls of `python run.py` in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from mosaickd.errors import UserError
from mosaickd.metric_names import TIME
from mosaickd.run_dir import RunDir

REPO = Path(__file__).resolve().parent.parent
PATIENCE = 1800.0  # seconds until a process counts as hung


def call(command: list[str], threads: int | None = None) -> str:
    """Return what a Python process prints. Raises UserError with its last lines if it fails."""
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=REPO, env=os.environ | environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{' '.join(command)} hung for {PATIENCE:.0f} s") from error
    if done.returncode != 0:
        lines = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise UserError(f"{' '.join(command)} ended with {done.returncode}:\n{lines}")
    return done.stdout


def train(folder: Path, *overrides: str, processes: int = 1, threads: int | None = None) -> RunDir:
    """Run to the end, by several processes as torchrun starts them."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = ["run.py", "tracker=none", f"hydra.run.dir={folder}", *overrides]
    call([*(torchrun if processes > 1 else []), *command], threads)
    return RunDir(folder)


def quickstart(folder: Path, device: str) -> list[str]:
    """Return overrides of a quickstart whose images are drawn and whose teacher exists.

    Draws the images and trains the teacher, barely, in `folder`.
    """
    common = [
        f"device={device}",
        f"teachers_dir={folder / 'checkpoints'}",
        f"dataset.root={folder / 'glyphs'}",
    ]
    teacher = train(folder / "teacher", "method=scratch", "dataset=letters", "student=wrn16_2",
                    "train.steps=20", *common)  # fmt: skip
    return ["experiment=quickstart", *common, f"ood.root={folder / 'glyphs'}",
            f"teacher.checkpoint={teacher.student}"]  # fmt: skip


def seconds_to_first_iteration(folder: Path, *overrides: str) -> float:
    """Return the seconds from the start of a run's process until its first losses are logged."""
    start = time.time()
    run = train(folder, "train.steps=1", *overrides)
    return float(run.read_metrics()[0][TIME]) - start
