"""How each command ends: with one message and an exit code. Nothing else ends a process.

0 done; 1 a mistake or a failure; 2 a config that doesn't compose; 130 and 143 Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from mosaickd.engine.interruption import Interrupted
from mosaickd.errors import CommandFailed, ComposeError, UserError


@contextmanager
def main_guard() -> Iterator[None]:
    """End the process as this module's title says, whatever the block raises.

    The traceback of what is nobody's mistake but ours is left to Python.
    """
    prepare_streams()
    try:
        yield
        sys.stdout.flush()
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except CommandFailed as failure:
        _fail(failure.error)
    except UserError as error:
        _fail(error)
    except BrokenPipeError:  # `| head` has all that it wants
        silence_stdout()
    except OSError as error:
        _fail(UserError(describe_os_error(error)))


def _fail(error: UserError) -> NoReturn:
    if not error.reported:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(2 if isinstance(error, ComposeError) else 1)


def describe_os_error(error: OSError) -> str:
    """Return `FILE: what is wrong with it`."""
    if error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


# ------------------------------------------------------------------------------------ the streams


def prepare_streams() -> None:
    """Let standard streams that are closed, or that can't show a character, end nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # what was printed before can't be
                stream.reconfigure(errors="replace")


def silence_stdout() -> None:
    """Send to nowhere what is printed from here on: nobody reads it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Let printing what a run came to fail: a reader that has left is no fault of the run's."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:  # of a file, not of the output
            raise
        silence_stdout()
