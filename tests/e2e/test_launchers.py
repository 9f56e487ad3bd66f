"""Sweeps by Hydra's launcher plugins: jobs side by side, stopped in order, queued again."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import Cli, Tiny, read_json
from safetensors.torch import load_file

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
SUBMITIT = ["hydra/launcher=submitit_local"]


def sweep(cli: Cli, tiny: Tiny, *more: str, home: str = "sweep") -> list[str]:
    """Jobs of four steps, KD on strokes unless `more` says otherwise."""
    own = tiny.experiment(cli.folder, "method=kd", f"teacher.checkpoint={tiny.teacher}")
    name = "hydra.sweep.subdir=seed${seed}-${train.batch_size}"
    return ["-m", *own, f"hydra.sweep.dir={home}", name, *more]


def statuses(cli: Cli) -> dict[str, str]:
    paths = sorted((cli.folder / "sweep").glob("*/result.json"))
    return {path.parent.name: read_json(path)["status"] for path in paths}


def children(pid: int) -> list[int]:
    """Processes that `pid` started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            if path.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(path.parent.name))
    return found


def job(home: Path) -> int:
    """Where submitit runs the only cell: the child of what its folder is named after."""
    (folder,) = (home / ".submitit").glob("[0-9]*")
    (pid,) = children(int(folder.name))
    return pid


def same_students(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (one, other))
    return all(torch.equal(ours[key], theirs[key]) for key in ours.keys() | theirs.keys())


@pytest.mark.slow
def test_joblib_runs_all_jobs_whatever_becomes_of_some_and_skips_them_again(
    cli: Cli, tiny: Tiny
) -> None:
    command = sweep(cli, tiny, *JOBLIB, "seed=0,1")
    mixed = cli(*command, "train.batch_size=1000,16", code=1)
    finished = {"seed0-16": "finished", "seed1-16": "finished"}
    assert statuses(cli) == finished, "what could not begin leaves no run"
    for seed in (0, 1):  # each failure is told, with its folder
        assert re.search(rf"seed{seed}-1000: .*train.batch_size", mixed.out)
    assert "error: " in mixed.err
    table = mixed.out[mixed.out.rindex("┏") :]
    assert "KD on strokes" in table

    again = cli(*command)
    assert again.out.count("is finished: nothing to do") == 2


@pytest.mark.slow
def test_ctrl_c_stops_a_joblib_sweep_in_order_and_the_same_command_goes_on(
    cli: Cli, tiny: Tiny
) -> None:
    command = sweep(cli, tiny, *JOBLIB, "seed=0,1,2", "train.checkpoint_every=1")
    long = [*command, "train.steps=3000"]
    started = cli.start(*long)
    home = cli.folder / "sweep"
    checkpoints = [home / f"seed{seed}-16" / "checkpoints" / "last.pt" for seed in (0, 1)]
    started.until(lambda: all(path.exists() for path in checkpoints))
    for pid in children(started.process.pid):
        os.kill(pid, signal.SIGINT)  # as a terminal does
    outcome = started.send(signal.SIGINT)
    assert outcome.code == 130, outcome.text
    assert "Traceback" not in outcome.text
    assert statuses(cli) == {"seed0-16": "interrupted", "seed1-16": "interrupted"}
    assert not (home / "seed2-16" / "checkpoints").exists(), "what had not begun does not begin"
    for path in checkpoints:
        steps = read_json(path.parent.parent / "result.json")["steps"]
        assert torch.load(path, weights_only=True)["state"]["step"] == steps > 0

    again = cli.start(*long)
    again.until(lambda: again.out.read_text().count("resumed at step") == 2)
    outcome = again.send(signal.SIGTERM)
    assert outcome.code == 143, outcome.text
    assert "Traceback" not in outcome.text


@pytest.mark.slow
def test_submitit_runs_all_jobs(cli: Cli, tiny: Tiny) -> None:
    outcome = cli(*sweep(cli, tiny, *SUBMITIT, "seed=0,1"))
    assert statuses(cli) == {"seed0-16": "finished", "seed1-16": "finished"}
    assert "KD on strokes" in outcome.out[outcome.out.rindex("┏") :]


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_and_ends_bit_identical(cli: Cli, tiny: Tiny) -> None:
    steps = ["seed=0", "train.steps=60", "train.checkpoint_every=5"]
    cli(*sweep(cli, tiny, *steps, home="reference"))
    started = cli.start(*sweep(cli, tiny, *SUBMITIT, *steps))
    home = cli.folder / "sweep"
    run = home / "seed0-16"
    started.until((run / "checkpoints" / "last.pt").exists)
    os.kill(job(home), signal.SIGUSR2)
    outcome = started.wait()
    assert outcome.code == 0, outcome.text
    log = (run / "run.log").read_text()
    stopped = re.search(r"stopped by SIGUSR2 at step (\d+)", log)
    assert stopped
    assert f"resumed at step {stopped[1]} of 60" in log
    assert read_json(run / "result.json")["status"] == "finished"
    assert same_students(run, cli.folder / "reference" / "seed0-16")


@pytest.mark.slow
def test_a_job_that_is_told_to_end_keeps_its_work(cli: Cli, tiny: Tiny) -> None:
    command = sweep(cli, tiny, *SUBMITIT, "seed=0", "train.steps=60", "train.checkpoint_every=5")
    started = cli.start(*command)
    home = cli.folder / "sweep"
    started.until((home / "seed0-16" / "checkpoints" / "last.pt").exists)
    os.kill(job(home), signal.SIGTERM)
    outcome = started.wait()
    assert outcome.code == 1, outcome.text
    assert "Traceback" not in outcome.text
    assert "the same command goes on" in outcome.err
    steps = read_json(home / "seed0-16" / "result.json")["steps"]
    cli(*command)
    assert f"resumed at step {steps} of 60" in (home / "seed0-16" / "run.log").read_text()
    assert statuses(cli) == {"seed0-16": "finished"}
