"""W&B in trouble: a run goes on, and one warning says what to do. With a fake wandb."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from weights_and_biases import forget_account

from mosaickd.engine import trackers
from mosaickd.engine.trackers import TrackedRun, WandbTracker
from mosaickd.errors import UserError


class FakeWandb:
    """The module, and the run that its `init` returns. `broken` raises, `hanging` never returns;
    both name one of its functions."""

    errors = SimpleNamespace(UsageError=KeyError)
    Settings = dict
    offline, starting_step, sync_dir = True, 0, "run/wandb/offline-run-1"

    def __init__(self) -> None:
        self.broken = self.hanging = ""
        self.release = threading.Event()
        self.calls: list[str] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.rows: dict[int, dict[str, Any]] = {}

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.hanging:
            self.release.wait()
        if name == self.broken:
            raise RuntimeError(f"{name} is broken")

    def setup(self, settings: Any) -> Any:
        self.call("setup")
        return SimpleNamespace(settings=SimpleNamespace())

    def termsetup(self, settings: Any, logger: Any) -> None:
        self.terminal = logger

    def init(self, **_: Any) -> FakeWandb:
        self.call("init")
        return self

    def log(self, row: dict[str, Any], step: int) -> None:
        self.call("log")
        self.rows[step] = row

    def Artifact(self, *_: Any, **__: Any) -> Any:
        self.call("artifact")

    def finish(self, exit_code: int) -> None:
        self.call("finish")

    def teardown(self, exit_code: int) -> None:
        self.call("teardown")


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    forget_account(tmp_path, monkeypatch)
    monkeypatch.setattr(trackers, "GRACE", 0.1)
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    yield fake
    fake.release.set()


def play(folder: Path, **settings: Any) -> None:
    run = TrackedRun(folder, {"seed": 0}, "a run")
    tracker = WandbTracker(run=run, init_timeout=0.1, finish_timeout=0.1, **settings)
    for step in range(1, 4):
        tracker.log(step, {"loss/student/kd": float(step)})
        tracker.log(step, {"accuracy/top1": 50.0})
    tracker.file(3, "checkpoint", folder / "last.pt")
    tracker.finish("finished", {"accuracy/top1": 50.0})


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_step_is_one_row(
    wandb: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    play(tmp_path)
    assert warnings(caplog) == []
    rows = {s: {"loss/student/kd": s, "accuracy/top1": 50} for s in (1, 2, 3)}
    assert wandb.rows == rows
    assert wandb.summary == {"status": "finished", "accuracy/top1": 50}
    assert wandb.calls[-2:] == ["finish", "teardown"]
    assert "wandb" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("trouble", ["broken", "hanging"])
@pytest.mark.parametrize("function", ["setup", "init", "log", "finish"])
def test_wandb_in_trouble_is_one_warning(
    function: str,
    trouble: str,
    wandb: FakeWandb,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    setattr(wandb, trouble, function)
    play(tmp_path)
    (warning,) = warnings(caplog)
    assert (f"{function} is broken" if trouble == "broken" else "no answer within") in warning
    assert str(tmp_path / "metrics.jsonl") in warning
    begun = function in ("log", "finish")
    assert ("`wandb sync run/wandb/offline-run-1`" in warning) == begun
    assert wandb.calls.count(function) == 1, "not tried again"
    assert wandb.calls[-1] == "teardown", "its service doesn't stay"


def test_a_checkpoint_that_can_not_be_taken(
    wandb: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.broken = "artifact"
    play(tmp_path, log_checkpoints=True)
    assert "artifact is broken" in warnings(caplog)[0]
    assert len(warnings(caplog)) == 1


def test_what_wandb_only_prints_is_a_warning(
    wandb: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`finish` of wandb returns as if all were well when uploads were given up."""
    wandb.finish = lambda exit_code: wandb.terminal.warning("\x1b[33mWARNING\x1b[0m gave up")  # type: ignore[method-assign]
    play(tmp_path)
    assert "W&B: gave up. The run is not affected" in warnings(caplog)[0]


def test_an_interrupted_run_does_not_wait_long(
    wandb: FakeWandb,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(trackers, "INTERRUPTED", 0.1)
    wandb.hanging = "finish"
    tracker = WandbTracker(run=TrackedRun(tmp_path, {}, "a run"), finish_timeout=1e6)
    tracker.finish("interrupted", {})
    assert "no answer within 0.1 s" in warnings(caplog)[0]


def test_an_interruption_while_wandb_begins_ends_its_service(
    wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WandbTracker, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        WandbTracker(run=TrackedRun(tmp_path, {}, "a run"))
    assert "teardown" in wandb.calls


def test_wandb_that_is_missing_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="tracker=none"):
        play(tmp_path)


def test_wandb_that_can_not_be_imported_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wandb.py").write_text("raise ImportError('no such symbol')")
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    play(tmp_path)
    (warning,) = warnings(caplog)
    assert "no such symbol" in warning


def test_a_run_keeps_its_id(wandb: FakeWandb, tmp_path: Path) -> None:
    first, second, other = (
        WandbTracker(run=TrackedRun(folder, {}, "a run"))
        for folder in (tmp_path, tmp_path, tmp_path / "other")
    )
    assert first.run_id == second.run_id != other.run_id
