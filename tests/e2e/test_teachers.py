"""Teachers: trained once, found again, and not taken for what they aren't."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Cli, Tiny, metrics, read_json
from safetensors.torch import load_file, save_file


@pytest.fixture
def whole_kd(tiny: Tiny) -> list[str]:
    """One epoch of distillation, not cut short: its teacher is one for everybody."""
    return [
        "experiment=quickstart_kd", "tracker=none", "train.epochs=1", "train.batch_size=16",
        *tiny.source("dataset"), *tiny.source("ood", images=32),
        "dataset.recipe={epochs: 2, batch_size: 48, lr: 0.05, weight_decay: 5e-4}",
    ]  # fmt: skip


@pytest.fixture
def installed(cli: Cli, teacher: Path) -> Path:
    """The shared teacher, copied to where runs in this test look for it, with its record."""
    home = cli.folder / "checkpoints" / "letters"
    home.mkdir(parents=True)
    for path in (teacher, teacher.with_suffix(".json")):
        shutil.copy(path, home)
    return home / teacher.name


def test_a_missing_teacher_is_trained_once_and_found_again(cli: Cli, whole_kd: list[str]) -> None:
    """(By many at once: test_contention.py.)"""
    home = cli.folder / "checkpoints" / "letters"
    outcome = cli(*whole_kd, "teacher_missing=error", code=1)
    assert "checkpoints/letters/wrn16_2.safetensors" in outcome.err
    assert "teacher.checkpoint" in outcome.err
    assert not home.exists()

    assert "training it first" in cli(*whole_kd, "hydra.run.dir=run").out
    steps = [line["step"] for line in metrics(home / "wrn16_2-training") if "accuracy/top1" in line]
    assert steps == [5, 10]
    record = read_json(home / "wrn16_2.json")
    assert record["recipe"]["train"]["epochs"] == 2
    assert read_json(cli.folder / "run" / "result.json")["teacher_accuracy"] == record["accuracy"]

    outcome = cli(*whole_kd, "seed=1")
    assert "training it first" not in outcome.out
    assert f"teacher {Path('checkpoints/letters/wrn16_2.safetensors')}" in outcome.out


def change_record(path: Path, **changes: object) -> None:
    record = path.with_suffix(".json")
    content = read_json(record) | changes
    record.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def ruin_variance(path: Path) -> None:
    """Finite weights, and a variance that no batch has."""
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("running_var"))
    save_file(weights | {name: -weights[name] - 1}, path)
    change_record(path, sha256=None, recipe=None)


@pytest.mark.parametrize(
    ("change", "overrides", "words"),
    [
        (None, ["dataset.recipe={epochs: 6, batch_size: 48, lr: 0.3, weight_decay: 5e-4}"],
         ["players.student.optimizer.lr: 0.05 -> 0.3", "teachers_dir"]),
        (lambda path: change_record(path, accuracy=99.5, recipe=None), [], ["99.50 %"]),
        (lambda path: change_record(path, sha256="0" * 64), [], ["wrn16_2.json"]),
        (cut, [], ["wrn16_2.safetensors"]),
        (ruin_variance, [], ["predicts values that are not finite"]),
        (None, ["teacher.checkpoint=${teachers_dir}/letters/wrn16_2.safetensors",
                "dataset.classes=[0,1,2]"], ["24 classes"]),
    ],
    ids=["other recipe", "below its record", "other weights", "damaged", "not finite", "classes"],
)  # fmt: skip
def test_a_teacher_that_is_not_the_one_that_was_meant_is_refused(
    cli: Cli,
    whole_kd: list[str],
    installed: Path,
    change: Callable[[Path], None] | None,
    overrides: list[str],
    words: list[str],
) -> None:
    if change:
        change(installed)
    outcome = cli(*whole_kd, *overrides, code=1)
    assert all(word in outcome.err for word in words), outcome.err
