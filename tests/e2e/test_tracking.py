"""Weights & Biases, offline; and no tracker at all."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Tiny, metrics, read_json

wandb_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")


def read_offline(path: Path) -> dict[str, Any]:
    """What an offline run holds: its identity, config, history, files and summary."""
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(str(path))
    found: dict[str, Any] = {"config": {}, "history": [], "files": [], "summary": {}}
    while (data := store.scan_data()) is not None:
        record = wandb_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found |= {"id": run.run_id, "group": run.run_group, "tags": list(run.tags)}
            found |= {"project": run.project, "name": run.display_name}
            found["config"] |= {u.key: json.loads(u.value_json) for u in run.config.update}
        elif kind == "history":
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json)
                   for i in record.history.item}  # fmt: skip
            found["history"].append(row)
        elif kind == "summary":
            items = record.summary.update
            found["summary"] |= {i.key or "/".join(i.nested_key): i.value_json for i in items}
        elif kind == "files":
            found["files"] += [file.path for file in record.files.files]
    return found


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    return [read_offline(path) for path in sorted(folder.rglob("run-*.wandb"))]


def test_an_offline_run_holds_what_a_person_looks_for(cli: Cli, tiny: Tiny) -> None:
    """In a sweep, interrupted once and resumed: two sessions of one run."""
    cell = tiny.mosaic("train.steps=12", "train.eval_every=6", "train.log_every=1",
                       "train.checkpoint_every=3", "method.balance=10")  # fmt: skip
    tracked = [a for a in cell if not a.startswith(("tracker=", "experiment="))]
    sweep = ["-m", "sweep=quickstart", "experiment=quickstart", "tracker=wandb",
             "tracker.tags=[tiny,letters]", *tracked]  # fmt: skip
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
        assert session["tags"] == ["tiny", "letters"]
        assert session["project"] == "mosaickd"
        assert session["config"]["method"]["balance"] == 10
        assert session["config"]["seed"] == 0
    assert json.loads(first["summary"]["status"]) == "interrupted"
    assert json.loads(second["summary"]["status"]) == "finished"

    rows = first["history"] + second["history"]
    logged = metrics(folder)
    losses = {row["_step"]: row for row in rows if "losses/student/kd" in row}
    assert set(losses) == {line["step"] for line in logged if "losses" in line}
    for line in (line for line in logged if "losses" in line):
        row = losses[line["step"]]
        for name, value in line["losses"].items():
            assert row[f"losses/{name}"] == pytest.approx(value)
            assert row[f"weighted/{name}"] == pytest.approx(line["weighted"][name])
        for player in ("generator", "discriminator", "student"):
            assert row[f"learning_rate/{player}"] > 0 or line["step"] == 12
        assert row["images_per_second"] > 0
        assert row["memory_mb"] > 0
    accuracies = {row["_step"]: row["accuracy"] for row in rows if "accuracy" in row}
    assert accuracies == {line["step"]: line["accuracy"] for line in logged if "accuracy" in line}
    pictures = [row["samples"] for row in rows if "samples" in row]
    assert [picture["_type"] for picture in pictures] == ["image-file"] * len(accuracies)
    assert list(folder.rglob(pictures[-1]["path"])), "the picture itself is kept"


def test_no_tracker_needs_no_wandb(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    blocked = tmp_path / "no_wandb"
    blocked.mkdir()
    (blocked / "wandb.py").write_text("raise ImportError('no wandb here')\n")
    environment = {"PYTHONPATH": str(blocked)}
    images = [*tiny.source("dataset")]
    assert images
    cli(*tiny.scratch("train.steps=2", "hydra.run.dir=run"), env=environment)
    assert read_json(cli.folder / "run" / "result.json")["status"] == "finished"
    outcome = cli(
        *tiny.scratch("train.steps=2", "hydra.run.dir=other", "tracker=wandb"),
        env=environment,
        code=1,
    )
    assert "tracker=none" in outcome.err
