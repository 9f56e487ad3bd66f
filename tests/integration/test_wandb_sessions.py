"""A run in several sessions is one curve at W&B. The real wandb, and a server that keeps rows."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from weights_and_biases import Server, account, forget_account, offline_runs, refusing

from mosaickd.engine.trackers import TrackedRun, WandbTracker
from mosaickd.errors import UserError
from mosaickd.run_dir import RunDir

CONFIG = {"seed": 0, "method": {"name": "kd", "temperature": 4.0}}
SESSIONS = [101, 102, 103, 104, 105, 206, 207]  # losses of steps 1 to 7, in sessions 1 and 2


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_account(tmp_path, monkeypatch)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with closing(Server()) as one:
        yield one


def log_in(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in account(url).items():
        monkeypatch.setenv(name, value)


class Session:
    """Plays a part of a run: losses each step, an evaluation with its picture every third."""

    def __init__(self, folder: Path, after: int, number: int, **settings: Any) -> None:
        self.run_dir, self.number = RunDir(folder), number
        folder.mkdir(exist_ok=True)
        requested = settings.pop("requested", True)
        tags = ("letters", "strokes")
        run = TrackedRun(folder, CONFIG, "a run", "a sweep", "mosaic", tags, requested)
        self.tracker = WandbTracker(run=run, **{"init_timeout": 20, **settings})
        self.run_dir.truncate(after, after - after % 3)
        self.tracker.resume(after)

    def log(self, step: int, record: dict[str, Any]) -> None:
        self.run_dir.append_metrics({"step": step, "time": 1e9 + step, **record})
        self.tracker.log(step, record)

    def play(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.log(step, {"loss/student/kd": float(100 * self.number + step)})
            if step % 3 == 0:
                self.evaluate(step)

    def evaluate(self, step: int) -> None:
        self.log(step, {"accuracy/top1": 50.0 + step, "fakes/classes": [step, 2, 3]})
        picture = self.run_dir.sample(step)
        picture.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (step, 0, 0)).save(picture)
        self.tracker.image(step, "samples/grid", picture)

    def finish(self, status: str) -> None:
        self.tracker.finish(status, {"accuracy/best": 56.0})


def check_whole(rows: list[dict[str, Any]], losses: list[int]) -> None:
    """One row a step, with all that was logged of it."""
    assert [row["_step"] for row in rows] == list(range(1, len(losses) + 1))
    assert [row["loss/student/kd"] for row in rows] == losses
    accuracies = {row["_step"]: row["accuracy/top1"] for row in rows if "accuracy/top1" in row}
    assert accuracies == {3: 53, 6: 56}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Those of ours: wandb's loggers have files of their own."""
    ours = [r for r in caplog.records if r.name.startswith("mosaickd")]
    return [r.getMessage() for r in ours if r.levelno >= logging.WARNING]


def check_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(caplog) == []


def sync(command: str, folder: Path, url: str) -> None:
    """Run `wandb sync ...`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=folder, env=os.environ | account(url) | {"PATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def check_stored(server: Server, losses: list[int]) -> None:
    """What a person sees of the run at W&B: as if it had never been stopped."""
    (run,) = server.runs.values()
    check_whole(run.history, losses)
    for step in (3, 6):
        row = run.history[step - 1]
        assert row["fakes/classes"]["values"] == [step, 2, 3]
        assert row["samples/grid"]["_type"] == "image-file"
    assert run.summary["status"] == "finished"
    assert run.summary["accuracy/best"] == 56
    assert (run.settings["groupName"], run.settings["jobType"]) == ("a sweep", "mosaic")
    assert run.settings["tags"] == ["letters", "strokes"]


def test_the_last_offline_session_holds_the_whole_run(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """`wandb sync` puts it in the place of the first, which was stopped two steps after the
    checkpoint from which it continues."""
    caplog.set_level(logging.INFO)
    first = Session(tmp_path, 0, 1)
    first.play(1, 5)
    first.finish("interrupted")
    second = Session(tmp_path, 3, 2)
    second.play(4, 7)
    second.finish("finished")
    check_no_warning(caplog)
    before, after = offline_runs(tmp_path)
    assert before["id"] == after["id"]
    assert [row["_step"] for row in before["history"]] == [1, 2, 3, 4, 5]
    assert before["summary"]["status"] == "interrupted"
    losses = [101, 102, 103, 204, 205, 206, 207]
    check_whole(after["history"], losses)
    assert [row["_timestamp"] for row in after["history"][:3]] == [1e9 + 1, 1e9 + 2, 1e9 + 3]
    assert after["config"]["method"] == CONFIG["method"]
    folders = re.findall("`wandb sync (.*?)`", caplog.text)
    sync(" ".join(["wandb sync", *folders]), tmp_path, server.url)
    check_stored(server, losses)


def test_a_checkpoint_is_an_artifact_as_it_was_when_it_was_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session(tmp_path, 0, 1, log_checkpoints=True)
    checkpoint = tmp_path / "last.pt"
    for step in (1, 2):
        checkpoint.write_text(f"weights of step {step}")
        session.tracker.file(step, "checkpoint", checkpoint)
    session.tracker.table("accuracy/per_class", ["class", "accuracy"], [["A", 50.0]])
    session.finish("finished")
    check_no_warning(caplog)
    (run,) = offline_runs(tmp_path)
    assert run["artifacts"][:2] == [("checkpoint", "last.pt")] * 2
    assert run["summary"]["accuracy/per_class/nrows"] == 1
    copies = [path for path in tmp_path.rglob("staging/*") if path.is_file()]
    assert b"weights of step 1" in {path.read_bytes() for path in copies}


@pytest.mark.parametrize("offline", [False, True])
def test_a_run_that_is_resumed_online_is_whole(
    offline: bool,
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first session, online or not, ends in the middle of step 6: its loss is logged, its
    evaluation isn't. The second one plays it again, after the last checkpoint, that of step 5."""
    if not offline:
        log_in(server.url, monkeypatch)
    first = Session(tmp_path, 0, 1)
    first.play(1, 5)
    first.log(6, {"loss/student/kd": 106.0})
    first.finish("interrupted")
    log_in(server.url, monkeypatch)
    second = Session(tmp_path, 5, 2)
    second.play(6, 7)
    second.finish("finished")
    check_no_warning(caplog)
    check_stored(server, SESSIONS)


