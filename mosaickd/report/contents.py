"""Files of a folder that may come from anywhere: read in small amounts, and not believed.

What isn't a plain file is as if it weren't there. So is a text or a picture behind a link that
leads out of the folder: a report would show what nobody put there. Numbers tell no such secrets,
and tools that keep large folders put links in place of files: result.json and metrics.jsonl are
read through links.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

#: Bytes of a text that a page shows, and of a JSON file that it reads.
TEXT, JSON = 2**17, 2**22


def leads_out(folder: Path, name: str) -> bool:
    """Whether it is a link to something that lies outside of the folder."""
    home = os.path.realpath(folder)
    return os.path.commonpath([home, os.path.realpath(folder / name)]) != home


def content(
    folder: Path, name: str, size: int, *, end: bool = False, links: bool = False
) -> bytes | None:
    """The first `size` bytes of a file of the folder, or the last; None where there is none.

    links: also behind one that leads out of the folder.
    """
    try:
        if not links and leads_out(folder, name):
            return None
        descriptor = os.open(folder / name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError):
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
                return None
            if end:
                file.seek(max(0, status.st_size - size))
            return file.read(size)
        except OSError:
            return None


def text(folder: Path, name: str) -> str:
    """A text file, cut where it is longer than a page has room for; empty where there is none."""
    found = content(folder, name, TEXT + 1) or b""
    more = "\n[…]" if len(found) > TEXT else ""
    return readable(found[:TEXT].decode(errors="replace")) + more


def tail(folder: Path, name: str, lines: int = 40) -> str:
    """The last lines of a text file."""
    found = (content(folder, name, 2**14, end=True) or b"").decode(errors="replace")
    return readable("\n".join(found.splitlines()[-lines:]))


def readable(words: str) -> str:
    """Without control characters; lines and indentation stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in words).strip("\n")


def read_json(folder: Path, name: str) -> Any:
    """None where there is no JSON of a sensible size."""
    found = content(folder, name, JSON + 1)
    if found is None or len(found) > JSON:
        return None
    try:
        return json.loads(found)
    except (ValueError, RecursionError):
        return None


def written(path: Path) -> float | None:
    """When a file was written last, in seconds since 1970."""
    try:
        return path.stat().st_mtime
    except (OSError, ValueError):
        return None
