"""Weights & Biases, offline; and no tracker at all."""

from __future__ import annotations

import json
import signal
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Tiny, metrics, read_json


def stored(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a header, then LevelDB's log format, in blocks of 32 KiB."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, record = 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:  # too short for a chunk's header: padding
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)  # after the checksum
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_offline(path: Path) -> dict[str, Any]:
    """What an offline run holds: its identity, config, history and summary."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}}
    for data in stored(path):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found |= {"id": run.run_id, "group": run.run_group, "tags": list(run.tags)}
            found |= {"project": run.project, "name": run.display_name}
            found["config"] |= values(run.config.update)
        elif kind == "history":
            found["history"].append(values(record.history.item))
        elif kind == "summary":
            found["summary"] |= values(record.summary.update)
    return found


def values(items: Iterable[Any]) -> dict[str, Any]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    return [read_offline(path) for path in sorted(folder.rglob("run-*.wandb"))]


@pytest.mark.slow
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
    assert first["summary"]["status"] == "interrupted"
    assert second["summary"]["status"] == "finished"

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
    pictures = [row for row in rows if row.get("samples/_type") == "image-file"]
    assert [row["_step"] for row in pictures] == [6, 12]
    assert list(folder.rglob(pictures[-1]["samples/path"])), "the picture itself is kept"


@pytest.fixture
def no_wandb(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing can import wandb."""
    folder = tmp_path / "no_wandb"
    folder.mkdir()
    (folder / "wandb.py").write_text("raise ImportError('no wandb here')\n")
    return {"PYTHONPATH": str(folder)}


def test_no_tracker_needs_no_wandb(cli: Cli, tiny: Tiny, no_wandb: dict[str, str]) -> None:
    cli(*tiny.scratch("train.steps=2", "hydra.run.dir=run"), env=no_wandb)
    assert read_json(cli.folder / "run" / "result.json")["status"] == "finished"


def test_wandb_that_is_missing_is_explained(cli: Cli, tiny: Tiny, no_wandb: dict[str, str]) -> None:
    command = tiny.scratch("train.steps=2", "hydra.run.dir=run", "tracker=wandb")
    assert "tracker=none" in cli(*command, env=no_wandb, code=1).err
