"""W&B in trouble: a run goes on, its files are complete, and one warning says what to do.

The real wandb, in its real processes, against servers that fail and signals that kill.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from weights_and_biases import (
    KEY,
    Server,
    descendants,
    nobody_at,
    offline_runs,
    read_run,
    refusing,
    service,
)

from mosaickd.engine import trackers
from mosaickd.engine.trackers import Tracked, WandbTracker
from mosaickd.errors import UserError

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
Serve = Callable[..., Server]


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with nobody_at(tmp_path, monkeypatch):
        yield


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a server that plays W&B's, and lets wandb use it."""
    started: list[Server] = []

    def serve(*args: Any, **kwargs: Any) -> Server:
        started.append(Server(*args, **kwargs))
        monkeypatch.setenv("WANDB_BASE_URL", started[-1].url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        return started[-1]

    yield serve
    for one in started:
        one.close()


def begin(folder: Path, **more: Any) -> WandbTracker:
    folder.mkdir(exist_ok=True)
    about = {"settings": {"seed": 0}, "name": "a run"}
    about |= {key: more.pop(key) for key in Tracked.__dataclass_fields__.keys() & more.keys()}
    run = Tracked(folder=folder, **about)
    more |= {"tags": more.pop("own_tags", None)}  # the tracker's own setting
    return WandbTracker(**{"run": run, "init_timeout": 2, "finish_timeout": 3, **more})


def play(tracker: WandbTracker, steps: int = 20, status: str = "finished") -> float:
    """A run of some steps. -> the seconds that W&B took of it."""
    began = time.monotonic()
    for step in range(1, steps + 1):
        tracker.log(step, {"loss/student/kd": float(step)})
    tracker.finish(status, {"accuracy/top1": 50.0})
    return time.monotonic() - began


def warning(caplog: pytest.LogCaptureFixture) -> str:
    """The one warning that there was."""
    (text,) = (r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
    return text


def check_complete(run: dict[str, Any], steps: int = 20) -> None:
    assert [row["loss/student/kd"] for row in run["history"]] == list(range(1, steps + 1))
    assert run["summary"]["status"] == "finished"
    assert run["summary"]["accuracy/top1"] == 50


# ------------------------------------------------------------------------------ the server


def test_without_a_server_a_run_goes_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = refusing()
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    play(begin(tmp_path / "run"))
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert f"{url} can't be used" in warning(caplog)
    assert f"wandb sync {folder}" in warning(caplog)
    (run,) = offline_runs(tmp_path)
    check_complete(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "delay"),
    [("silent", 0), (None, 10), ("cut", 0), ("garbage", 0)]
    + [(status, 0) for status in (302, 400, 401, 403, 404, 429, 500, 503)],
)
def test_a_server_that_fails_at_the_start_leaves_a_run_offline(
    fault: str | int | None,
    delay: float,
    tmp_path: Path,
    server: Serve,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server(fault, delay)
    began = time.monotonic()
    play(begin(tmp_path / "run"))
    assert time.monotonic() - began < 60
    assert "wandb sync" in warning(caplog)
    if isinstance(fault, int) and fault in (401, 403):
        assert str(fault) in warning(caplog)
    (run,) = offline_runs(tmp_path)
    check_complete(run)


@pytest.mark.slow
def test_a_key_that_is_none_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    play(begin(tmp_path / "run"))
    assert "API key must have 40" in warning(caplog)
    check_complete(offline_runs(tmp_path)[0])


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 0.5])
def test_a_server_gets_all_and_never_holds_a_run_up(
    delay: float, tmp_path: Path, server: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """The stand-in can be served at all; and while it is slow, logging isn't."""
    one = server(delay=delay)
    tracker = begin(tmp_path / "run", init_timeout=20, finish_timeout=60)
    one.delay *= 4
    began = time.monotonic()
    for step in range(1, 201):
        tracker.log(step, {"loss": step})
    assert time.monotonic() - began < 1
    tracker.finish("finished", {})
    assert [row["loss"] for row in one.history] == list(range(1, 201))
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refused", "silent", "cut", 401, 404, 429, 500])
def test_a_server_that_fails_in_the_middle_leaves_all_in_files(
    fault: str | int, tmp_path: Path, server: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    one = server()
    tracker = begin(tmp_path / "run", init_timeout=20)
    if fault == "refused":
        one.close()
    one.fault = fault
    assert play(tracker) < 30
    (path,) = (tmp_path / "run" / "wandb").glob("run-*/run-*.wandb")
    assert f"wandb sync --include-online {path.parent}" in warning(caplog)
    check_complete(read_run(path))


@pytest.mark.slow
@pytest.mark.parametrize("early", [False, True])
def test_an_answer_that_crashes_the_service_is_told(
    early: bool, tmp_path: Path, server: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """wandb-core 0.31 doesn't survive it, and `finish` says nothing."""
    one = server("null" if early else None)
    tracker = begin(tmp_path / "run", init_timeout=20)
    one.fault = "null"
    assert play(tracker) < 30
    assert "panic" in warning(caplog)
    assert "metrics.jsonl" in warning(caplog)


# ------------------------------------------------------------------------------ its processes


@linux
def test_the_service_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = begin(tmp_path / "run")
    tracker.log(1, {"loss": 1})
    os.kill(service(), signal.SIGKILL)
    play(tracker)
    assert str(tmp_path / "run" / "metrics.jsonl") in warning(caplog)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("which", ["service", "process"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_process_of_wandb_is_killed_or_stopped(
    which: str,
    number: signal.Signals,
    online: bool,
    tmp_path: Path,
    server: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(trackers, "GRACE", 12.0)
    if online:
        server()
    tracker = begin(tmp_path / "run", init_timeout=20)
    core = service()
    (own,) = (pid for pid, command in descendants().items() if "wandb_process" in command)
    os.kill(core if which == "service" else own, number)
    try:
        assert play(tracker) < 30
        assert "metrics.jsonl" in warning(caplog)
    finally:
        if number == signal.SIGSTOP and which == "service":
            os.kill(core, signal.SIGCONT)


@linux
@pytest.mark.slow
def test_a_process_that_takes_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "BACKLOG", 100)
    tracker = begin(tmp_path / "run")
    (own,) = (pid for pid, command in descendants().items() if "wandb_process" in command)
    os.kill(own, signal.SIGSTOP)
    assert play(tracker, 2000) < 1
    assert "100 are waiting" in warning(caplog)


@linux
@pytest.mark.slow
def test_the_disk_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """wandb-core says nothing of it, so there may be no warning; the run has its own files."""
    tracker = begin(tmp_path / "run")
    resource.prlimit(service(), resource.RLIMIT_FSIZE, (4096, 4096))
    assert play(tracker, 3000) < 60
    assert len(caplog.records) <= 1


CORES = {
    "no executable": (0o644, "#!/bin/sh\nexit 0\n"),
    "ends at once": (0o755, "#!/bin/sh\nexit 3\n"),
    "hangs": (0o755, "#!/bin/sh\nexec sleep 100\n"),
    "not a program": (0o755, "\x7fELF nonsense"),
}


@linux
@pytest.mark.slow
@pytest.mark.parametrize("core", CORES)
def test_a_service_that_cannot_be_started(
    core: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The real wandb, with another wandb-core."""
    import wandb

    package = tmp_path / "other" / "wandb"
    (package / "bin").mkdir(parents=True)
    for path in Path(wandb.__file__).parent.iterdir():
        if path.name != "bin":
            (package / path.name).symlink_to(path)
    mode, content = CORES[core]
    (package / "bin" / "wandb-core").write_text(content)
    (package / "bin" / "wandb-core").chmod(mode)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setattr(trackers, "GRACE", 5.0)
    play(begin(tmp_path / "run"))
    assert "metrics.jsonl" in warning(caplog)
    assert "wandb sync" not in warning(caplog), "there is nothing to send"


PACKAGES = {
    "an odd error": "raise RuntimeError('no such symbol')",
    "an exit": "import sys; sys.exit(0)",
    "an abort": "import os; os.abort()",
    "a hang": "import time; time.sleep(100)",
    "chatter": "print('hello'); raise AttributeError('gone')",
    "something else": "",
}


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_a_wandb_that_is_broken(
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(PACKAGES[package])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.setattr(trackers, "GRACE", 2.0)
    play(begin(tmp_path / "run"))
    assert "metrics.jsonl" in warning(caplog)


def test_no_process_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    play(begin(tmp_path / "run"))
    assert "No such file" in warning(caplog)


# ------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"", b"[1]", b'"abcd"', b"3", b"{}", b'{"id": 7}', b'{"id": null}', b'{"id": ""}'),
        *(b'{"id": "../../x"}', b'{"id": "%s"}' % (b"x" * 500), b"\xff\xfe", b"[" * 100_000),
    ],
)
def test_a_damaged_id_begins_a_new_curve(
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))  # W&B itself isn't needed
    (tmp_path / "wandb.json").write_bytes(content)
    first = begin(tmp_path).run_id
    assert "new curve" in caplog.text
    caplog.clear()
    assert begin(tmp_path).run_id == first
    assert "new curve" not in caplog.text


def test_an_id_that_can_not_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    (tmp_path / "wandb.json").mkdir()
    begin(tmp_path)
    assert "can't be written" in caplog.text


@pytest.mark.slow
def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Something else has the name of W&B's folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").write_text("a file")
    play(begin(tmp_path / "run"))
    warning(caplog)


@pytest.mark.slow
def test_a_missing_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    play(begin(tmp_path / "run"))
    if not caplog.records:
        check_complete(offline_runs(tmp_path)[0])
    else:
        warning(caplog)


# ------------------------------------------------------------------------------ values, settings


@pytest.mark.slow
def test_odd_values_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = begin(
        tmp_path / "run",
        name="ü\n" * 2000,
        group="g" * 500,
        job_type="j" * 500,
        tags=("ü, ö", "a/b", "#?%:", "x" * 500),
        settings={"path": tmp_path, "nan": math.nan, "inf": math.inf, "": {}, "ü": [None, (1,)]},
    )
    tracker.log(1, {"nan": math.nan, "inf": -math.inf, "none": None, "": 1, "ü/\n": 2, "deep": {}})
    tracker.finish("finished", {})
    assert not caplog.records
    (run,) = offline_runs(tmp_path)
    assert math.isnan(run["history"][0]["nan"])
    assert run["history"][0]["inf"] == -math.inf


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [{"project": "a/b"}, {"project": "x" * 200}, {"own_tags": ["x" * 65]}, {"own_tags": [""]}],
)
def test_a_setting_that_wandb_refuses_is_a_mistake(setting: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"W&B refuses a setting .*(project|[tT]ag)"):
        begin(tmp_path / "run", **setting)


@pytest.mark.slow
def test_a_picture_that_can_not_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was logged before it is kept."""
    tracker = begin(tmp_path / "run")
    tracker.log(1, {"loss": 1})
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    tracker.image(1, "samples", tmp_path / "broken.png")
    play(tracker)
    assert "wandb sync" in warning(caplog)
    assert offline_runs(tmp_path)[0]["history"][0]["loss"] == 1
