"""One process at a time, on this machine or on any other that sees the same folder.

A lock is a small file that names its holder (process, machine), which touches it every few seconds.
A holder that died is succeeded: on the same machine at once; elsewhere when the file has not been
touched for `LEASE` seconds. filelock's leases do this: the kernel's locks are not shared between
machines on every file system.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import SoftFileLease, Timeout

from mosaickd.errors import UserError

log = logging.getLogger(__name__)

LEASE = 60.0  # seconds without a sign of life; above what network file systems remember of a file
HEARTBEAT = 5.0  # seconds between signs of life

#: The file that says whose a run's folder is.
OWNER = ".owner"

ANOTHER_FOLDER = (
    "choose another folder with hydra.run.dir=FOLDER (of a sweep: hydra.sweep.dir=FOLDER)"
)

#: The folders that this process holds, and the inodes of its files there.
_held: dict[Path, tuple[SoftFileLease, int]] = {}


class InUse(UserError):
    """A folder belongs to another process at the moment."""


class Lost(UserError):
    """A folder that this process held is gone or another's: nothing may be written there."""


@contextmanager
def run_lock(folder: Path, otherwise: str = ANOTHER_FOLDER) -> Iterator[None]:
    """Hold `folder` for this process. Raises InUse where another process does, which it names.

    Whether a process of another machine lives takes up to `LEASE` seconds to see. otherwise: what
    a user can do in place of waiting.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    lease = _lease(folder / OWNER)
    if not _acquire(lease):
        raise InUse(f"{folder} is in use by {_name(lease)}: wait until it ends, or {otherwise}")
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
    lease, inode = _held[folder.absolute()]
    if not folder.is_dir():
        raise Lost(f"{folder} is gone, removed while the run was using it; stopped")
    mark = _stat(lease)
    if lease.compromise is not None or mark is None or mark.st_ino != inode:
        raise Lost(
            f"{folder} is no longer this process's: {_name(lease)} has taken it over, as after "
            f"{LEASE:.0f} s without a sign of life, or {OWNER} was removed from it; stopped, and "
            "nothing more was written there"
        )


@contextmanager
def build_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever has it. what: is being made, for messages."""
    lease = _lease(path)
    try:
        lease.acquire(timeout=0)
    except Timeout:
        log.info("%s: waiting for %s, which is making it (%s)", what, _name(lease), path)
        lease.acquire()
    try:
        yield
    finally:
        lease.release()


class Holder(NamedTuple):
    """Who a folder's lock names. touched: its last sign of life, in seconds since 1970."""

    pid: int
    host: str
    alive: bool
    touched: float
    here: bool  # whether it is, or was, a process of this machine


def holder(folder: Path) -> Holder | None:
    """Return who holds `folder`, or left its lock there when it was killed. Takes nothing."""
    lease = _lease(folder.absolute() / OWNER)
    owner, mark = lease.owner, _stat(lease)
    if owner is None or mark is None:
        return None
    here = owner.hostname.partition("?")[0] == socket.gethostname()  # filelock marks containers
    alive = _is_alive(owner.pid) if here else time.time() - mark.st_mtime < LEASE
    return Holder(owner.pid, owner.hostname, alive, mark.st_mtime, here)


def _is_alive(pid: int) -> bool:
    """Return whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(
        path,
        lease_duration=LEASE,
        heartbeat_interval=HEARTBEAT,
        poll_interval=0.1,
        thread_local=False,
    )


def _acquire(lease: SoftFileLease) -> bool:
    """Acquire a lease unless someone who lives has it."""
    try:
        lease.acquire(timeout=0)
        return True
    except Timeout:
        owner = holder(Path(lease.lock_file).parent)
    if owner is not None and owner.here:
        return False  # a dead process of this machine would have been succeeded
    before = _stat(lease)
    log.info("%s is held by %s: looking for a sign of life, %.0f s at most",
             lease.lock_file, _name(lease), LEASE)  # fmt: skip

    def is_touched() -> bool:
        now = _stat(lease)
        return (now and (now.st_ino, now.st_mtime_ns)) != (
            before and (before.st_ino, before.st_mtime_ns)
        )

    try:
        lease.acquire(timeout=2 * LEASE, cancel_check=is_touched)
    except Timeout:
        return False
    return True


def _stat(lease: SoftFileLease) -> os.stat_result | None:
    try:
        return os.stat(lease.lock_file)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _name(lease: SoftFileLease) -> str:
    owner = lease.owner
    return f"process {owner.pid} on {owner.hostname}" if owner else "another process"
