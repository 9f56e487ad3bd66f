"""Weights & Biases, offline; and no tracker at all."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Cli, Outcome, Tiny, losses, metrics, read_json
from weights_and_biases import (
    KEY,
    Server,
    descendants,
    offline_runs,
    read_run,
    refusing,
    service,
    wait_for,
)


@pytest.mark.slow
def test_an_offline_run_holds_what_a_person_looks_for(cli: Cli, tiny: Tiny) -> None:
    """In a sweep, interrupted once and resumed: two sessions of one run."""
    cell = tiny.mosaic("train.steps=12", "train.eval_every=6", "train.log_every=1",
                       "train.checkpoint_every=3", "method.balance=10")  # fmt: skip
    tracked = [a for a in cell if not a.startswith(("tracker=", "experiment="))]
    sweep = ["-m", "sweep=quickstart", "experiment=quickstart", "tracker=wandb",
             "tracker.tags=[tiny,letters]", "tracker.log_checkpoints=true", *tracked]  # fmt: skip
    folder = cli.folder / "outputs/quickstart/mosaic/letters-strokes/wrn16_2-wrn16_1/seed0"
    run = cli.start(*sweep)
    run.until(lambda: (folder / "metrics.jsonl").exists() and len(metrics(folder)) > 1)
    stopped = run.send(signal.SIGTERM)
    assert stopped.code == 143, stopped.text
    assert "Traceback" not in stopped.text
    cli(*sweep)
    assert "wandb:" not in stopped.text, "no chatter, no prompt"

    first, second = offline_runs(folder / "wandb")
    for session in (first, second):
        assert session["id"] == read_json(folder / "wandb.json")["id"]
        assert session["group"] == "quickstart"
        assert session["job_type"] == "mosaic"
        assert session["tags"] == ["letters", "strokes", "wrn16_2-wrn16_1", "tiny"]
        assert session["project"] == "mosaickd"
        assert session["config"]["method"]["balance"] == 10
        assert session["config"]["seed"] == 0
    assert first["summary"]["status"] == "interrupted"
    assert second["summary"]["status"] == "finished"

    rows = second["history"]  # `wandb sync` puts it in the place of the first one's
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    logged = metrics(folder)
    curves = {row["_step"]: row for row in rows if "loss/student/kd" in row}
    assert set(curves) == {line["step"] for line in logged if losses(line)}
    for line in (line for line in logged if losses(line)):
        row = curves[line["step"]]
        for name, value in losses(line).items():
            assert row[f"loss/{name}"] == pytest.approx(value)
            assert row[f"weighted/{name}"] == pytest.approx(line[f"weighted/{name}"])
        for player in ("generator", "discriminator", "student"):
            assert row[f"lr/{player}"] > 0 or line["step"] == 12
        assert row["speed/images_per_second"] > 0
        assert row["memory/peak_mb"] > 0
    name = "accuracy/top1"
    accuracies = {row["_step"]: row[name] for row in rows if name in row}
    assert accuracies == {line["step"]: line[name] for line in logged if name in line}
    result = read_json(folder / "result.json")
    assert second["summary"]["accuracy/top1"] == result["accuracy"]["last"]
    assert second["summary"]["accuracy/best"] == result["accuracy"]["best"]
    assert second["summary"]["accuracy/teacher"] == result["teacher_accuracy"]
    fakes = {row["_step"]: row for row in rows if "fakes/classes/bins" in row}
    assert set(fakes) == {6, 12}
    assert sum(fakes[12]["fakes/classes/values"]) == 200, "ten a letter, in hundreds"
    classes = read_json(folder / "per_class.json")["classes"]
    assert second["summary"]["accuracy/per_class/nrows"] == sum(c["images"] > 0 for c in classes)
    right, images = (sum(c[key] for c in classes) for key in ("right", "images"))
    assert 100 * right / images == pytest.approx(result["accuracy"]["last"], abs=1e-3)
    kept = [a for a in first["artifacts"] + second["artifacts"] if a[0] != "run_table"]
    assert kept[-1] == ("model", "student.safetensors")
    assert ("checkpoint", "last.pt") in first["artifacts"]
    assert kept.count(("checkpoint", "last.pt")) >= 4, "each one that was written"
    pictures = [row for row in rows if row.get("samples/grid/_type") == "image-file"]
    assert [row["_step"] for row in pictures] == [6, 12]
    assert list(folder.rglob(pictures[-1]["samples/grid/path"])), "the picture itself is kept"


@pytest.fixture
def no_wandb(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing can import wandb."""
    folder = tmp_path / "no_wandb"
    folder.mkdir()
    (folder / "wandb.py").write_text("raise ImportError('no wandb here')\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_no_tracker_needs_no_wandb(cli: Cli, tiny: Tiny, no_wandb: dict[str, str]) -> None:
    cli(*tiny.scratch("train.steps=2", "hydra.run.dir=run"), env=no_wandb)
    assert read_json(cli.folder / "run" / "result.json")["status"] == "finished"


@pytest.mark.slow
def test_wandb_that_is_missing_is_explained(cli: Cli, tiny: Tiny, no_wandb: dict[str, str]) -> None:
    command = tiny.scratch("train.steps=2", "hydra.run.dir=run", "tracker=wandb")
    assert "tracker=none" in cli(*command, env=no_wandb, code=1).err


# ------------------------------------------------------------------------------ W&B in trouble


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as one:
        yield one


def account(url: str) -> dict[str, str]:
    return {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}


def run_of(tiny: Tiny, *more: str) -> list[str]:
    long = ("train.steps=100000", "train.log_every=1", "train.checkpoint_every=5")
    return tiny.mosaic("hydra.run.dir=run", "train.eval_every=10", *(more or long), "tracker=wandb")


def steps_of(folder: Path) -> Callable[[], int]:
    return lambda: len(metrics(folder)) if (folder / "metrics.jsonl").exists() else 0


def check_untouched(outcome: Outcome, folder: Path, steps: int) -> None:
    """The run has come to its end with all its files, and a single warning."""
    assert read_json(folder / "result.json")["status"] == "finished"
    assert {line["step"] for line in metrics(folder) if losses(line)} >= {1, steps}
    assert (folder / "student.safetensors").exists()
    assert (folder / "run.log").read_text().count("WARNING") == 1
    assert "Traceback" not in outcome.text
    assert outcome.text.count("metrics.jsonl") + outcome.text.count("wandb sync") >= 1


@pytest.mark.slow
def test_a_run_without_its_server_is_complete(cli: Cli, tiny: Tiny) -> None:
    command = run_of(tiny, "train.steps=20", "tracker.init_timeout=2")
    outcome = cli(*command, env=account(refusing()))
    check_untouched(outcome, cli.folder / "run", 20)
    (run,) = offline_runs(cli.folder / "run")
    assert run["summary"]["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True])
def test_a_run_whose_service_is_killed_is_complete(
    online: bool, cli: Cli, tiny: Tiny, server: Server
) -> None:
    command = run_of(tiny, "train.steps=60", "train.log_every=1")
    started = cli.start(*command, env=account(server.url) if online else {})
    seen = steps_of(cli.folder / "run")
    started.until(lambda: seen() > 3)
    os.kill(service(started.process.pid), signal.SIGKILL)
    outcome = started.wait()
    assert outcome.code == 0, outcome.text
    check_untouched(outcome, cli.folder / "run", 60)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_wandb_begins(
    number: signal.Signals, cli: Cli, tiny: Tiny, server: Server
) -> None:
    server.fault = "silent"
    started = cli.start(*run_of(tiny), env=account(server.url))
    started.until(lambda: server.requests > 0)
    before = descendants(started.process.pid)
    outcome = started.send(number)
    assert outcome.code == 128 + number, outcome.text
    assert "Traceback" not in outcome.text
    assert read_json(cli.folder / "run" / "result.json")["status"] == "interrupted"
    wait_for(lambda: not before.keys() & descendants(1).keys(), 10)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_does_not_wait_long_for_a_server(
    number: signal.Signals, cli: Cli, tiny: Tiny, server: Server
) -> None:
    """W&B's process stays behind, no longer than it may, and writes what was not sent: all but the
    step in which the run was stopped, which the session that goes on will send."""
    started = cli.start(*run_of(tiny), "tracker.finish_timeout=20", env=account(server.url))
    folder = cli.folder / "run"
    seen = steps_of(folder)
    started.until(lambda: seen() > 3)
    server.fault = "silent"
    started.process.send_signal(number)
    before = descendants(started.process.pid)
    outcome = started.wait(timeout=30)
    assert outcome.code == 128 + number, outcome.text
    assert "Traceback" not in outcome.text
    assert "not everything was sent" in (folder / "run.log").read_text()
    wait_for(lambda: not before.keys() & descendants(1).keys(), 40)
    (path,) = (folder / "wandb").glob("run-*/run-*.wandb")
    logged = {line["step"] for line in metrics(folder) if losses(line)}
    kept = {r["_step"] for r in read_run(path)["history"] if "loss/student/kd" in r}
    assert kept == logged - {max(logged)}


@pytest.mark.slow
def test_the_files_of_a_run_that_is_killed_are_closed(cli: Cli, tiny: Tiny) -> None:
    """Its process for W&B hears that nothing comes any more."""
    started = cli.start(*run_of(tiny))
    folder = cli.folder / "run"
    seen = steps_of(folder)
    started.until(lambda: seen() > 20)
    before = descendants(started.process.pid)
    started.process.kill()
    started.wait()
    wait_for(lambda: not before.keys() & descendants(1).keys(), 40)
    (run,) = offline_runs(folder)
    assert len(run["history"]) >= 20
    assert run["summary"]["status"] == "running", "nobody said how it ended"
