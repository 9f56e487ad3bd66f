"""Where a number comes from: the code that computed it, as git knows it."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

THIS_FILE = Path(__file__).resolve()
PACKAGE = THIS_FILE.parents[1]


@cache
def code_version() -> dict[str, Any]:
    """Return the commit of the package's work tree, and whether its files differ from it.

    Both are None for an installed package.
    """
    if _git("ls-files", "--error-unmatch", str(THIS_FILE)) is None:
        return {"commit": None, "dirty": None}
    # Whatever decides what a run computes; not notes, tests and results that lie beside it.
    changes = _git("status", "--porcelain", "--", ".", "../conf", "../sweeps", "../run.py")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    """Return what git prints; None where it fails, or isn't there."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments],  # noqa: S607
            cwd=PACKAGE, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
