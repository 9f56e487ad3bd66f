"""The one exception that speaks to the user."""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake: a wrong setting, a missing or damaged file.

    The message says what was wrong, where (the setting or the file), and what to do next.
    The launcher prints it without a traceback. Of several processes that play a run together it
    is `common` if all of them raise it at the same point: then one tells it, and what comes next
    they can do together. `told`: it has been printed.
    """

    common = False
    told = False
