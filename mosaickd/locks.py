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
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from filelock import SoftFileLease, Timeout

from mosaickd.errors import UserError

log = logging.getLogger(__name__)

LEASE = 60.0  # seconds without a sign of life; above what network file systems remember of a file
HEARTBEAT = 5.0  # seconds between signs of life

#: The file that says whose a run's folder is, and how many bytes it never has.
OWNER, LARGEST = ".owner", 2**16

ANOTHER_FOLDER = (
    "choose another folder with hydra.run.dir=FOLDER (of a sweep: hydra.sweep.dir=FOLDER)"
)

#: What this process holds, and which file it was that said so.
_owned: dict[Path, tuple[SoftFileLease, int]] = {}


class InUse(UserError):
    """A folder belongs to another process at the moment."""


class Lost(UserError):
    """A folder that this process run_lock is gone, or another process's: nothing may be written."""


@contextmanager
def run_lock(folder: Path, otherwise: str = ANOTHER_FOLDER) -> Iterator[None]:
    """Hold `folder` for this process. Raises InUse where another process does, which it names.

    Whether a process of another machine lives takes up to `LEASE` seconds to see. otherwise: what
    a user can do in place of waiting.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    lease = _lease(folder / OWNER)
    with _named(lease):
        taken = _taken(lease)
    if not taken:
        raise InUse(f"{folder} is in use by {_holder(lease)}: wait until it ends, or {otherwise}")
    _owned[folder] = lease, os.stat(lease.lock_file).st_ino
    try:
        yield
    finally:
        del _owned[folder]
        lease.release()


def check_run_lock(folder: Path) -> None:
    """Raise Lost if this process held `folder` and no longer does."""
    if folder.absolute() not in _owned:
        return
    lease, ours = _owned[folder.absolute()]
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
    """Hold the lock file `path`, waiting for whoever has it; what is being made is for messages.

    Raises OSError where locks can't be had.
    """
    lease = _lease(path)
    with _named(lease):
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
    """Who a folder's mark names."""

    pid: int
    host: str
    #: None: a process of another machine, whose mark looks old by this machine's clock. It lives
    #: if `touched` changes within some `HEARTBEAT`s.
    alive: bool | None
    touched: float  # the last sign of life, in seconds since 1970 by the file system's clock
    here: bool  # whether it is, or was, a process of this machine


def holder(folder: Path) -> Holder | None:
    """Who holds `folder`, or left its mark there when it was killed. Only looks: takes nothing."""
    lease = _lease(folder.absolute() / OWNER)
    try:
        mark = os.stat(lease.lock_file)
        if not stat.S_ISREG(mark.st_mode) or mark.st_size > LARGEST:  # nobody's of ours
            return None
        owner, touched = lease.owner, mark.st_mtime
    except OSError:
        return None
    if owner is None:
        return None
    here = owner.hostname == _this_machine()
    alive: bool | None
    if here:
        alive = _lives(owner.pid, touched)
    else:
        alive = True if 0 <= time.time() - touched < LEASE else None
    return Holder(owner.pid, owner.hostname, alive, touched, here)


@cache
def _this_machine() -> str:
    """What marks call it: a container has a name of its own."""
    with suppress(OSError), tempfile.TemporaryDirectory() as folder:
        lease = _lease(Path(folder) / OWNER)
        with lease:
            if lease.owner:
                return lease.owner.hostname
    return socket.gethostname()


def _lives(pid: int, touched: float) -> bool:
    """Whether this machine has a process `pid` that can have touched its mark then."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    try:  # what Linux tells of it
        state, *more = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        booted = Path("/proc/stat").read_text().partition("btime ")[2].split()[0]
        began = int(booted) + int(more[18]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return True
    # A zombie has ended; whoever was started since the last touch has only the number in common.
    # The kernel tells the second of its start to within one or two.
    return state != "Z" and began <= touched + 2


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(
        path,
        lease_duration=LEASE,
        heartbeat_interval=HEARTBEAT,
        poll_interval=0.1,
        thread_local=False,
    )


@contextmanager
def _named(lease: SoftFileLease) -> Iterator[None]:
    """An OSError inside names the file."""
    try:
        yield
    except NotImplementedError as error:  # a file system that can't
        raise OSError(errno.ENOLCK, str(error), lease.lock_file) from error
    except OSError as error:
        error.filename = error.filename or lease.lock_file
        raise


def _taken(lease: SoftFileLease) -> bool:
    """Take it, unless someone who lives has it."""
    try:
        lease.acquire(timeout=0)
        return True
    except Timeout:
        owner = lease.owner
    if owner is not None and owner.hostname == socket.gethostname():
        return False  # a process that this machine has: a dead one would have been succeeded
    seen = _touched(lease)
    log.info("%s is held by %s: looking for a sign of life, %.0f s at most",
             lease.lock_file, _holder(lease), LEASE)  # fmt: skip
    try:
        lease.acquire(timeout=2 * LEASE, cancel_check=lambda: _touched(lease) != seen)
    except Timeout:
        return False
    return True


def _touched(lease: SoftFileLease) -> tuple[int, int] | None:
    """Which file it is, and what changes with each sign of life; None while nobody holds it."""
    try:
        status = os.stat(lease.lock_file)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _holder(lease: SoftFileLease) -> str:
    owner = lease.owner
    return f"process {owner.pid} on {owner.hostname}" if owner else "another process"
