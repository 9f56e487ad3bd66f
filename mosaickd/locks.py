"""One process at a time, on this machine or on any other that sees the same folder.

A lock is a small file that names its holder (process, machine) and that the holder touches every
few seconds. A holder that died is succeeded: on the same machine at once; elsewhere when the file
has not been touched for `LEASE` seconds of the successor's own clock. Clocks of different machines
are never compared, nor does a jump of one matter.

filelock's leases do this: kernel locks are not shared between machines on every file system.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import SoftFileLease, Timeout

from mosaickd.errors import UserError

log = logging.getLogger(__name__)

LEASE = 60.0  # seconds without a sign of life; above what network file systems remember of a file
HEARTBEAT = 5.0  # seconds between signs of life

#: The lock file of a run's folder.
OWNER = ".owner"

ANOTHER_FOLDER = (
    "choose another folder with hydra.run.dir=FOLDER (of a sweep: hydra.sweep.dir=FOLDER)"
)

#: The folders that this process holds: their leases, and the inodes of the lock files.
_held: dict[Path, tuple[SoftFileLease, int]] = {}


class InUse(UserError):
    """Another process holds the folder."""


class Lost(UserError):
    """A folder that this process held is gone, or taken over: nothing may be written."""


@contextmanager
def run_lock(folder: Path, otherwise: str = ANOTHER_FOLDER) -> Iterator[None]:
    """Hold `folder` for this process. Raises InUse where another process does, which it names.

    Whether a process of another machine lives takes up to `LEASE` seconds to see. otherwise: what
    a user can do in place of waiting.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    lease = _lease(folder / OWNER)
    with _errors_name(lease):
        acquired = _acquire(lease)
    if not acquired:
        raise InUse(f"{folder} is in use by {_holder(lease)}: wait until it ends, or {otherwise}")
    _held[folder] = lease, os.stat(lease.lock_file).st_ino
    try:
        yield
    finally:
        del _held[folder]
        lease.release()


def check_run_lock(folder: Path) -> None:
    """Raise Lost if this process held `folder` and no longer does."""
    if folder.absolute() not in _held:
        return
    lease, ours = _held[folder.absolute()]
    if not folder.is_dir():
        raise Lost(f"{folder} is gone, removed while the run was using it; stopped")
    touched = _touched(lease)
    if lease.compromise is not None or touched is None or touched[0] != ours:
        raise Lost(
            f"{folder} is no longer this process's: {_holder(lease)} has taken it over, as after "
            f"{LEASE:.0f} s without a sign of life, or {OWNER} was removed from it; stopped, and "
            "nothing more was written there"
        )


@contextmanager
def build_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever has it. what: is being made, for messages.

    Raises OSError where locks can't be had.
    """
    lease = _lease(path)
    with _errors_name(lease):
        try:
            lease.acquire(timeout=0)
        except Timeout:
            log.info("%s: waiting for %s, which is making it (%s)", what, _holder(lease), path)
            lease.acquire()
    try:
        yield
    finally:
        lease.release()


# ---------------------------------------------------------------------------------- from outside


class Holder(NamedTuple):
    """The process that a folder's lock file names. touched: its last sign of life, Unix time."""

    pid: int
    host: str
    alive: bool
    touched: float


def holder(folder: Path) -> Holder | None:
    """Return who holds `folder`, or left its lock file there when it was killed.

    A process of another machine counts as alive while its file was touched within `LEASE` seconds.
    """
    lease = _lease(folder.absolute() / OWNER)
    try:
        owner, touched = lease.owner, os.stat(lease.lock_file).st_mtime
    except OSError:
        return None
    if owner is None:
        return None
    if owner.hostname == socket.gethostname():
        alive = _is_running(owner.pid)
    else:
        alive = time.time() - touched < LEASE
    return Holder(owner.pid, owner.hostname, alive, touched)


def _is_running(pid: int) -> bool:
    """Return whether this machine has a process of that number which hasn't ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    with suppress(OSError, IndexError):  # Linux: a zombie has ended
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(
        path,
        lease_duration=LEASE,
        heartbeat_interval=HEARTBEAT,
        poll_interval=0.1,
        thread_local=False,
    )


@contextmanager
def _errors_name(lease: SoftFileLease) -> Iterator[None]:
    """Let an OSError inside name the lock file."""
    try:
        yield
    except NotImplementedError as error:  # a file system that can't
        raise OSError(errno.ENOLCK, str(error), lease.lock_file) from error
    except OSError as error:
        error.filename = error.filename or lease.lock_file
        raise


def _acquire(lease: SoftFileLease) -> bool:
    """Acquire the lease, unless a live process has it; return whether it was acquired."""
    try:
        lease.acquire(timeout=0)
        return True
    except Timeout:
        owner = lease.owner
    if owner is not None and owner.hostname == socket.gethostname():
        return False  # a process that this machine has: a dead one would have been succeeded
    before = _touched(lease)
    log.info("%s is held by %s: looking for a sign of life, %.0f s at most",
             lease.lock_file, _holder(lease), LEASE)  # fmt: skip
    try:
        lease.acquire(timeout=2 * LEASE, cancel_check=lambda: _touched(lease) != before)
    except Timeout:
        return False
    return True


def _touched(lease: SoftFileLease) -> tuple[int, int] | None:
    """Return the lock file's inode and its time, which each sign of life changes; None: no file."""
    try:
        status = os.stat(lease.lock_file)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _holder(lease: SoftFileLease) -> str:
    owner = lease.owner
    return f"process {owner.pid} on {owner.hostname}" if owner else "another process"
