"""`torchrun run.py ...`: one run by several processes, and what becomes of it when one dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO, Cli, Outcome, Running, Tiny, losses, metrics, read_json

TORCHRUN = Path(sys.executable).parent / "torchrun"


def torchrun(cli: Cli, *arguments: str, restarts: int = 0) -> Running:
    """Start two ranks."""
    options = ["--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}"]
    return cli.start(command=[str(TORCHRUN), *options, str(REPO / "run.py"), *arguments])


def finish(running: Running, code: int = 0, timeout: float = 120.0) -> Outcome:
    outcome = running.wait(timeout)
    assert outcome.code == code, outcome.text
    return outcome


def pid_of_rank(running: Running, rank: int) -> int:
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_text().split("\0")
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if f"RANK={rank}" in environment and parent == running.pid:
            return int(path.parent.name)
    raise AssertionError(f"no rank {rank}")


def assert_same_student(cli: Cli, *folders: str) -> None:
    one, other = (cli.folder / folder / "student.safetensors" for folder in folders)
    assert one.read_bytes() == other.read_bytes()


def kd(tiny: Tiny, folder: str, steps: int, *more: str) -> list[str]:
    """In float32; saved every third step, logged every step."""
    length = ["train.precision=fp32", "train.epochs=null", f"train.steps={steps}",
              "train.checkpoint_every=3"]  # fmt: skip
    watched = ["train.eval_every=6", "train.log_every=1", f"hydra.run.dir={folder}"]
    return tiny.distil("kd", *length, *watched, *more)


def mosaic(tiny: Tiny, folder: str, steps: int, *more: str) -> list[str]:
    return [a.replace("quickstart_kd", "quickstart") for a in kd(tiny, folder, steps, *more)]


def test_two_ranks_train_one_student(cli: Cli, tiny: Tiny) -> None:
    """(That they compute what one does: unit/test_distributed.py.)"""
    outcome = finish(torchrun(cli, *kd(tiny, "run", 4)))
    result = read_json(cli.folder / "run" / "result.json")
    assert (result["status"], result["processes"], result["steps"]) == ("finished", 2, 4)
    assert outcome.out.count("4 steps of 16 images") == 1, "only the first one talks"
    assert outcome.out.count("┏") == 1
    lines = [losses(line) for line in metrics(cli.folder / "run") if losses(line)]
    assert len(lines) == 4, "and only it writes"
    assert "nothing to do" in cli(*kd(tiny, "run", 4)).out


@pytest.mark.slow
def test_a_run_goes_on_after_one_of_its_processes_was_killed(cli: Cli, tiny: Tiny) -> None:
    """The others end within a minute and say why; the same command goes on, bit for bit."""
    finish(torchrun(cli, *mosaic(tiny, "whole", 15)))
    running = torchrun(cli, *mosaic(tiny, "killed", 15))
    running.until((cli.folder / "killed" / "checkpoints" / "last.pt").exists)
    os.kill(pid_of_rank(running, 1), signal.SIGKILL)
    killed_at = time.monotonic()
    outcome = running.wait()
    assert time.monotonic() - killed_at < 60
    assert outcome.code != 0
    assert "process 0: another process of this run has ended" in outcome.text
    assert read_json(cli.folder / "killed" / "result.json")["status"] != "finished"
    assert "resumed at step" in finish(torchrun(cli, *mosaic(tiny, "killed", 15))).text
    assert_same_student(cli, "whole", "killed")


@pytest.mark.slow
def test_it_goes_on_after_a_restart_by_torchrun_and_after_a_signal(cli: Cli, tiny: Tiny) -> None:
    finish(torchrun(cli, *mosaic(tiny, "whole", 40)))
    running = torchrun(cli, *mosaic(tiny, "killed", 40), restarts=1)
    running.until((cli.folder / "killed" / "checkpoints" / "last.pt").exists)
    os.kill(pid_of_rank(running, 0), signal.SIGKILL)  # the one that writes
    assert "resumed at step" in finish(running).text
    assert_same_student(cli, "whole", "killed")

    running = torchrun(cli, *mosaic(tiny, "stopped", 40))
    running.until((cli.folder / "stopped" / "checkpoints" / "last.pt").exists)
    assert running.send(signal.SIGTERM).code != 0
    assert read_json(cli.folder / "stopped" / "result.json")["status"] == "interrupted"
    finish(torchrun(cli, *mosaic(tiny, "stopped", 40)))
    assert_same_student(cli, "whole", "stopped")


@pytest.mark.slow
def test_another_number_of_processes_goes_on_and_says_what_changes(cli: Cli, tiny: Tiny) -> None:
    running = torchrun(cli, *mosaic(tiny, "run", 40))
    running.until((cli.folder / "run" / "checkpoints" / "last.pt").exists)
    running.send(signal.SIGTERM)
    outcome = cli(*mosaic(tiny, "run", 40))
    assert "resumed by 1 processes what 2 began" in outcome.text
    assert "16 images at a time in place of 8" in outcome.text
    assert read_json(cli.folder / "run" / "result.json")["status"] == "finished"


@pytest.mark.slow
def test_a_missing_teacher_is_trained_by_all_of_them_once(cli: Cli, tiny: Tiny) -> None:
    own = tiny.experiment(cli.folder, "method=kd", "hydra.run.dir=run")
    outcome = finish(torchrun(cli, *own))
    assert outcome.out.count("training it first, once") == 1
    teachers = cli.folder / "checkpoints" / "letters"
    assert (teachers / "wrn16_2.safetensors").exists()
    assert read_json(teachers / "wrn16_2-training" / "result.json")["processes"] == 2
    assert read_json(cli.folder / "run" / "result.json")["status"] == "finished"


@pytest.mark.slow
def test_a_method_that_can_not_be_shared_is_refused(cli: Cli, tiny: Tiny) -> None:
    own = tiny.experiment(cli.folder, "method=deepinv", f"teacher.checkpoint={tiny.teacher}")
    outcome = finish(torchrun(cli, *own, "train.steps=2", "hydra.run.dir=run"), code=1)
    assert "method=deepinv can't be run by several processes" in outcome.text


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
    finish(torchrun(cli, *own, "hydra.run.dir=two"))
    one, two = (read_json(cli.folder / n / "result.json")["accuracy"] for n in ("one", "two"))
    assert one["last"] > 50, "chance is 4"
    assert two["last"] == pytest.approx(one["last"], abs=10)


@pytest.mark.slow
def test_a_sweep_under_torchrun_goes_on_after_a_job_that_failed(cli: Cli, tiny: Tiny) -> None:
    """A loss that explodes does so in all processes; then they train the next job together."""
    rates = "players.student.optimizer.lr=1e30,0.01"
    where = ["hydra.sweep.dir=sweep", "hydra.sweep.subdir=${players.student.optimizer.lr}"]
    own = ["-m", *tiny.distil("kd", "train.epochs=null", "train.steps=4", rates, *where)]
    outcome = finish(torchrun(cli, *own), code=1)
    results = [read_json(path) for path in sorted((cli.folder / "sweep").glob("*/result.json"))]
    assert sorted(result["status"] for result in results) == ["failed", "finished"]
    assert outcome.text.count("top-1 accuracy at the last step") == 1, "one table"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_networks_train_together(cli: Cli, tiny: Tiny) -> None:
    own = mosaic(tiny, "compiled", 2, "train.compile=true")
    finish(torchrun(cli, *own), timeout=500)
    result = read_json(cli.folder / "compiled" / "result.json")
    assert (result["status"], result["processes"]) == ("finished", 2)
