"""Several processes want the same: one gets it, the others wait, or are told whose it is."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
from conftest import Tiny, metrics, read_json
from forked import Forked, finish, refused

EIGHT = range(8)


def test_a_second_launch_is_refused_by_name_and_the_first_unharmed(
    forked: Forked, tiny: Tiny
) -> None:
    same = tiny.distil("kd", "train.steps=12", "train.checkpoint_every=2", "hydra.run.dir=run")
    folder = forked.folder / "run"
    first = forked.start(*same)
    first.until((folder / "checkpoints" / "last.pt").exists)
    os.kill(first.pid, signal.SIGSTOP)  # it must still be there when the second comes
    refused(forked.start(*same), f"in use by process {first.pid} on {socket.gethostname()}")
    os.kill(first.pid, signal.SIGCONT)
    finish(first)
    result = read_json(folder / "result.json")
    assert (result["status"], result["steps"]) == ("finished", 12)


def test_a_run_that_another_machine_took_over_stops_and_writes_nothing(
    forked: Forked, tiny: Tiny
) -> None:
    """As after a machine was suspended for a while."""
    endless = ["train.steps=4000", "train.checkpoint_every=2", "train.log_every=3"]
    run = forked.start(*tiny.distil("kd", *endless), "hydra.run.dir=run")
    folder = forked.folder / "run"
    run.until((folder / "checkpoints" / "last.pt").exists)
    os.kill(run.pid, signal.SIGSTOP)
    (folder / ".owner").unlink()
    theirs = "filelock/2\npid=7\nhost=faraway\nmode=lease\ntoken=ab\nduration=60.0\n"
    (folder / ".owner").write_text(theirs)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    os.kill(run.pid, signal.SIGCONT)
    refused(run, "process 7 on faraway has taken it over")
    assert read_json(folder / "result.json")["status"] == "running", "its new owner's to change"
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    # What was on its way when it was stopped may still arrive.
    assert {p.name for p in after if after[p] != before.get(p)} <= {"last.pt", "previous.pt",
                                                                    "run.log"}  # fmt: skip
    assert (folder / ".owner").read_text() == theirs


def whole_kd(glyphs: str, seed: int) -> list[str]:
    """One epoch from a teacher for everybody."""
    tiny = Tiny(Path(glyphs))
    recipe = "dataset.recipe={epochs: 4, batch_size: 48, lr: 0.05, weight_decay: 5e-4}"
    return ["method=kd", "dataset=letters", "ood=strokes", "teacher=wrn16_2", "student=wrn16_1",
            "tracker=none", "train.epochs=1", "train.batch_size=16", "train.precision=fp32", recipe,
            *tiny.source("dataset"), *tiny.source("ood", 32), f"seed={seed}",
            f"hydra.run.dir=run{seed}"]  # fmt: skip


@pytest.mark.slow
def test_eight_that_need_the_same_images_and_the_same_teacher_make_them_once(
    forked: Forked,
) -> None:
    runs = [forked.start(*whole_kd("glyphs", seed)) for seed in EIGHT]
    said = [finish(run) for run in runs]
    assert sum("training it first, once" in text for text in said) == 1
    assert_one_teacher(forked)
    accuracies = {read_json(forked.folder / f"run{n}" / "result.json")["teacher_accuracy"]
                  for n in EIGHT}  # fmt: skip
    assert len(accuracies) == 1


@pytest.mark.slow
def test_when_the_maker_is_killed_half_way_another_takes_over(forked: Forked) -> None:
    training = forked.folder / "checkpoints" / "letters" / "wrn16_2-training"
    runs = [forked.start(*whole_kd("glyphs", seed)) for seed in EIGHT]
    killed = 0
    for _ in range(3):
        before = epochs_of(training)
        while epochs_of(training) == before:
            time.sleep(0.005)
        maker = next(run for run in runs if run.process.is_alive() and is_training(run.out))
        maker.kill()
        runs.remove(maker)
        killed += 1
    said = [finish(run) for run in runs]
    assert len(said) == len(EIGHT) - killed
    assert any("resumed at step" in text for text in said)
    assert_one_teacher(forked)


def epochs_of(training: Path) -> int:
    path = training / "checkpoints" / "last.pt"
    return path.stat().st_mtime_ns if path.exists() else 0


def is_training(out: Path) -> bool:
    return "training it first, once" in out.read_text()


def assert_one_teacher(forked: Forked) -> None:
    """Each of its epochs was outputs once."""
    home = forked.folder / "checkpoints" / "letters"
    steps = [line["step"] for line in metrics(home / "wrn16_2-training") if "accuracy/top1" in line]
    assert steps == [5, 10, 15, 20]
    assert read_json(home / "wrn16_2.json")["recipe"]["train"]["epochs"] == 4
