"""Files that a crash never leaves half written."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from mosaickd.errors import UserError

#: Names of files that are being written.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]+\.tmp", re.DOTALL)


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], object], previous: Path | None = None
) -> None:
    """Call `write(file)` so that `path` holds either what it held before or all of the new.

    previous: where what it held before is kept. An OSError names `path`.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not by `tempfile`, whose files only their owner may read.
        with os.fdopen(
            os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb"
        ) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None:
            _keep(path, previous)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # a disk that can't be written; the owner removes it later
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk names no file
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")


def _keep(path: Path, previous: Path) -> None:
    """Have `previous` name what `path` names, if that is there; at no moment is neither."""
    spare = _temporary(previous)
    try:
        os.link(path, spare)
    except FileNotFoundError:
        return  # the first
    except OSError:  # a file system without links: for a moment only `previous` is there
        with suppress(FileNotFoundError):
            os.replace(path, previous)
    else:
        os.replace(spare, previous)
        spare.unlink(missing_ok=True)  # still there if a kill had left both names to one file


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, None where there is none. Raises UserError for another one."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); delete it, or run with force=true"
        ) from error


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, in hex. Raises UserError where it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def user_cache() -> Path:
    """Return where this user's programs keep what can be made again: $XDG_CACHE_HOME or ~/.cache.

    Raises RuntimeError for a user without a home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mosaickd"


def remove_temporaries(folder: Path, of: str = "") -> None:
    """Remove what a killed `write_atomically` left in `folder`, of the file of a name or of all.

    Only whoever may write there may.
    """
    for path in folder.glob(f".{of}*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
