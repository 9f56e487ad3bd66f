"""SIGTERM, Ctrl-C and a terminal that is gone (SIGHUP), turned into an orderly stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Taken only where someone else takes them: a cluster's launcher is told by one that time is up.
OTHERS = ("SIGUSR1", "SIGUSR2")


class Interrupted(BaseException):
    """The process was asked to stop. `exit_code` follows the shell's convention, 128 + signal.

    Not an `Exception`, as KeyboardInterrupt is not: a sweep must stop too, not try its next cell.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)  # what pickle calls the class with again
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.args[0]).name}"


class Interruption:
    """Raises `Interrupted` at once, or, inside `deferred()`, at the next `check()`.

    A second signal ends the process without further ado, unless a launcher started it: then that
    one knows how long to wait.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._deferring = False
        self._launched = False

    @contextmanager
    def handling(self) -> Iterator[Interruption]:
        """Handle signals while the block runs, then hand them to those who handled them before.

        Off the main thread Python allows no handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers: list[signal.Signals] = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)  # of which nohup wants to hear nothing
        numbers += [s for s in signal.Signals if s.name in OTHERS and _function(s)]
        before = {int(n): function for n in numbers if (function := _function(n))}
        blocked = _blocked()
        self._launched = bool(before) or not blocked.isdisjoint(numbers)
        previous = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            if blocked:  # what has come since the process was started comes now
                signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
            yield self
        finally:
            if blocked:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for number, handler in previous.items():
                signal.signal(number, handler)
            for received in self._received:
                if function := before.get(received):
                    function(received, None)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal waits for `check()`: weights and files are never left between states.

        After an error it goes on waiting: the run ends anyway, and says first what it came to.
        """
        outer, self._deferring = self._deferring, True
        yield
        self._deferring = outer

    @contextmanager
    def immediate(self, allowed: bool = True) -> Iterator[None]:
        """Raise at once inside, also within `deferred()`: nothing is half done there.

        allowed: False leaves it as it is, where other processes wait for this one.
        """
        if not allowed:
            yield
            return
        outer, self._deferring = self._deferring, False
        self.check()
        try:
            yield
        finally:
            self._deferring = outer

    def check(self, agree: Callable[[int], int] = int) -> None:
        """Raise `Interrupted` if a signal has come.

        agree: of several processes that play together, what all of them make of the signal (or
        0) that each has: they stop at the same step, or none does.
        """
        if received := agree(self._received[0] if self._received else 0):
            raise Interrupted(received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        repeated = bool(self._received)
        if number not in self._received:
            self._received.append(number)
        if self._launched and repeated:
            return
        if not self._launched:
            signal.signal(number, signal.SIG_DFL)
        if not self._deferring:
            raise Interrupted(number)


def _blocked() -> set[int]:
    """Signals that this process was started with the order not to hear."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return set()
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def _function(number: int) -> Callable[[int, FrameType | None], object] | None:
    """What someone has asked Python to call for a signal, beyond Python's own."""
    handler = signal.getsignal(number)
    return handler if callable(handler) and handler is not signal.default_int_handler else None
