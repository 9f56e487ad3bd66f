"""SIGTERM and Ctrl-C, turned into an orderly stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """The process was asked to stop. `exit_code` follows the shell's convention, 128 + signal.

    Not an `Exception`, as KeyboardInterrupt is not: a sweep must stop too, not try its next cell.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class Interruption:
    """Raises `Interrupted` at once, or, inside `deferred()`, at the next `check()`.

    A second signal ends the process without further ado.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._deferring = False

    @contextmanager
    def handling(self) -> Iterator[Interruption]:
        """Handle signals while the block runs. Off the main thread Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal waits for `check()`: weights and files are never left between states."""
        outer, self._deferring = self._deferring, True
        try:
            yield
        finally:
            self._deferring = outer

    def check(self, agree: Callable[[int], int] = int) -> None:
        """Raise `Interrupted` if a signal has come.

        agree: of several processes that play together, what all of them make of the signal (or
        0) that each has: they stop at the same step, or none does.
        """
        if received := agree(self._received or 0):
            raise Interrupted(received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        signal.signal(number, signal.SIG_DFL)
        if not self._deferring:
            raise Interrupted(number)
