"""What machines do to runs: terminals that close, full and vanishing disks, no memory, bad numbers.

Real processes, signals and file systems. Kills and damaged checkpoints: test_resume.py.
"""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Running, Tiny, read_json
from forked import Forked, finish, refused

CADENCE = ["train.eval_every=8", "train.log_every=3", "train.checkpoint_every=1"]
SHORT = ["train.steps=16", *CADENCE]
ENDLESS = ["train.steps=4000", *CADENCE]


def paused(run: Running, folder: Path) -> Running:
    """Stop the clock of a run in its middle."""
    run.until((folder / "checkpoints" / "last.pt").exists)
    os.kill(run.pid, signal.SIGSTOP)
    return run


# --------------------------------------------------------------------------------------- terminals


def ignore_sighup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.slow
def test_nohup_is_respected(forked: Forked, tiny: Tiny) -> None:
    same = [*tiny.distil("kd", *SHORT), "hydra.run.dir=run"]
    run = paused(forked.start(*same, before=ignore_sighup), forked.folder / "run")
    os.kill(run.pid, signal.SIGHUP)
    os.kill(run.pid, signal.SIGCONT)
    finish(run)
    assert read_json(forked.folder / "run" / "result.json")["status"] == "finished"


def take_terminal() -> None:
    """Have $TERMINAL as the terminal that decides when this process ends, and print there."""
    os.setsid()
    terminal = os.open(os.environ["TERMINAL"], os.O_RDWR)  # the first that a session opens
    os.dup2(terminal, 1)


def test_a_terminal_that_closes_leaves_a_checkpoint(forked: Forked, tiny: Tiny) -> None:
    """The window is closed: SIGHUP, and nobody takes what is printed."""
    ours, theirs = pty.openpty()
    env = {"TERMINAL": os.ttyname(theirs), "TERM": "xterm"}
    arguments = [*tiny.distil("kd", *ENDLESS), "hydra.run.dir=run"]
    run = forked.start(*arguments, env=env, before=take_terminal)
    folder = forked.folder / "run"
    run.until((folder / "checkpoints" / "last.pt").exists)
    os.close(theirs)
    os.close(ours)
    outcome = run.wait()
    assert outcome.code == 129, outcome.text
    assert "Traceback" not in outcome.text
    assert read_json(folder / "result.json")["status"] == "interrupted"


# ------------------------------------------------------------------------------------------- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 16 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return filler


def test_a_disk_that_fills_up_while_a_run_lasts(
    forked: Forked, tiny: Tiny, small_disk: Path
) -> None:
    folder = small_disk / "run"
    same = [*tiny.distil("kd", *SHORT), f"hydra.run.dir={folder}"]
    run = paused(forked.start(*same), folder)
    filler = fill(small_disk)
    os.kill(run.pid, signal.SIGCONT)
    refused(run, "No space left on device", str(folder), "same command goes on")
    assert not list(folder.rglob("*.tmp"))
    filler.unlink()
    assert "resumed at step" in finish(forked.start(*same))


@pytest.mark.slow
@pytest.mark.parametrize("room", [4, 32, 128, 512, 800, 1024, 1600, 2048, 2600, 3000, 3600, 4096])
def test_a_disk_with_little_room_from_the_start(
    forked: Forked, tiny: Tiny, small_disk: Path, room: int
) -> None:
    """Whichever file it is that has no room (in kB)."""
    filler = fill(small_disk)
    os.truncate(filler, filler.stat().st_size - 1024 * room)
    folder = small_disk / "run"
    same = [*tiny.distil("kd", *SHORT), f"hydra.run.dir={folder}"]
    refused(forked.start(*same), "No space left on device", str(folder))
    filler.unlink()
    finish(forked.start(*same))


@pytest.mark.parametrize(
    "what",
    ["run", *(pytest.param(what, marks=pytest.mark.slow) for what in ("teachers_dir", "ood.root"))],
)
def test_a_disk_that_is_full_from_the_start(
    forked: Forked, tiny: Tiny, small_disk: Path, what: str
) -> None:
    fill(small_disk)
    place = small_disk / "place"
    options = {
        "run": [f"hydra.run.dir={place}"],
        "teachers_dir": ["hydra.run.dir=run", "teacher.checkpoint=null", f"teachers_dir={place}"],
        "ood.root": ["hydra.run.dir=run", f"ood.root={place}"],
    }[what]
    whole = [*tiny.distil("kd", "train.epochs=1"), "dataset.recipe.epochs=1",
             "dataset.recipe.batch_size=48", *options]  # fmt: skip
    run = forked.start(*whole)
    if what == "ood.root":
        assert "not cached" in finish(run)  # it is drawn again for each run
    else:
        refused(run, "No space left on device", str(place))


def test_a_folder_that_is_read_only(forked: Forked, tiny: Tiny, small_disk: Path) -> None:
    (small_disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for place in (small_disk / "run", small_disk / "new"):
        run = forked.start(*tiny.distil("kd", *SHORT), f"hydra.run.dir={place}")
        refused(run, "Read-only file system", str(place), "hydra.run.dir")


def test_a_folder_that_disappears_is_noticed_and_not_made_again(forked: Forked, tiny: Tiny) -> None:
    folder = forked.folder / "run"
    run = paused(forked.start(*tiny.distil("kd", *ENDLESS), "hydra.run.dir=run"), folder)
    shutil.rmtree(folder)
    os.kill(run.pid, signal.SIGCONT)
    refused(run, "run is gone")
    assert not (folder / "result.json").exists()
    assert not (folder / "checkpoints").exists()


# --------------------------------------------------------------------------------- memory, numbers


def test_no_memory_says_what_to_lower_and_the_sweep_goes_on(forked: Forked, tiny: Tiny) -> None:
    sizes = ["method=dfq", "train.steps=2", "train.batch_size=1000000000,4"]
    sweep = ["hydra.sweep.dir=sweep", "hydra.sweep.subdir=${train.batch_size}"]
    arguments = tiny.experiment(forked.folder, f"teacher.checkpoint={tiny.teacher}", *sizes, *sweep)
    outcome = forked.start("-m", *arguments).wait()
    assert outcome.code == 1, outcome.text
    assert "Traceback" not in outcome.text
    message = next(line for line in outcome.out.splitlines() if "out of memory" in line)
    for words in ("train.batch_size=1000000000", "16x16", "Lower train.batch_size"):
        assert words in message
    results = [read_json(forked.folder / "sweep" / size / "result.json")
               for size in ("1000000000", "4")]  # fmt: skip
    assert [result["status"] for result in results] == ["failed", "finished"]


def test_a_loss_that_is_not_finite_stops_within_the_set_number_of_steps(
    forked: Forked, tiny: Tiny
) -> None:
    rare = ["train.steps=400", "train.log_every=1000", "train.check_every=5",
            "train.eval_every=400", "train.checkpoint_every=400"]  # fmt: skip
    wild = ["players.student.optimizer.lr=1e30", "hydra.run.dir=run"]
    run = forked.start(*tiny.distil("kd", *rare, *wild))
    refused(run, "the student's loss 'kd' is", "players.student.optimizer.lr")
    assert read_json(forked.folder / "run" / "result.json")["steps"] <= 10
    assert not (forked.folder / "run" / "student.safetensors").exists()
