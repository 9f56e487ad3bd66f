"""The tests' own way of starting commands does what `python run.py` does, and can be ended."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from forked import Forked


def test_commands_end_as_they_do_for_a_user(forked: Forked) -> None:
    shown = forked.start("method=kd", "seed=7", "--cfg", "job").wait()
    assert (shown.code, shown.err) == (0, "")
    assert "seed: 7" in shown.out
    refused = forked.start("seed=-1", "hydra.run.dir=run").wait()
    assert refused.code == 1
    assert refused.err.startswith("error: seed")
    assert (forked.folder / "run").is_dir(), "in its own folder"
    assert not (Path.cwd() / "run").exists()
    unknown = forked.start("method=kdd").wait()
    assert (unknown.code, unknown.out) == (2, "")


def sleep() -> None:
    signal.pause()


def test_a_process_that_does_not_end_is_killed(forked: Forked) -> None:
    running = forked.start(before=sleep)
    with pytest.raises(TimeoutError, match=r"after 0\.2 s"):
        running.wait(timeout=0.2)
    assert running.kill().code == -signal.SIGKILL