def test_a_server_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log_in(refusing(), monkeypatch)
    session = Session(tmp_path, 0, 1, init_timeout=1)
    session.play(1, 3)
    session.finish("finished")
    (warning,) = warnings(caplog)
    assert "refused" in warning


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["silent", 401, 500])
def test_a_server_that_fails_in_the_middle_gets_all_by_wandb_sync(
    fault: str | int,
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The command is the one that the warning gives."""
    log_in(server.url, monkeypatch)
    session = Session(tmp_path, 0, 1, finish_timeout=2)
    server.fault = fault
    session.play(1, 7)
    session.finish("finished")
    (warning,) = warnings(caplog)
    server.fault = None
    (command,) = re.findall("`(wandb sync --include-online .*?)`", warning)
    if fault == "silent":
        server.closing.set()
    sync(command, tmp_path, server.url)
    check_stored(server, list(range(101, 108)))


@pytest.mark.parametrize("mode", ["online", "disabled"])
def test_the_environment_says_whether_it_is_online(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Online without an API key there is a warning, and no prompt."""
    monkeypatch.setenv("WANDB_MODE", mode)
    session = Session(tmp_path, 0, 1, log_checkpoints=True)
    session.play(1, 3)
    session.tracker.file(3, "checkpoint", session.run_dir.metrics)
    session.tracker.table("accuracy/per_class", ["class", "accuracy"], [["A", 50.0]])
    session.finish("finished")
    assert len(warnings(caplog)) == (mode == "online")
    assert not offline_runs(tmp_path)


@pytest.mark.parametrize(
    ("setting", "word"), [({"project": "a/b"}, "project"), ({"tags": ["x" * 65]}, "[tT]ag")]
)
def test_a_setting_that_wandb_refuses_is_a_mistake(setting: Any, word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"W&B refuses a setting .*{word}"):
        Session(tmp_path, 0, 1, **setting)


def test_a_trial_of_a_sweep_is_known_by_its_agents_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What its agent chose stays in its config as the sweep knows it; a teacher that it trains is
    a run of its own."""
    parameters = tmp_path / "config-trial1.yaml"
    chosen = {"method": {"value": "kd"}, "seed": {"value": 0}}
    parameters.write_text(yaml.safe_dump({"wandb_version": 1, **chosen}))
    agent = {"WANDB_SWEEP_ID": "swp1", "WANDB_RUN_ID": "trial1", "WANDB_PROJECT": "elsewhere",
             "WANDB_SWEEP_PARAM_PATH": str(parameters), "WANDB_MODE": "offline"}  # fmt: skip
    for name, value in agent.items():
        monkeypatch.setenv(name, value)
    for folder, requested in (("teacher", False), ("run", True)):
        session = Session(tmp_path / folder, 0, 1, requested=requested)
        session.play(1, 2)
        session.finish("finished")
    check_no_warning(caplog)
    (teacher,) = offline_runs(tmp_path / "teacher")
    (trial,) = offline_runs(tmp_path / "run")
    assert teacher["id"] != "trial1"
    assert (teacher["project"], teacher["sweep"]) == ("mosaickd", "")
    assert teacher["config"]["method"] == CONFIG["method"]
    assert (trial["id"], trial["project"], trial["sweep"]) == ("trial1", "elsewhere", "swp1")
    assert trial["config"]["method"] == "kd"
    assert trial["config"]["method.temperature"] == 4
