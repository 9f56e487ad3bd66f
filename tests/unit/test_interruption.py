"""Signals: an orderly stop, handed on to whoever waited for them; errors that cross processes."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator

import pytest

from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.errors import CommandFailed, UserError

ARGUMENTS = {
    "Interrupted": (signal.SIGTERM,),
    "NonFiniteLoss": ("student", "loss 'kd' is nan at step 3"),
    "CommandFailed": (UserError("what was wrong"),),
}


def kinds_of(kind: type[BaseException]) -> set[type[BaseException]]:
    return {kind}.union(*(kinds_of(more) for more in kind.__subclasses__()))


def test_every_exception_comes_out_of_a_pickle_as_it_went_in() -> None:
    """A launcher's processes send them to their parent."""
    import mosaickd.launch  # noqa: F401  (and with it all that a run can raise)

    kinds = kinds_of(UserError) | {Interrupted, CommandFailed}
    assert {"InUse", *ARGUMENTS} <= {kind.__name__ for kind in kinds}
    for kind in kinds:
        error = kind(*ARGUMENTS.get(kind.__name__, ("what was wrong",)))
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        assert str(copy) == str(error) != ""
        assert vars(copy).keys() == vars(error).keys()


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Signals that reach a launcher, which has handlers for SIGUSR2 and SIGTERM."""
    calls: list[int] = []
    taken = (signal.SIGUSR2, signal.SIGTERM)
    before = {n: signal.signal(n, lambda number, frame: calls.append(number)) for n in taken}
    yield calls
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "numbers", [[signal.SIGUSR2], [signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2]]
)
def test_a_launcher_hears_of_its_signals_after_the_run_has_stopped(
    heard: list[int], numbers: list[signal.Signals]
) -> None:
    """It may also repeat itself, which would end a run that a person has started."""
    handler = signal.getsignal(signal.SIGUSR2)
    interruption = Interruption()
    handling, deferred = interruption.handling(), interruption.deferred()
    with pytest.raises(Interrupted) as stopped, handling, deferred:  # noqa: PT012
        for number in numbers:
            os.kill(os.getpid(), number)
        assert not heard
        interruption.check()
    assert stopped.value.exit_code == 128 + numbers[0]
    assert heard == [*dict.fromkeys(numbers)]
    assert signal.getsignal(signal.SIGUSR2) is handler


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


def test_a_signal_that_comes_while_blocked_stops_each_job_before_it_begins() -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        signal.raise_signal(signal.SIGTERM)
        for _ in range(2):
            with pytest.raises(Interrupted, match="SIGTERM"), Interruption().handling():
                pytest.fail("the job began")
        assert signal.sigwait({signal.SIGTERM}) == signal.SIGTERM, "it waits for the next"
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
