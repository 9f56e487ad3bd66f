"""The same command again: goes on as if nothing had happened, wherever the run was stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from conftest import Cli, Tiny, read_json
from forked import Forked, finish, refused
from safetensors.torch import load_file
from soak import outputs_of

from mosaickd.engine.checkpoint import load_checkpoint

STEPS = 24
CADENCE = [f"train.steps={STEPS}", "train.eval_every=8", "train.log_every=3",
           "train.checkpoint_every=1", "hydra.run.dir=run"]  # fmt: skip


@pytest.fixture
def same(tiny: Tiny) -> list[str]:
    """The command of all runs here."""
    return tiny.mosaic("method.student_steps=1", *CADENCE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """The folder in which a run was started that nobody stopped."""
    home = tmp_path_factory.mktemp("undisturbed")
    finish(Forked(home, home).start(*tiny.mosaic("method.student_steps=1", *CADENCE)))
    return home


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    """Students, pictures, losses and results are those of the undisturbed run, bit for bit."""
    ours, theirs = outputs_of(folder), outputs_of(undisturbed)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if ours[name] != theirs[name]]


def test_killed_in_the_middle_it_ends_bit_identical(
    cli: Cli, same: list[str], undisturbed: Path
) -> None:
    """In a process of its own, as a user starts it; at other moments: `python -m tests.soak`."""
    run = cli.start(*same)
    run.until((cli.folder / "run" / "checkpoints" / "previous.pt").exists)
    assert run.send(signal.SIGKILL).code == -signal.SIGKILL
    assert read_json(cli.folder / "run" / "result.json")["status"] == "running"
    assert "resumed at step" in cli(*same).out
    assert_same_run(cli.folder, undisturbed)


def test_a_signal_stops_it_in_order_and_not_a_step_is_lost(
    forked: Forked, same: list[str], undisturbed: Path
) -> None:
    folder = forked.folder / "run"
    for number, code in ((signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        checkpoint = folder / "checkpoints" / "last.pt"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        run = forked.start(*same)
        run.until(lambda b=before: checkpoint.exists() and checkpoint.stat().st_mtime_ns > b)  # type: ignore[misc]
        outcome = run.send(number)
        assert outcome.code == code, outcome.text
        assert "Traceback" not in outcome.text
        assert "the same command goes on from there" in outcome.out
        result = read_json(folder / "result.json")
        assert result["status"] == "interrupted"
        assert number.name in result["error"]
        assert load_checkpoint(checkpoint)["state"]["step"] == result["steps"] < STEPS
        assert not (folder / "student.safetensors").exists()
    assert f"resumed at step {result['steps']} of {STEPS}" in finish(forked.start(*same))
    assert_same_run(forked.folder, undisturbed)


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once_and_loses_little(
    forked: Forked, same: list[str], undisturbed: Path
) -> None:
    run = forked.start(*same)
    run.until((forked.folder / "run" / "checkpoints" / "last.pt").exists)
    os.kill(run.pid, signal.SIGINT)
    outcome = run.send(signal.SIGINT)
    assert outcome.code in (-signal.SIGINT, 130), outcome.text
    assert "Traceback" not in outcome.text
    assert "resumed at step" in finish(forked.start(*same))
    assert_same_run(forked.folder, undisturbed)


# ------------------------------------------------------------------------------ damaged checkpoints


@pytest.fixture
def checkpoints(forked: Forked, same: list[str]) -> list[Path]:
    """The newest checkpoint of a run that was killed, and the one before it."""
    files = [forked.folder / "run" / "checkpoints" / name for name in ("last.pt", "previous.pt")]
    run = forked.start(*same)
    run.until(files[1].exists)
    run.kill()
    return files


def damage(path: Path) -> None:
    """Change one byte in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(
    forked: Forked, same: list[str], checkpoints: list[Path], undisturbed: Path
) -> None:
    damage(checkpoints[0])
    out = finish(forked.start(*same))
    assert f"{checkpoints[0]} can't be read as a checkpoint" in out
    assert "goes on from the checkpoint before it" in out
    assert "resumed at step" in out
    assert checkpoints[0].with_name("damaged.pt").exists()
    assert_same_run(forked.folder, undisturbed)


def test_two_damaged_checkpoints_are_named_and_not_deleted(
    forked: Forked, same: list[str], checkpoints: list[Path]
) -> None:
    for path in checkpoints:
        damage(path)
    before = [path.read_bytes() for path in checkpoints]
    refused(forked.start(*same), *map(str, checkpoints), "force=true", "nothing was deleted")
    assert [path.read_bytes() for path in checkpoints] == before
    assert read_json(forked.folder / "run" / "result.json")["status"] == "failed"


# ---------------------------------------------------------------------------------- other inputs


def test_a_run_does_not_go_on_with_other_images(
    forked: Forked, same: list[str], checkpoints: list[Path]
) -> None:
    path = forked.folder / "run" / "config.json"  # as if the same settings read other images now
    path.write_text(path.read_text().replace('"train_images": 240', '"train_images": 224'))
    other = [argument.replace("train_images=240", "train_images=224") for argument in same]
    message = refused(forked.start(*other), "data_fingerprint", "ood/train", "force=true")
    assert "teacher_fingerprint" not in message


@pytest.mark.slow
def test_stopped_while_it_trains_its_teacher(cli: Cli, tiny: Tiny, teacher: Path) -> None:
    images = [*tiny.source("dataset"), *tiny.source("ood", images=32)]
    recipe = "dataset.recipe={epochs: 6, batch_size: 48, lr: 0.05, weight_decay: 5e-4}"
    same = ["experiment=quickstart_kd", "tracker=none", "train.epochs=1", "train.batch_size=16",
            *images, recipe, "hydra.run.dir=run"]  # fmt: skip
    training = cli.folder / "checkpoints" / "letters" / "wrn16_2-training"
    run = cli.start(*same)
    run.until((training / "metrics.jsonl").exists)
    outcome = run.send(signal.SIGTERM)
    assert outcome.code == 143, outcome.text
    assert read_json(training / "result.json")["status"] == "interrupted"
    assert read_json(cli.folder / "run" / "result.json")["status"] == "interrupted"
    assert not (training.parent / "wrn16_2.safetensors").exists()
    assert "resumed at step" in cli(*same).out
    ours = load_file(training.parent / "wrn16_2.safetensors")
    theirs = load_file(teacher)  # of the same recipe, never stopped
    assert all(ours[key].equal(theirs[key]) for key in theirs)
    assert read_json(cli.folder / "run" / "result.json")["status"] == "finished"
