"""SIGTERM, Ctrl-C and a terminal that is gone (SIGHUP), turned into an orderly stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Taken only where someone else takes them: by one of them a cluster's launcher learns that its
#: time is up, and queues the job again.
LAUNCHER_SIGNALS = ("SIGUSR1", "SIGUSR2")


class Interrupted(BaseException):
    """The process was asked to stop. `exit_code` follows the shell's convention, 128 + signal.

    Not an `Exception`, as KeyboardInterrupt is not: a sweep must stop too, not try its next job.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)  # what pickle calls the class with again
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.args[0]).name}"


class Interruption:
    """Raises `Interrupted` at once, or, inside `deferred()`, at the next `check()`.

    A second signal ends the process without further ado, unless a launcher started it: that one
    knows how long to wait.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._deferring = False
        self._launched = False

    @contextmanager
    def handling(self) -> Iterator[Interruption]:
        """Handle signals in the block, then hand those that came on to whoever had them before.

        Off the main thread Python allows no handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup wants to hear nothing of it
            numbers.append(signal.SIGHUP)
        numbers += [s for s in signal.Signals if s.name in LAUNCHER_SIGNALS and _handler(s)]
        handlers = {int(n): function for n in numbers if (function := _handler(n))}
        # A sweep's processes are started with blocked signals: those that come between its jobs,
        # or while torch is imported, wait for the next job.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._launched = bool(handlers) or not blocked.isdisjoint(numbers)
        previous = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
            yield self
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for number, before in previous.items():
                signal.signal(number, before)
            for received in self._received:
                if received in blocked:
                    signal.raise_signal(received)  # it waits again, so that no next job begins
                elif handler := handlers.get(received):
                    handler(received, None)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal wait for `check()`: weights and files are never left between states.

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

        agree: of the ranks of one run, what all of them make of the signal (or 0) that each has:
        they stop at the same step, or none does.
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


def _handler(number: int) -> Callable[[int, FrameType | None], object] | None:
    """Return what someone has asked Python to call for a signal, beyond Python's own."""
    handler = signal.getsignal(number)
    return handler if callable(handler) and handler is not signal.default_int_handler else None
