"""The exception for a user's mistakes, and helpers for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake: a wrong setting, a missing or damaged file.

    The message says what was wrong, where (the setting or the file), and what to do next.
    The command line prints it without a traceback, unless it was `reported` already.
    """

    reported = False

    def __str__(self) -> str:
        return shortened(super().__str__())


def shortened(message: str, longest: int = 3000) -> str:
    """Return a message that fits on a screen, whatever value it repeats."""
    if len(message) <= longest:
        return message
    half = longest // 2
    return f"{message[:half]} [...] {message[-half:]}"


def nearest(word: str, names: Iterable[str]) -> str:
    """Return `, did you mean a or b?`, or nothing."""
    close = difflib.get_close_matches(word, sorted(set(names)), n=2, cutoff=0.55)
    return f", did you mean {' or '.join(close)}?" if close else ""


def printable(text: str, limit: int = 400) -> str:
    """Return a text on one line, without control characters: it can't steer a terminal."""
    text = "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
    return text if len(text) <= limit else f"{text[:limit]}…"
