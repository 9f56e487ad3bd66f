"""Signals: an orderly stop, handed on to whoever waited for them; errors that cross processes."""

from __future__ import annotations

import importlib
import os
import pickle
import pkgutil
import signal
from collections.abc import Iterator

import pytest

import mosaickd
from mosaickd.engine.interruption import Interrupted, Interruption

ARGUMENTS = {
    "Interrupted": (signal.SIGTERM,),
    "NonFiniteLoss": ("student", "loss 'kd' is nan at step 3"),
}


def own_exceptions() -> list[type[BaseException]]:
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(mosaickd.__path__, "mosaickd.")
        if not found.name.endswith("__main__")
    ]
    classes = {
        thing
        for module in modules
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, BaseException)
        if thing.__module__.startswith("mosaickd.")
    }
    return sorted(classes, key=lambda kind: kind.__name__)


def test_every_exception_comes_out_of_a_pickle_as_it_went_in() -> None:
    """A launcher's processes send them to their parent."""
    kinds = own_exceptions()
    assert {"UserError", "InUse", *ARGUMENTS} <= {kind.__name__ for kind in kinds}
    for kind in kinds:
        error = kind(*ARGUMENTS.get(kind.__name__, ("what was wrong",)))
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        assert str(copy) == str(error) != ""
        assert vars(copy) == vars(error)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What a launcher that has taken SIGUSR2 and SIGTERM hears of."""
    calls: list[int] = []
    taken = (signal.SIGUSR2, signal.SIGTERM)
    before = {n: signal.signal(n, lambda number, frame: calls.append(number)) for n in taken}
    yield calls
    for number, handler in before.items():
        signal.signal(number, handler)


def stop_at_check(*numbers: int) -> Interrupted:
    interruption = Interruption()
    handling, deferred = interruption.handling(), interruption.deferred()
    with pytest.raises(Interrupted) as stopped, handling, deferred:  # noqa: PT012
        for number in numbers:
            os.kill(os.getpid(), number)
        interruption.check()
    return stopped.value


def test_a_launcher_hears_of_its_signals_after_the_run_has_stopped(heard: list[int]) -> None:
    handler = signal.getsignal(signal.SIGUSR2)
    stopped = stop_at_check(signal.SIGUSR2)
    assert stopped.exit_code == 128 + signal.SIGUSR2
    assert heard == [signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR2) is handler


def test_a_launcher_may_repeat_itself(heard: list[int]) -> None:
    stopped = stop_at_check(signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2)
    assert stopped.exit_code == 143
    assert heard == [signal.SIGTERM, signal.SIGUSR2]


def test_a_launcher_that_ends_the_process_ends_it(heard: list[int]) -> None:
    def requeue(number: int, frame: object) -> None:
        raise SystemExit(144)

    signal.signal(signal.SIGUSR2, requeue)
    with pytest.raises(SystemExit, match="144"), Interruption().handling():
        os.kill(os.getpid(), signal.SIGUSR2)


def test_sigusr2_is_left_alone_where_nobody_waits_for_it() -> None:
    with Interruption().handling():
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
        assert callable(signal.getsignal(signal.SIGTERM))


def test_a_signal_that_came_while_blocked_stops_the_run_before_it_begins() -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        signal.raise_signal(signal.SIGTERM)  # of this thread: others may not block it
        with pytest.raises(Interrupted, match="SIGTERM"), Interruption().handling():
            pytest.fail("the run began")
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def test_an_evaluation_stops_at_once_where_iterations_are_finished_first() -> None:
    interruption = Interruption()
    with interruption.handling(), interruption.deferred():
        with pytest.raises(Interrupted), interruption.immediate():  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it goes on")
        with pytest.raises(Interrupted):  # one that came before is not forgotten
            interruption.check()
