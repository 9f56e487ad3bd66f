"""The same command again: goes on as if nothing had happened, wherever the run was stopped."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, Tiny, metrics, read_json
from safetensors.torch import load_file

STEPS = 24
CADENCE = [f"train.steps={STEPS}", "train.eval_every=8", "train.log_every=3",
           "train.checkpoint_every=2"]  # fmt: skip
KILLS = 2


def command(tiny: Tiny, method: str) -> list[str]:
    if method == "scratch":
        return tiny.scratch(*CADENCE, "hydra.run.dir=run")
    shorter = ["method.student_steps=2"] if method == "mosaic" else []
    return tiny.distil(method, *CADENCE, *shorter, "hydra.run.dir=run")


def assert_same_run(folder: Path, reference: Path) -> None:
    """Bit-identical students; result and numbers alike."""
    for name in ("student.safetensors", "checkpoints/best.safetensors"):
        ours, theirs = load_file(folder / name), load_file(reference / name)
        assert ours.keys() == theirs.keys()
        different = [key for key in ours if not torch.equal(ours[key], theirs[key])]
        assert not different
    ours, theirs = read_json(folder / "result.json"), read_json(reference / "result.json")
    for key in ("status", "accuracy", "teacher_accuracy", "steps", "config_hash", "error"):
        assert ours[key] == theirs[key], key


def computed(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock has measured."""
    measured = {"time", "speed/seconds_per_step", "speed/images_per_second", "memory/peak_mb"}
    return [{k: v for k, v in line.items() if k not in measured} for line in metrics(folder)]


def progress(folder: Path) -> int:
    """A number that changes with each checkpoint."""
    path = folder / "checkpoints" / "last.pt"
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.fixture(scope="module")
def uninterrupted(shared_cli: Cli, tiny: Tiny) -> Path:
    """A mosaic run that nobody stopped."""
    shared_cli(*command(tiny, "mosaic"), "hydra.run.dir=uninterrupted")
    return shared_cli.folder / "uninterrupted"


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.slow) for m in ("mosaic", "kd", "scratch")],
)
def test_killed_at_random_moments_it_ends_bit_identical(
    cli: Cli, tiny: Tiny, method: str, request: pytest.FixtureRequest
) -> None:
    if method == "mosaic":
        reference = request.getfixturevalue("uninterrupted")
    else:
        cli(*command(tiny, method), "hydra.run.dir=reference")
        reference = cli.folder / "reference"
    folder = cli.folder / "run"
    seed = random.SystemRandom().randrange(10**6)
    print(f"delays are drawn from seed {seed}")
    delays = random.Random(seed)
    kills = 0
    while kills < KILLS:
        before = progress(folder)
        run = cli.start(*command(tiny, method))
        while run.process.poll() is None and progress(folder) == before:
            time.sleep(0.005)
        time.sleep(delays.uniform(0, 0.4))
        if run.process.poll() is not None:
            break
        run.send(signal.SIGKILL)
        kills += 1
    assert kills, "the run ended before it could be killed"
    cli(*command(tiny, method))
    assert_same_run(folder, reference)
    assert computed(folder) == computed(reference)


@pytest.mark.slow
def test_sigterm_and_ctrl_c_stop_in_order_and_the_same_command_finishes(
    cli: Cli, tiny: Tiny, uninterrupted: Path
) -> None:
    folder = cli.folder / "run"
    lines = 0

    def goes_on() -> bool:
        return (folder / "metrics.jsonl").exists() and len(metrics(folder)) > lines + 1

    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        run = cli.start(*command(tiny, "mosaic"))
        run.until(goes_on)
        outcome = run.send(number)
        assert outcome.code == code, outcome.text
        assert "Traceback" not in outcome.text
        assert "the same command goes on from there" in outcome.out
        result = read_json(folder / "result.json")
        assert result["status"] == "interrupted"
        assert number.name in result["error"]
        assert 0 < result["steps"] < STEPS
        checkpoint = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
        assert checkpoint["progression"]["step"] == result["steps"], "not a step is lost"
        assert not (folder / "student.safetensors").exists()
        lines = len(metrics(folder))
    outcome = cli(*command(tiny, "mosaic"))
    assert f"resumed at step {result['steps']} of {STEPS}" in outcome.out
    assert_same_run(folder, uninterrupted)
    logged = [(line["step"], "accuracy/top1" in line) for line in metrics(folder)]
    assert logged == sorted(set(logged))


@pytest.mark.slow
def test_stopped_while_it_trains_its_teacher(cli: Cli, tiny: Tiny, teacher: Path) -> None:
    images = [*tiny.source("dataset"), *tiny.source("ood", images=32)]
    recipe = "dataset.recipe={epochs: 6, batch_size: 48, lr: 0.05, weight_decay: 5e-4}"
    whole = ["experiment=quickstart_kd", "tracker=none", "train.epochs=1", "train.batch_size=16"]
    same = [*whole, *images, recipe, "hydra.run.dir=run"]
    training = cli.folder / "checkpoints" / "letters" / "wrn16_2-training"
    run = cli.start(*same)
    run.until(lambda: (training / "metrics.jsonl").exists())
    outcome = run.send(signal.SIGTERM)
    assert outcome.code == 143, outcome.text
    assert "Traceback" not in outcome.text
    assert read_json(training / "result.json")["status"] == "interrupted"
    assert read_json(cli.folder / "run" / "result.json")["status"] == "interrupted"
    assert not (training.parent / "wrn16_2.safetensors").exists()

    outcome = cli(*same)
    assert "resumed at step" in outcome.out
    ours = load_file(training.parent / "wrn16_2.safetensors")
    theirs = load_file(teacher)  # of the same recipe, never stopped
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert read_json(cli.folder / "run" / "result.json")["status"] == "finished"
