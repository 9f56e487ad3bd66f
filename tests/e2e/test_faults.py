"""What machines do to runs: signals, full and vanishing disks, damaged files, clocks, no memory.

Real processes, signals and file systems. Kills at random moments: `python -m tests.soak`.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny, metrics, read_json
from forked import Forked, finish, refused

#: A run that is long enough to be met in its middle; it saves all the time.
CADENCE = ["train.eval_every=8", "train.log_every=3", "train.checkpoint_every=2"]
SHORT = ["train.steps=16", *CADENCE]
LONG = ["train.steps=4000", *CADENCE]


def student(folder: Path) -> bytes:
    return (folder / "student.safetensors").read_bytes()


@pytest.fixture(scope="module")
def untroubled(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """A run that nothing happened to."""
    home = tmp_path_factory.mktemp("untroubled")
    finish(Forked(home, home).start(*tiny.distil("kd", *SHORT), "hydra.run.dir=run"))
    return home / "run"


# ----------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_signals_stop_in_order(forked: Forked, tiny: Tiny, number: int, code: int) -> None:
    run = forked.start(*tiny.distil("kd", *LONG), "hydra.run.dir=run")
    folder = forked.folder / "run"
    run.until((folder / "checkpoints" / "last.pt").exists)
    os.kill(run.pid, number)
    outcome = run.wait()
    assert outcome.code == code, outcome.text
    assert "Traceback" not in outcome.text
    assert "the same command goes on from there" in outcome.out
    assert read_json(folder / "result.json")["status"] == "interrupted"


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once_and_loses_little(
    forked: Forked, tiny: Tiny, untroubled: Path
) -> None:
    same = [*tiny.distil("kd", *SHORT), "hydra.run.dir=run"]
    run = forked.start(*same)
    folder = forked.folder / "run"
    run.until((folder / "checkpoints" / "last.pt").exists)
    for _ in range(2):
        os.kill(run.pid, signal.SIGINT)
    outcome = run.wait()
    assert outcome.code in (-signal.SIGINT, 130), outcome.text
    assert "Traceback" not in outcome.text
    assert "resumed at step" in finish(forked.start(*same))
    assert student(folder) == student(untroubled)


def test_nohup_is_respected(forked: Forked, tiny: Tiny, untroubled: Path) -> None:
    run = forked.start(*tiny.distil("kd", *SHORT), "hydra.run.dir=run", before=as_nohup_does)
    folder = forked.folder / "run"
    run.until((folder / "checkpoints" / "last.pt").exists)
    os.kill(run.pid, signal.SIGHUP)
    finish(run)
    assert student(folder) == student(untroubled)


def as_nohup_does() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_terminal_that_closes_leaves_a_checkpoint(forked: Forked, tiny: Tiny) -> None:
    """The window is closed: SIGHUP, and nobody takes what is printed."""
    ours, theirs = pty.openpty()
    name = os.ttyname(theirs)
    run = forked.start(
        *tiny.distil("kd", *LONG), "hydra.run.dir=run",
        env={"TERMINAL": name, "TERM": "xterm"}, before=move_to_terminal,
    )  # fmt: skip
    folder = forked.folder / "run"
    run.until((folder / "checkpoints" / "last.pt").exists)
    os.close(theirs)
    os.close(ours)
    outcome = run.wait()
    assert outcome.code == 129, outcome.text
    assert "Traceback" not in outcome.text
    assert read_json(folder / "result.json")["status"] == "interrupted"


def move_to_terminal() -> None:
    """Have $TERMINAL as the terminal that decides when this process ends, and print there."""
    os.setsid()
    terminal = os.open(os.environ["TERMINAL"], os.O_RDWR)  # the first that a session opens
    os.dup2(terminal, 1)


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
    forked: Forked, tiny: Tiny, small_disk: Path, untroubled: Path
) -> None:
    folder = small_disk / "run"
    same = [*tiny.distil("kd", *SHORT), f"hydra.run.dir={folder}"]
    run = forked.start(*same)
    run.until((folder / "checkpoints" / "last.pt").exists)
    os.kill(run.pid, signal.SIGSTOP)
    filler = fill(small_disk)
    os.kill(run.pid, signal.SIGCONT)
    refused(run, "No space left on device", str(folder), "same command goes on")
    assert not list(folder.rglob("*.tmp"))
    filler.unlink()
    assert "resumed at step" in finish(forked.start(*same))
    assert student(folder) == student(untroubled)
    assert [line["step"] for line in metrics(folder)] == [m["step"] for m in metrics(untroubled)]


@pytest.mark.parametrize(
    "room", [pytest.param(kilobytes, marks=pytest.mark.slow) for kilobytes in (
        4, 32, 128, 512, 800, 1024, 1600, 2048, 2600, 3000, 3600, 4096)],
)  # fmt: skip
def test_a_disk_with_little_room_from_the_start(
    forked: Forked, tiny: Tiny, small_disk: Path, untroubled: Path, room: int
) -> None:
    """Whichever file it is that has no room."""
    filler = fill(small_disk)
    os.truncate(filler, filler.stat().st_size - 1024 * room)
    folder = small_disk / "run"
    same = [*tiny.distil("kd", *SHORT), f"hydra.run.dir={folder}"]
    refused(forked.start(*same), "No space left on device", str(folder))
    filler.unlink()
    finish(forked.start(*same))
    assert student(folder) == student(untroubled)


@pytest.mark.parametrize(
    "what",
    ["run", *(pytest.param(what, marks=pytest.mark.slow) for what in ("teachers_dir", "ood.root"))],
)
def test_a_disk_that_is_full_from_the_start(
    forked: Forked, tiny: Tiny, small_disk: Path, what: str
) -> None:
    filler = fill(small_disk)
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
        said = finish(run)  # what can't be kept is drawn again
        assert "not cached" in said
    else:
        refused(run, "No space left on device", str(place))
    filler.unlink()
    finish(forked.start(*whole))


def test_an_output_folder_that_is_read_only(forked: Forked, tiny: Tiny, small_disk: Path) -> None:
    (small_disk / "run").mkdir()
    for place in (small_disk / "run", small_disk / "new"):
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        run = forked.start(*tiny.distil("kd", *SHORT), f"hydra.run.dir={place}")
        refused(run, "Read-only file system", str(place), "hydra.run.dir")


def test_a_folder_that_disappears_is_noticed_and_not_made_again(forked: Forked, tiny: Tiny) -> None:
    run = forked.start(*tiny.distil("kd", *LONG), "hydra.run.dir=run")
    folder = forked.folder / "run"
    run.until((folder / "checkpoints" / "last.pt").exists)
    os.kill(run.pid, signal.SIGSTOP)
    shutil.rmtree(folder)
    os.kill(run.pid, signal.SIGCONT)
    refused(run, "run is gone")
    assert not (folder / "result.json").exists()
    assert not (folder / "checkpoints").exists()


# ------------------------------------------------------------------------------ damaged checkpoints


def damage(path: Path, where: float) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x55
    path.write_bytes(content)


@pytest.fixture
def stopped(forked: Forked, tiny: Tiny) -> tuple[Path, list[str]]:
    """A run that was stopped after some checkpoints, and its command."""
    same = [*tiny.distil("kd", *SHORT), "hydra.run.dir=run"]
    folder = forked.folder / "run"
    run = forked.start(*same)
    run.until((folder / "checkpoints" / "previous.pt").exists)
    run.kill()
    return folder, same


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(
    forked: Forked, stopped: tuple[Path, list[str]], untroubled: Path
) -> None:
    folder, same = stopped
    damage(folder / "checkpoints" / "last.pt", 0.6)
    said = finish(forked.start(*same))
    assert f"{folder / 'checkpoints' / 'last.pt'} can't be read as a checkpoint" in said
    assert "goes on from the checkpoint before it" in said
    assert "resumed at step" in said
    assert (folder / "checkpoints" / "damaged.pt").exists()
    assert student(folder) == student(untroubled)


@pytest.mark.slow
def test_two_damaged_checkpoints_are_named_and_kept(
    forked: Forked, stopped: tuple[Path, list[str]]
) -> None:
    folder, same = stopped
    files = [folder / "checkpoints" / name for name in ("last.pt", "previous.pt")]
    for path in files:
        damage(path, 0.4)
    before = [path.read_bytes() for path in files]
    refused(forked.start(*same), *map(str, files), "force=true", "nothing was deleted")
    assert [path.read_bytes() for path in files] == before
    finish(forked.start(*same, "force=true"))


# -------------------------------------------------------------------------- clocks, memory, numbers

#: A wall clock that is a file's number of seconds off.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long off(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_OFF_BY"), "r");
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += off();
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (out) *out = exact.tv_sec;
    return exact.tv_sec;
}
"""


