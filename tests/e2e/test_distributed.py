"""`torchrun run.py ...`: one run by several processes, and what becomes of it when one dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPO, Cli, Outcome, Started, Tiny, losses, metrics, read_json
from safetensors.torch import load_file

TORCHRUN = Path(sys.executable).parent / "torchrun"


def torchrun(cli: Cli, *arguments: str, processes: int = 2, restarts: int = 0) -> Started:
    options = ["--standalone", f"--nproc_per_node={processes}", f"--max-restarts={restarts}"]
    command = [str(TORCHRUN), *options, str(REPO / "run.py"), *arguments]
    return cli.start(command=command)


def done(started: Started, code: int = 0) -> Outcome:
    outcome = started.wait()
    assert outcome.code == code, outcome.text
    return outcome


def worker(started: Started, rank: int) -> int:
    """The process id of a rank."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = dict(
                line.split("=", 1) for line in path.read_text().split("\0") if "=" in line
            )
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if environment.get("RANK") == str(rank) and parent == started.process.pid:
            return int(path.parent.name)
    raise AssertionError(f"no rank {rank}")


def student(cli: Cli, folder: str) -> dict[str, torch.Tensor]:
    return load_file(cli.folder / folder / "student.safetensors")


def assert_same_student(cli: Cli, one: str, other: str) -> None:
    first, second = student(cli, one), student(cli, other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.fixture
def overrides(tiny: Tiny) -> Callable[..., list[str]]:
    def build(folder: str, steps: int = 12, *more: str) -> list[str]:
        length = [
            "train.precision=fp32",
            "train.epochs=null",
            f"train.steps={steps}",
            "train.checkpoint_every=3",
        ]
        watched = ["train.eval_every=6", "train.log_every=1", f"hydra.run.dir={folder}"]
        return tiny.mosaic(*length, *watched, *more)

    return build


@pytest.mark.slow
def test_two_processes_play_one_run(cli: Cli, overrides: Callable[..., list[str]]) -> None:
    """Where batch norms see the whole batch it is the very run that one process plays, but for
    rounding; the first process writes."""
    whole = "train.sync_batch_norm=[student,generator,discriminator]"
    outcome = done(torchrun(cli, *overrides("two", 4, whole)))
    result = read_json(cli.folder / "two" / "result.json")
    assert result["status"] == "finished"
    assert result["processes"] == 2
    assert outcome.out.count("4 steps of 16 images") == 1, "only the first one talks"
    assert outcome.out.count("┏") == 1
    two = [losses(line) for line in metrics(cli.folder / "two") if losses(line)]
    cli(*overrides("one", 4, whole))
    one = [losses(line) for line in metrics(cli.folder / "one") if losses(line)]
    assert len(one) == len(two) == 4, "and only it writes"
    # A processor with AVX512 rounds convolutions of another batch size 2e-4 apart.
    assert two[0] == pytest.approx(one[0], rel=1e-3)
    assert two[2] == pytest.approx(one[2], rel=2e-2), "roundings grow from step to step"

    again = done(torchrun(cli, *overrides("two", 4, whole)))
    assert "is finished: nothing to do" in again.text


@pytest.mark.slow
def test_a_run_goes_on_after_one_of_its_processes_was_killed(
    cli: Cli, overrides: Callable[..., list[str]]
) -> None:
    """The others end within a minute and say why; the same command goes on, bit for bit."""
    done(torchrun(cli, *overrides("whole", 15)))
    started = torchrun(cli, *overrides("killed", 15))
    started.until((cli.folder / "killed" / "checkpoints" / "last.pt").exists)
    os.kill(worker(started, 1), signal.SIGKILL)
    killed_at = time.monotonic()
    outcome = started.wait()
    assert time.monotonic() - killed_at < 60
    assert outcome.code != 0
    assert "process 0: another process of this run has ended" in outcome.text
    result = read_json(cli.folder / "killed" / "result.json")
    assert result["status"] != "finished"
    resumed = done(torchrun(cli, *overrides("killed", 15)))
    assert "resumed at step" in resumed.text
    assert_same_student(cli, "whole", "killed")


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint(
    cli: Cli, overrides: Callable[..., list[str]]
) -> None:
    done(torchrun(cli, *overrides("whole", 40)))
    started = torchrun(cli, *overrides("killed", 40), restarts=1)
    started.until((cli.folder / "killed" / "checkpoints" / "last.pt").exists)
    os.kill(worker(started, 0), signal.SIGKILL)  # the one that writes
    outcome = done(started)
    assert "resumed at step" in outcome.text
    assert_same_student(cli, "whole", "killed")


@pytest.mark.slow
def test_sigterm_stops_all_at_one_step(cli: Cli, overrides: Callable[..., list[str]]) -> None:
    done(torchrun(cli, *overrides("whole", 40)))
    started = torchrun(cli, *overrides("stopped", 40))
    started.until((cli.folder / "stopped" / "checkpoints" / "last.pt").exists)
    outcome = started.send(signal.SIGTERM)
    assert outcome.code != 0
    result = read_json(cli.folder / "stopped" / "result.json")
    assert result["status"] == "interrupted"
    done(torchrun(cli, *overrides("stopped", 40)))
    assert_same_student(cli, "whole", "stopped")


@pytest.mark.slow
def test_another_number_of_processes_goes_on_and_says_what_changes(
    cli: Cli, overrides: Callable[..., list[str]]
) -> None:
    started = torchrun(cli, *overrides("run", 40))
    started.until((cli.folder / "run" / "checkpoints" / "last.pt").exists)
    started.send(signal.SIGTERM)
    outcome = cli(*overrides("run", 40))
    assert "resumed by 1 processes what 2 began" in outcome.text
    assert "16 images at a time in place of 8" in outcome.text
    assert read_json(cli.folder / "run" / "result.json")["status"] == "finished"


@pytest.mark.slow
def test_a_missing_teacher_is_trained_by_all_of_them_once(cli: Cli, tiny: Tiny) -> None:
    own = tiny.experiment(cli.folder, "method=kd", "hydra.run.dir=run")
    outcome = done(torchrun(cli, *own))
    assert outcome.out.count("training it first, once") == 1
    teachers = cli.folder / "checkpoints" / "letters"
    assert (teachers / "wrn16_2.safetensors").exists()
    assert read_json(teachers / "wrn16_2-training" / "result.json")["processes"] == 2
    assert read_json(cli.folder / "run" / "result.json")["status"] == "finished"


@pytest.mark.slow
def test_what_cannot_be_shared_is_refused(cli: Cli, tiny: Tiny) -> None:
    kd = tiny.distil("kd", "train.steps=2", "hydra.run.dir=odd", "train.batch_size=15")
    outcome = done(torchrun(cli, *kd), code=1)
    assert outcome.text.count("train.batch_size=15 does not divide among 2 processes") == 1
    deepinv = tiny.distil("kd", "~ood", "method=deepinv", "train.steps=2", "hydra.run.dir=images")
    deepinv = [o for o in deepinv if not o.startswith("ood.")]
    outcome = done(torchrun(cli, *deepinv), code=1)
    assert "method=deepinv can't be outputs by several processes" in outcome.text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_learn_what_one_learns(cli: Cli, tiny: Tiny) -> None:
    """Letters with labels, long enough to learn them well."""
    own = [
        "method=scratch", "dataset=letters", "student=wrn16_1", "tracker=none",
        f"dataset.root={tiny.glyphs}", "dataset.reader.train_images=2000",
        "dataset.reader.test_images=500", "train.epochs=8", "train.batch_size=50",
    ]  # fmt: skip
    cli(*own, "hydra.run.dir=one")
    done(torchrun(cli, *own, "hydra.run.dir=two"))
    one, two = (read_json(cli.folder / n / "result.json")["accuracy"] for n in ("one", "two"))
    assert one["last"] > 50, "chance is 4"
    assert two["last"] == pytest.approx(one["last"], abs=10)


@pytest.mark.slow
def test_a_sweep_under_torchrun_goes_on_after_a_cell_that_failed(cli: Cli, tiny: Tiny) -> None:
    """A loss that explodes does so in all processes; then they play the next cell together."""
    rates = "players.student.optimizer.lr=1e30,0.01"
    where = ["hydra.sweep.dir=sweep", "hydra.sweep.subdir=${players.student.optimizer.lr}"]
    own = ["-m", *tiny.distil("kd", "train.epochs=null", "train.steps=4", rates, *where)]
    outcome = done(torchrun(cli, *own), code=1)
    results = [read_json(path) for path in sorted((cli.folder / "sweep").glob("*/result.json"))]
    assert sorted(result["status"] for result in results) == ["failed", "finished"]
    told = outcome.text.count("the student's loss 'kd' is")
    assert told == 2, "where it happens, and last: by one process"
    assert outcome.text.count("top-1 accuracy at the last step") == 1, "one table"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_networks_play_together(cli: Cli, overrides: Callable[..., list[str]]) -> None:
    """Also one whose batch norms send messages from within."""
    own = overrides("compiled", 2, "train.compile=true")
    torchrun(cli, *own).process.wait(500)
    result = read_json(cli.folder / "compiled" / "result.json")
    assert (result["status"], result["processes"]) == ("finished", 2)
