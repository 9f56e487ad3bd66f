"""The exceptions that speak to the user, and what helps their messages to speak well."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake: a wrong setting, a missing or damaged file.

    The message says what was wrong, where (the setting or the file), and what to do next. The
    command line prints it without a traceback, unless another process has `reported` it.
    """

    reported = False

    def __str__(self) -> str:
        return shortened(super().__str__())


class ComposeError(UserError):
    """A command line that gives no config: it ends with 2, not 1."""


class CommandFailed(BaseException):
    """Ends the whole command with `error`. No Exception: Hydra lets it pass, and prints nothing."""

    def __init__(self, error: UserError) -> None:
        super().__init__(error)
        self.error = error


def shortened(message: str, longest: int = 3000) -> str:
    """Return a message that fits on a screen, whatever value it repeats."""
    if len(message) <= longest:
        return message
    half = longest // 2
    return f"{message[:half]} [...] {message[-half:]}"


def nearest(word: str, names: Iterable[str]) -> str:
    """Return `, did you mean a or b?` or nothing."""
    close = difflib.get_close_matches(word, sorted(set(names)), n=2, cutoff=0.55)
    return f", did you mean {' or '.join(close)}?" if close else ""


def printable(text: str, limit: int = 400) -> str:
    """Return a text on one line, without control characters, cut after `limit`."""
    text = "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
    return text if len(text) <= limit else f"{text[:limit]}…"