@pytest.mark.slow
def test_a_clock_that_jumps(cli: Any, tmp_path: Path, tiny: Tiny, untroubled: Path) -> None:
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    (tmp_path / "clock.c").write_text(CLOCK)
    library, off_by = tmp_path / "clock.so", tmp_path / "off_by"
    compile_it = ["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "clock.c"), "-ldl"]
    subprocess.run(compile_it, check=True)
    off_by.write_text("0")
    env = {"LD_PRELOAD": str(library), "CLOCK_OFF_BY": str(off_by)}
    run = cli.start(*tiny.distil("kd", *SHORT), "hydra.run.dir=run", env=env)
    folder = cli.folder / "run"
    run.until((folder / "checkpoints" / "last.pt").exists)
    off_by.write_text(str(-20 * 365 * 86400))
    run.until((folder / "checkpoints" / "previous.pt").exists)
    off_by.write_text(str(365 * 86400))
    outcome = run.wait()
    assert outcome.code == 0, outcome.text
    years = {line[:4] for line in (folder / "run.log").read_text().splitlines() if line[:2] == "20"}
    assert len(years) > 1, "the clock has jumped"
    assert student(folder) == student(untroubled)
    assert 0 < read_json(folder / "result.json")["seconds"] < 600


def test_no_memory_says_what_to_lower_and_the_sweep_goes_on(forked: Forked, tiny: Tiny) -> None:
    chosen = [a for a in tiny.mosaic() if not a.startswith(("ood.", "train.batch_size"))]
    cells = ["method=dfq", "~ood", "train.steps=2", "train.batch_size=1000000000,4"]
    sweep = ["hydra.sweep.dir=sweep", "hydra.sweep.subdir=${train.batch_size}"]
    outcome = forked.start("-m", *chosen, *cells, *sweep).wait()
    assert outcome.code == 1, outcome.text
    assert "Traceback" not in outcome.text
    (said,) = [line for line in outcome.out.splitlines() if "out of memory" in line]
    for words in ("train.batch_size=1000000000", "16x16", "Lower train.batch_size"):
        assert words in said
    results = [read_json(forked.folder / "sweep" / size / "result.json")
               for size in ("1000000000", "4")]  # fmt: skip
    assert [result["status"] for result in results] == ["failed", "finished"]
    assert "out of memory" in results[0]["error"]


def test_a_loss_that_is_not_finite_stops_within_the_set_number_of_steps(
    forked: Forked, tiny: Tiny
) -> None:
    rare = ["train.steps=400", "train.log_every=1000", "train.check_every=5",
            "train.eval_every=400", "train.checkpoint_every=400"]  # fmt: skip
    wild = ["players.student.optimizer.lr=1e30"]
    message = refused(forked.start(*tiny.distil("kd", *rare, *wild), "hydra.run.dir=run"),
                      "the student's loss 'kd' is", "players.student.optimizer.lr")  # fmt: skip
    result = read_json(forked.folder / "run" / "result.json")
    assert result["steps"] <= 10, message
    assert not (forked.folder / "run" / "student.safetensors").exists()


# ------------------------------------------------------------------------------------- provenance


def test_two_runs_of_one_command_are_the_same_to_the_bit(
    forked: Forked, tiny: Tiny, untroubled: Path
) -> None:
    finish(forked.start(*tiny.distil("kd", *SHORT), "hydra.run.dir=run"))
    assert student(forked.folder / "run") == student(untroubled)


def test_a_run_does_not_go_on_with_other_images(
    forked: Forked, tiny: Tiny, stopped: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, same = stopped
    own = shutil.copytree(tiny.glyphs, tmp_path / "glyphs")
    moved = [a.replace(str(tiny.glyphs), str(own)) for a in same]
    for config in (folder / "config.json",):  # the same place, as far as the settings say
        config.write_text(config.read_text().replace(str(tiny.glyphs), str(own)))
    import numpy as np

    (cache,) = own.glob("strokes-train-240-*.npz")
    with np.load(cache) as file:
        content = dict(file)
    content["images"][0] ^= 0xFF
    np.savez(cache, **content)
    changed = refused(forked.start(*moved), "data_fingerprint", "ood/train", "force=true")
    assert "teacher_fingerprint" not in changed
    finish(forked.start(*moved, "force=true"))
    fingerprints = read_json(folder / "result.json")["data_fingerprint"]
    assert fingerprints["ood/train"] in json.dumps(fingerprints)


def test_results_and_checkpoints_say_where_they_come_from(untroubled: Path) -> None:
    import torch

    result = read_json(untroubled / "result.json")
    saved = torch.load(untroubled / "checkpoints" / "last.pt", weights_only=True)["provenance"]
    for key in ("config_hash", "code", "data_fingerprint", "teacher_fingerprint"):
        assert result[key], key
        assert saved[key] == result[key]
    assert set(result["code"]) == {"commit", "dirty"}
    assert set(result["data_fingerprint"]) == {"dataset/test", "ood/train"}
