"""Files that a crash never leaves half written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mosaickd.errors import UserError

#: Names of files that are being written: mkstemp's, and `_keep`'s.
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]+\.tmp", re.DOTALL)

#: Which rights new files don't get. It can only be read by setting it, which no thread may see.
UMASK = os.umask(0)
os.umask(UMASK)


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], object], previous: Path | None = None
) -> None:
    """Call `write(file)` so that `path` holds either what it held before or all of the new.

    previous: where what it held before is kept. An OSError names `path`.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp's 0600 would hide results from a group
        if previous is not None:
            _keep(path, previous)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):  # a disk that can't be written; the owner removes it later
                os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename = str(path)  # a full disk names no file
        raise


def _keep(path: Path, previous: Path) -> None:
    """Have `previous` name what `path` names, if that is there; at no moment is neither."""
    spare = path.with_name(f".{previous.name}.{os.getpid()}.tmp")
    try:
        os.link(path, spare)
    except FileNotFoundError:
        return  # the first
    except OSError:  # a file system without links: for a moment only `previous` is there
        with suppress(FileNotFoundError):
            os.replace(path, previous)
    else:
        os.replace(spare, previous)
        spare.unlink(missing_ok=True)  # there yet, if a kill had left both names to one file


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


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


def remove_temporaries(folder: Path, of: str = "") -> None:
    """Remove what a killed `write_atomically` left in `folder`, of the file of a name or of all.
    Only whoever may write there may."""
    for path in folder.glob(f".{of}*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
