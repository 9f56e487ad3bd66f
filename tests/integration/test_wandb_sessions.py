"""A run in several sessions, interrupted or killed between them, is one curve at W&B.

The real wandb and the real `wandb sync`; a server that keeps what it is sent.
"""

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
from PIL import Image
from weights_and_biases import KEY, Kept, Server, nobody_at, offline_runs

from mosaickd.engine.metrics import MetricsFile, sample_grid
from mosaickd.engine.trackers import Tracked, WandbTracker
from mosaickd.files import write_atomically


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with nobody_at(tmp_path, monkeypatch):
        yield


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as one:
        yield one


def account(server: Server) -> dict[str, str]:
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}


class Session:
    """A process that plays a part of a run, as the loop does: losses each step, an evaluation with
    its picture every third, and a checkpoint after it."""

    def __init__(self, folder: Path, after: int, number: int, **settings: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.number = folder, number
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        run = Tracked(folder, {"seed": 0}, "a run", "a sweep", "mosaic", ("letters", "strokes"))
        more = {"init_timeout": 20, "finish_timeout": 60, **settings}
        self.tracker = WandbTracker(run=run, **more)
        self.metrics.truncate(after, after)
        self.tracker.resume(after)

    def log(self, step: int, record: dict[str, Any]) -> None:
        self.metrics.append({"step": step, "time": 1e9 + step, **record})
        self.tracker.log(step, record)

    def play(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.log(step, {"loss/student/kd": float(100 * self.number + step)})
            if step % 3 == 0:
                self.evaluate(step)

    def evaluate(self, step: int) -> None:
        self.log(step, {"accuracy/top1": 50.0 + step, "fakes/classes": [step, 2, 3]})
        picture = sample_grid(self.folder, step)
        picture.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (step, 0, 0)).save(picture)
        self.tracker.image(step, "samples/grid", picture)
        checkpoint = self.folder / "checkpoints" / "last.pt"
        write_atomically(checkpoint, lambda file: file.write(f"step {step}".encode()))
        self.tracker.file(step, "checkpoint", checkpoint)

    def finish(self, status: str) -> None:
        if status == "finished":
            self.tracker.table("accuracy/per_class", ["class", "accuracy"], [["A", 50.0]])
        self.tracker.finish(status, {"accuracy/best": 59.0})

    def die(self) -> None:
        """As if the run's process had been killed: nothing more comes."""
        assert self.tracker.process
        self.tracker.process.close()
        self.tracker.process.answer(60)


def kept(server: Server) -> Kept:
    (run,) = server.runs.values()
    return run


def check_whole(rows: list[dict[str, Any]], losses: list[int]) -> None:
    """One row a step, with all that was logged of it; losses of the sessions that count."""
    assert [row["_step"] for row in rows] == list(range(1, len(losses) + 1))
    assert [row["loss/student/kd"] for row in rows] == losses
    found = {row["_step"]: row["accuracy/top1"] for row in rows if "accuracy/top1" in row}
    assert found == {step: 50 + step for step in (3, 6, 9)}


SESSIONS = [101, 102, 103, 204, 205, 206, 207, 208, 209, 210]


def check_kept(run: Kept, losses: list[int], table: bool = True) -> None:
    """What a person sees of a run: as if it had never been stopped."""
    check_whole(run.history, losses)
    for step in (3, 6, 9):
        row = run.history[step - 1]
        assert row["fakes/classes"]["values"] == [step, 2, 3]
        assert row["samples/grid"]["_type"] == "image-file"
    assert run.summary["status"] == "finished"
    assert run.summary["accuracy/top1"] == 59
    assert run.summary["accuracy/best"] == 59
    if table:
        assert run.summary["accuracy/per_class"]["nrows"] == 1
    assert (run.about["groupName"], run.about["jobType"]) == ("a sweep", "mosaic")
    assert run.about["tags"] == ["letters", "strokes"]


def test_an_offline_session_holds_the_whole_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`wandb sync` puts one in the place of the other. The first was killed three steps after the
    checkpoint from which the second goes on."""
    first = Session(tmp_path / "run", 0, 1)
    first.play(1, 5)
    first.die()
    second = Session(tmp_path / "run", 3, 2)
    second.play(4, 10)
    second.finish("finished")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    before, after = offline_runs(tmp_path)
    assert before["id"] == after["id"]
    assert [row["_step"] for row in before["history"]] == [1, 2, 3, 4, 5]
    check_whole(after["history"], SESSIONS)
    assert [row["_timestamp"] for row in after["history"][:3]] == [1e9 + 1, 1e9 + 2, 1e9 + 3]
    pictures = [row["_step"] for row in after["history"] if "samples/grid/path" in row]
    assert pictures == [3, 6, 9]


@pytest.mark.slow
@pytest.mark.parametrize("both", ["at once", "one by one", "only the last"])
def test_an_offline_run_that_is_synced_looks_like_one_that_was_online(
    both: str, tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    first = Session(tmp_path / "run", 0, 1, log_checkpoints=True)
    first.play(1, 5)
    first.die()
    second = Session(tmp_path / "run", 3, 2, log_checkpoints=True)
    second.play(4, 10)
    second.finish("finished")
    folders = [str(path) for path in sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))]
    assert len(folders) == 2
    groups = {"at once": [folders], "one by one": [[f] for f in folders]}
    for group in groups.get(both, [folders[-1:]]):
        command = [Path(sys.executable).with_name("wandb"), "sync", *group]
        env = os.environ | account(server)
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert list(server.runs) == [second.tracker.run_id]
    check_kept(kept(server), SESSIONS)
    sent = [
        a["files"]["last.pt"] for a in server.artifacts if a["artifactTypeName"] == "checkpoint"
    ]
    mine = [b"step 6", b"step 9"]
    assert sorted(sent) == (mine if both == "only the last" else [b"step 3", *mine])
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "interrupted"])
@pytest.mark.parametrize("until", [3, 5, 6])
def test_a_run_that_is_resumed_online_continues_its_curve(
    end: str,
    until: int,
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first session ends in the middle of a step: its losses are logged, its evaluation isn't.
    What both have outputs, W&B keeps of the first. There is no warning, and nothing is missing."""
    for name, value in account(server).items():
        monkeypatch.setenv(name, value)
    first = Session(tmp_path / "run", 0, 1)
    first.play(1, until - 1)
    first.log(until, {"loss/student/kd": 100.0 + until})
    first.die() if end == "killed" else first.finish("interrupted")
    after = until if end == "interrupted" else until - until % 3 - 3 * (until % 3 == 0)
    second = Session(tmp_path / "run", after, 2)
    if after == until and until % 3 == 0:
        second.evaluate(until)
    second.play(after + 1, 10)
    second.finish("finished")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    losses = [100 * (1 if step < max(until, after + 1) else 2) + step for step in range(1, 11)]
    check_kept(kept(server), losses)


@pytest.mark.slow
def test_what_did_not_reach_the_server_is_sent_by_the_session_that_goes_on(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = Session(tmp_path / "run", 0, 1)  # offline: no account yet
    first.play(1, 6)
    first.finish("interrupted")
    for name, value in account(server).items():
        monkeypatch.setenv(name, value)
    second = Session(tmp_path / "run", 6, 2)
    second.play(7, 10)
    second.finish("finished")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    check_kept(kept(server), [101, 102, 103, 104, 105, 106, 207, 208, 209, 210])


@pytest.mark.slow
def test_checkpoints_become_artifacts_and_nothing_stays_behind(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Online each version is sent as it was, though the file is replaced; no copy outlives that."""
    for name, value in account(server).items():
        monkeypatch.setenv(name, value)
    session = Session(tmp_path / "run", 0, 1, log_checkpoints=True)
    session.play(1, 10)
    session.finish("finished")
    sent = [a for a in server.artifacts if a["artifactTypeName"] == "checkpoint"]
    assert [a["files"]["last.pt"] for a in sent] == [b"step 3", b"step 6", b"step 9"]
    aliases = [{alias["alias"] for alias in a["aliases"]} for a in sent]
    assert aliases == [{"latest", "step3"}, {"latest", "step6"}, {"latest", "step9"}]
    assert {a["artifactCollectionName"] for a in sent} == {f"checkpoint-{session.tracker.run_id}"}
    copies = [p for p in tmp_path.rglob("*") if p.is_file() and p.read_bytes()[:5] == b"step "]
    assert copies == [tmp_path / "run" / "checkpoints" / "last.pt"]
    assert not list(tmp_path.rglob("outbox"))


@pytest.mark.slow
def test_a_file_on_its_way_does_not_outlive_a_tracker_that_is_given_up(tmp_path: Path) -> None:
    session = Session(tmp_path / "run", 0, 1, log_checkpoints=True)
    session.play(1, 3)
    assert session.tracker.process
    session.tracker.process.kill()
    session.play(4, 9)
    session.finish("finished")
    assert not list(tmp_path.rglob("outbox"))


@pytest.mark.slow
def test_what_a_resumed_session_could_not_send_is_sent_by_wandb_sync(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The command is the one that the warning gives. But for the table: wandb makes an artifact of
    it, and writes down no artifact that it can't ask its server about."""
    for name, value in account(server).items():
        monkeypatch.setenv(name, value)
    first = Session(tmp_path / "run", 0, 1)
    first.play(1, 6)
    first.finish("interrupted")
    second = Session(tmp_path / "run", 6, 2, finish_timeout=3)
    server.fault = 500
    second.play(7, 10)
    second.finish("finished")
    (warning,) = (r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
    server.fault = None
    (command,) = re.findall("`(.*wandb sync .*?)`", warning)
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    check_kept(kept(server), [101, 102, 103, 104, 105, 106, 207, 208, 209, 210], table=False)


@pytest.mark.slow
def test_a_trial_of_a_wandb_sweep_is_what_its_agent_asked_for(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Online; the second trial has drawn a cell that the first one left half done."""
    agent = {"WANDB_SWEEP_ID": "swp1", "WANDB_PROJECT": "elsewhere", "WANDB_DIR": str(tmp_path)}
    for name, value in (account(server) | agent).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_RUN_ID", "trial1")
    first = Session(tmp_path / "run", 0, 1)
    first.play(1, 6)
    first.finish("interrupted")
    monkeypatch.setenv("WANDB_RUN_ID", "trial2")
    second = Session(tmp_path / "run", 6, 2)
    second.play(7, 10)
    second.finish("finished")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert list(server.runs) == ["trial1", "trial2"]
    check_kept(server.runs["trial2"], [101, 102, 103, 104, 105, 106, 207, 208, 209, 210])
    for run in server.runs.values():
        assert run.about["sweep"] == "swp1"
        assert run.about["project"] == "elsewhere"
    assert not list(tmp_path.glob("wandb/run-*")), "in the run's folder, not where the agent is"
