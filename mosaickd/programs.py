"""How the programs beside run.py end: with one message and an exit code, whatever happens."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mosaickd.errors import UserError


def open_streams() -> None:
    """Standard streams that are closed, or that can't show a character, end nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # what was printed before can't be
                stream.reconfigure(errors="replace")


def silence_stdout() -> None:
    """Nobody takes what is printed: nor does anyone miss the rest of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Inside is printed what a run came to. That nobody takes it (a reader that has left, a full
    disk behind standard output) is no fault of the run's."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        silence_stdout()


@contextmanager
def ending() -> Iterator[None]:
    """Inside, errors end the program as its user should see it: with 1 and a message; 130 after
    Ctrl-C."""
    open_streams()
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`; nobody reads the rest
        silence_stdout()
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {told(error)}")


def told(error: OSError) -> str:
    """FILE: what is wrong with it."""
    if error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
