"""Lines and bars of one run: losses, accuracy, speed and time left, each only where it is known."""

from __future__ import annotations

import logging

import pytest
from rich.console import Console

from mosaickd.engine import progress
from mosaickd.engine.evaluate import Accuracy
from mosaickd.engine.progress import Progress
from mosaickd.utils.durations import duration, pace

LOSSES = {f"{player}/{name}": 0.5 for player, names in {
    "discriminator": ("fake", "real"), "generator": ("local", "align", "adv", "balance"),
    "student": ("kd",),
}.items() for name in names}  # fmt: skip


def drawn(run: Progress, width: int) -> list[str]:
    out = Console(width=width, force_terminal=True, color_system=None)
    with out.capture() as capture:
        out.print(run.bar.get_renderable())
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_all_losses_fit_and_time_left_is_never_cut(width: int) -> None:
    with Progress("teacher wrn16_2: letters, seed 0", 240_000, 1000) as run:
        assert "begins" in drawn(run, width)[0]
        run.advance(12_000)
        run.show(LOSSES, 0.123)
        run.evaluated(12_000, Accuracy(61.23, 90.0), 61.23)
        lines = drawn(run, width)
        assert "12000/240000" in lines[0]
        assert lines[0].endswith("accuracy 61.23 %  8.1 steps/s  7 h 47 min left")
        assert [line.split()[0] for line in lines[1:]] == ["discriminator", "generator", "student"]
        assert "local 0.5  align 0.5  adv 0.5  balance 0.5" in lines[2]
        run.evaluation()
        assert "evaluating" in drawn(run, width)[0]


def test_a_line_an_evaluation_and_nothing_that_was_not_measured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO), Progress("kd: letters", 10) as run:
        run.evaluated(5, Accuracy(50.0, 80.0), 55.0)  # resumed right before it
        run.advance(6)
        run.show({"student/kd": 0.25}, 2.0)
        run.advance(8)
        run.evaluated(8, Accuracy(51.0, 81.0), 55.0)
    assert caplog.messages == [
        "kd: letters step 5/10  accuracy 50.00 %  top-5 80.00 %  best 55.00 %",
        "kd: letters step 8/10  accuracy 51.00 %  top-5 81.00 %  best 55.00 %  2.00 s/step  "
        "4 s left  student/kd 0.25",
    ]


def test_a_long_silence_is_broken(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO), Progress("kd: letters", 10_000) as run:
        for step in range(1, 100):
            run.advance(step)
            run.show({"student/kd": 0.25}, 1.0)
        assert not caplog.messages, "no line a step"
        monkeypatch.setattr(progress, "SILENCE", -1.0)
        run.show({"student/kd": 0.25}, 1.0)
    (line,) = caplog.messages
    assert line == "kd: letters step 99/10000  1.00 s/step  2 h 45 min left  student/kd 0.25"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.6, "1 min"), (192, "3 min 12 s"), (7500, "2 h 5 min"),
     (273600, "3 d 4 h"), (float("nan"), "-"), (-1, "-")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_paces() -> None:
    assert [pace(0.123), pace(2.5), pace(None), pace(0.0)] == [
        "8.1 steps/s",
        "2.50 s/step",
        "-",
        "-",
    ]
