"""The one exception that speaks to the user."""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake: a wrong setting, a missing or damaged file.

    The message says what was wrong, where (the setting or the file), and what to do next.
    The launcher prints it without a traceback, unless it was `told` already.
    """

    told = False
