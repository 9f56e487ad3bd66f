"""Folders with one owner: the second is refused by name, the dead are succeeded, also elsewhere."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import REPO

from mosaickd.utils import locks
from mosaickd.utils.locks import OWNER, InUse, Lost, build_lock, check_run_lock, holder, run_lock

HOLD = """
import sys
from pathlib import Path
from mosaickd.utils import locks
with locks.{how}(Path(sys.argv[1]){more}):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding(path: Path, how: str = "run_lock", more: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds it."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(how=how, more=more), str(path)],
        cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        yield other
    finally:
        other.kill()
        other.communicate()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become tenths."""
    monkeypatch.setattr(locks, "LEASE", 1.0)
    monkeypatch.setattr(locks, "HEARTBEAT", 0.1)


def elsewhere(folder: Path, lease: float = 1.0) -> Path:
    """The mark of a process on another machine."""
    mark = folder / OWNER
    mark.write_text(f"filelock/2\npid=7\nhost=faraway\nmode=lease\ntoken=ab\nduration={lease!r}\n")
    return mark


def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path: Path) -> None:
    with holding(tmp_path) as other:
        with pytest.raises(InUse) as refused, run_lock(tmp_path):
            pass
        assert f"in use by process {other.pid} on {socket.gethostname()}" in str(refused.value)
    with run_lock(tmp_path):
        pass  # at once, though the killed process has left its mark
    assert not (tmp_path / OWNER).exists()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("alive", [True, False])
def test_a_process_elsewhere_is_succeeded_once_it_gives_no_sign_of_life(
    tmp_path: Path, alive: bool
) -> None:
    mark, stop = elsewhere(tmp_path), threading.Event()

    def touch() -> None:
        while alive and not stop.wait(0.1):
            os.utime(mark)

    other = threading.Thread(target=touch)
    other.start()
    try:
        if alive:
            with pytest.raises(InUse, match="process 7 on faraway"), run_lock(tmp_path):
                pass
        else:
            began = time.monotonic()
            with run_lock(tmp_path):
                assert time.monotonic() - began >= 1.0, "silent for the whole lease"
                check_run_lock(tmp_path)
    finally:
        stop.set()
        other.join()


def test_who_holds_a_folder_is_seen_from_outside(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with run_lock(tmp_path):
        own = holder(tmp_path)
        assert own is not None
        assert (own.pid, own.alive, own.here) == (os.getpid(), True, True)
    mark = elsewhere(tmp_path)
    for age, alive in ((0, True), (2 * locks.LEASE, False)):
        os.utime(mark, (time.time() - age,) * 2)
        other = holder(tmp_path)
        assert other is not None
        assert (other.host, other.alive, other.here) == ("faraway", alive, False)
    with holding(tmp_path / "mine") as process:
        pass  # it is killed
    dead = holder(tmp_path / "mine")
    assert dead is not None
    assert (dead.pid, dead.alive) == (process.pid, False)


def test_a_mark_that_was_left_half_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / OWNER).write_text("filelock/2\npid=1")
    with run_lock(tmp_path):
        pass


@pytest.mark.usefixtures("impatient")
def test_who_was_succeeded_notices(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        check_run_lock(tmp_path)
        (tmp_path / OWNER).unlink()
        elsewhere(tmp_path)
        with pytest.raises(Lost, match="process 7 on faraway has taken it over"):
            check_run_lock(tmp_path)
    assert "faraway" in (tmp_path / OWNER).read_text(), "the mark is its successor's to remove"


def test_who_owns_a_folder_that_is_gone_notices(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with run_lock(folder):
        shutil.rmtree(folder)
        with pytest.raises(Lost, match="is gone"):
            check_run_lock(folder)
    assert not folder.exists()
    check_run_lock(folder)  # nobody's


def test_makers_wait_for_each_other_and_take_over_from_one_that_was_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "made.lock"
    done: list[str] = []

    def make() -> None:
        with build_lock(path, "the images"):
            done.append("made")

    with holding(path, "build_lock", ", 'the images'") as other, caplog.at_level("INFO"):
        waiting = threading.Thread(target=make)
        waiting.start()
        time.sleep(0.5)
        assert not done
        assert f"the images: waiting for process {other.pid}" in caplog.text
        other.kill()
        other.wait()
        waiting.join(10)
        assert done == ["made"]


#: A second machine: its own name, and a file of its own in the place of the kernel's locks' one.
OTHER_MACHINE = """
hostname faraway
exec {python} -c "$0" "$@"
"""


@pytest.mark.slow
def test_between_machines_for_real(tmp_path: Path) -> None:
    """In a UTS namespace of its own, a process has another machine's name."""
    unshare = ["unshare", "--uts"] if os.getuid() == 0 else ["unshare", "--user", "-r", "--uts"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"]).returncode:
        pytest.skip("needs a namespace of its own")
    script = OTHER_MACHINE.format(python=sys.executable)
    hold = HOLD.format(how="run_lock", more="")
    other = subprocess.Popen(
        [*unshare, "sh", "-c", script, hold, str(tmp_path)],
        cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        began = time.monotonic()
        with pytest.raises(InUse, match="on faraway"), run_lock(tmp_path):
            pass
        assert time.monotonic() - began < 3 * locks.HEARTBEAT
    finally:
        other.kill()
        other.communicate()
    began = time.monotonic()
    with run_lock(tmp_path):
        assert time.monotonic() - began > locks.LEASE - locks.HEARTBEAT
