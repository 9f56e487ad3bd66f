"""Where a number comes from: the code that computed it, as git knows it."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent


@cache
def code_version() -> dict[str, Any]:
    """The commit of the package's own work tree, and whether its files differ from it; nulls
    where there is none, as in an installed package."""
    commit = _git("rev-parse", "HEAD")
    # Whatever decides what a run computes; not notes, tests and results that lie beside it.
    changes = _git("status", "--porcelain", "--", ".", "../conf", "../sweeps", "../run.py")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=PACKAGE, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
