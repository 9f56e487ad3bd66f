"""The one exception that speaks to the user, and what of a file's text it may repeat."""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake: a wrong setting, a missing or damaged file.

    The message says what was wrong, where (the setting or the file), and what to do next.
    The launcher prints it without a traceback, unless it was `told` already.
    """

    told = False


def printable(text: str, limit: int = 400) -> str:
    """On one line, without control characters: a file's text can't steer a terminal."""
    text = "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
    return text if len(text) <= limit else f"{text[:limit]}…"
