"""Files that a crash never leaves half written, and a run folder that one process owns."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from mosaickd.errors import UserError

#: Which rights new files don't get. It can only be read by setting it, which no thread may see.
UMASK = os.umask(0)
os.umask(UMASK)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` so that `path` holds either what it held before or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp's 0600 would hide results from a group
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """`content` as indented JSON, atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """None where there is no file; a UserError that names a file which is not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); delete it, or run with force=true"
        ) from error


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex. Raises UserError where it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def user_cache() -> Path:
    """Where this user's programs keep what can be made again: $XDG_CACHE_HOME, else ~/.cache.

    Raises RuntimeError for a user without a home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mosaickd"


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed `write_atomically` left below `folder`. Only its owner may."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


class InUse(UserError):
    """A folder belongs to another process at the moment."""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; another process gets InUse. A kill releases it."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InUse(
            f"{folder} is in use by another process: wait until it ends, or choose another "
            "folder with hydra.run.dir=FOLDER (of a sweep: hydra.sweep.dir=FOLDER)"
        ) from None
    try:
        yield
    finally:
        lock.release()
