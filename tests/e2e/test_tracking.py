"""`tracker=wandb` as a user meets it: offline, in trouble, stopped; in processes of their own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Cli, Tiny, losses, metrics, read_json
from weights_and_biases import Server, account, offline_runs, refusing

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as one:
        yield one


def lines_of(folder: Path) -> Callable[[], int]:
    return lambda: len(metrics(folder)) if (folder / "metrics.jsonl").exists() else 0


def test_an_offline_run_holds_what_a_person_looks_for(cli: Cli, tiny: Tiny) -> None:
    """In a sweep, interrupted once and resumed: two sessions of one run."""
    settings = tiny.mosaic("train.steps=12", "train.eval_every=6", "train.log_every=1",
                           "train.checkpoint_every=3")  # fmt: skip
    settings = [a for a in settings if not a.startswith(("tracker=", "experiment="))]
    sweep = ["-m", "sweep=quickstart", "experiment=quickstart", *settings, "tracker=wandb",
             "tracker.tags=[tiny,letters]", "tracker.log_checkpoints=true"]  # fmt: skip
    folder = cli.folder / "outputs/quickstart/mosaic/letters-strokes/wrn16_2-wrn16_1/seed0"
    run = cli.start(*sweep)
    seen = lines_of(folder)
    run.until(lambda: seen() > 1)
    stopped = run.send(signal.SIGTERM)
    assert stopped.code == 143, stopped.text
    finished = cli.start(*sweep).wait()
    assert finished.code == 0, finished.text
    for outcome in (stopped, finished):
        assert "Traceback" not in outcome.text
        assert "wandb:" not in outcome.text, "no chatter, no prompt"
        assert "without an API key; `wandb sync" in outcome.text.replace("\n", " ")

    first, second = offline_runs(folder / "wandb")
    for session in (first, second):
        assert session["id"] == read_json(folder / "wandb.json")["id"]
        assert (session["group"], session["job_type"]) == ("quickstart", "mosaic")
        assert session["tags"] == ["letters", "strokes", "wrn16_2-wrn16_1", "tiny"]
        assert session["project"] == "mosaickd"
        assert session["config"]["method"]["balance"] == 10
    assert first["summary"]["status"] == "interrupted"
    assert second["summary"]["status"] == "finished"

    logged = metrics(folder)
    rows = {row["_step"]: row for row in second["history"]}
    assert set(rows) == {line["step"] for line in logged}
    for line in logged:
        for name, value in line.items():
            if name in ("step", "time"):
                continue
            if isinstance(value, list):
                assert rows[line["step"]][f"{name}/values"] == value
            else:
                assert rows[line["step"]][name] == pytest.approx(value)
    result = read_json(folder / "result.json")
    assert second["summary"]["accuracy/top1"] == result["accuracy"]["last"]
    assert second["summary"]["accuracy/best"] == result["accuracy"]["best"]
    assert second["summary"]["accuracy/teacher"] == result["teacher_accuracy"]
    classes = read_json(folder / "per_class.json")["classes"]
    assert second["summary"]["accuracy/per_class/nrows"] == sum(c["images"] > 0 for c in classes)
    assert ("checkpoint", "last.pt") in first["artifacts"]
    assert ("model", "student.safetensors") in second["artifacts"]
    pictures = {step: row["samples/grid/path"] for step, row in rows.items()
                if row.get("samples/grid/_type") == "image-file"}  # fmt: skip
    assert set(pictures) == {6, 12}
    assert list(folder.rglob(pictures[12])), "the picture itself is kept"


@pytest.mark.parametrize("online", [False, True])
def test_wandb_changes_no_number_and_no_exit_code(
    online: bool, cli: Cli, tiny: Tiny, server: Server
) -> None:
    """Whether its server is there or not; there it is one warning."""
    plain, tracked = (
        tiny.mosaic("train.steps=6", "train.log_every=1", f"hydra.run.dir={name}")
        for name in ("plain", "tracked")
    )
    cli(*plain)
    url = server.url if online else refusing()
    run = cli.start(*tracked, "tracker=wandb", "tracker.init_timeout=2", env=account(url))
    outcome = run.wait()
    assert outcome.code == 0, outcome.text
    assert "Traceback" not in outcome.text
    log = (cli.folder / "tracked" / "run.log").read_text()
    assert log.count("WARNING") == (0 if online else 1)
    assert (cli.folder / "tracked" / "student.safetensors").exists()
    without, with_wandb = (
        [losses(line) for line in metrics(cli.folder / name)] for name in ("plain", "tracked")
    )
    assert without == with_wandb
    for stored in server.runs.values():
        assert [row["_step"] for row in stored.history] == list(range(1, 7))
        assert stored.summary["accuracy/per_class"]["nrows"] == 24
    assert len(server.runs) == online


@pytest.mark.parametrize("moment", ["at the start", "in the middle"])
def test_a_run_that_is_stopped_does_not_wait_long_for_a_server(
    moment: str, cli: Cli, tiny: Tiny, server: Server
) -> None:
    run = tiny.mosaic("hydra.run.dir=run", "train.steps=100000", "train.log_every=1",
                      "tracker=wandb")  # fmt: skip
    if moment == "at the start":
        server.fault = "silent"
    started = cli.start(*run, env=account(server.url))
    if moment == "at the start":
        started.until(lambda: server.requests > 0)
    else:
        seen = lines_of(cli.folder / "run")
        started.until(lambda: seen() > 3)
        server.fault = "silent"
    started.process.send_signal(signal.SIGTERM)
    outcome = started.wait(timeout=40)
    assert outcome.code == 143, outcome.text
    assert "Traceback" not in outcome.text
    assert read_json(cli.folder / "run" / "result.json")["status"] == "interrupted"
