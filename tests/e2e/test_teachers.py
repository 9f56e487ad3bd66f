"""Teachers: trained once, found again, and not taken for what they aren't."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Cli, Tiny, metrics, read_json
from safetensors.torch import load_file, save_file

RECIPE = "dataset.recipe={epochs: 2, batch_size: 48, lr: 0.05, weight_decay: 5e-4}"


@pytest.fixture
def whole_kd(tiny: Tiny) -> list[str]:
    """One epoch of distillation, not cut short: its teacher is one for everybody."""
    sources = [*tiny.source("dataset"), *tiny.source("ood", images=32)]
    cell = ["experiment=quickstart_kd", "tracker=none", "train.epochs=1", "train.batch_size=16"]
    return [*cell, *sources, RECIPE]


@pytest.fixture
def filed(cli: Cli, teacher: Path) -> Path:
    """The shared teacher, copied to where runs in this test look for it, with its record."""
    home = cli.folder / "checkpoints" / "letters"
    home.mkdir(parents=True)
    for path in (teacher, teacher.with_suffix(".json")):
        shutil.copy(path, home)
    return home / teacher.name


@pytest.mark.slow
def test_two_runs_that_miss_the_same_teacher_train_it_once(cli: Cli, whole_kd: list[str]) -> None:
    both = [cli.start(*whole_kd, f"seed={seed}", f"hydra.run.dir=run{seed}") for seed in (1, 2)]
    ended = [run.wait() for run in both]
    assert [outcome.code for outcome in ended] == [0, 0], ended[0].text + ended[1].text
    trained = [outcome for outcome in ended if "training it first" in outcome.out]
    assert len(trained) == 1
    home = cli.folder / "checkpoints" / "letters"
    steps = [line["step"] for line in metrics(home / "wrn16_2-training") if "accuracy/top1" in line]
    assert steps == [5, 10]
    record = read_json(home / "wrn16_2.json")
    assert record["recipe"]["train"]["epochs"] == 2
    results = [read_json(cli.folder / f"run{seed}" / "result.json") for seed in (1, 2)]
    assert [r["teacher_accuracy"] for r in results] == [record["accuracy"]] * 2

    outcome = cli(*whole_kd, "seed=3")
    assert "training it first" not in outcome.out
    assert f"teacher {Path('checkpoints/letters/wrn16_2.safetensors')}" in outcome.out


def test_a_missing_teacher_is_an_error_if_so_asked(cli: Cli, whole_kd: list[str]) -> None:
    outcome = cli(*whole_kd, "teacher_missing=error", code=1)
    assert "checkpoints/letters/wrn16_2.safetensors" in outcome.err
    assert "teacher.checkpoint" in outcome.err
    assert not (cli.folder / "checkpoints").exists()


def test_a_teacher_of_another_recipe_is_refused(cli: Cli, whole_kd: list[str], filed: Path) -> None:
    outcome = cli(*whole_kd, "dataset.recipe.lr=0.3", code=1)
    assert str(filed.relative_to(cli.folder)) in outcome.err
    assert "players.student.optimizer.lr: 0.05 -> 0.3" in outcome.err
    assert "teachers_dir" in outcome.err


def test_a_teacher_below_its_record_is_refused(cli: Cli, whole_kd: list[str], filed: Path) -> None:
    path = filed.with_suffix(".json")
    record = read_json(path) | {"accuracy": 99.5}
    del record["recipe"]
    path.write_text(json.dumps(record))
    outcome = cli(*whole_kd, code=1)
    assert str(filed.relative_to(cli.folder)) in outcome.err
    assert "99.50 %" in outcome.err


@pytest.mark.slow
def test_other_weights_than_the_record_describes_are_refused(
    cli: Cli, whole_kd: list[str], filed: Path
) -> None:
    path = filed.with_suffix(".json")
    path.write_text(json.dumps(read_json(path) | {"sha256": "0" * 64}))
    outcome = cli(*whole_kd, code=1)
    assert str(filed.relative_to(cli.folder)) in outcome.err
    assert path.name in outcome.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        pytest.param(["teacher=wrn40_2"], "architecture", marks=pytest.mark.slow),
        (["dataset.classes=[0,1,2]"], "24 classes"),
    ],
)
def test_weights_of_another_network_are_refused(
    cli: Cli, tiny: Tiny, overrides: list[str], said: str
) -> None:
    outcome = cli(*tiny.mosaic("train.steps=2", *overrides), code=1)
    assert str(tiny.teacher) in outcome.err
    assert said in outcome.err


@pytest.mark.slow
def test_a_damaged_file_is_named(cli: Cli, tiny: Tiny, filed: Path) -> None:
    content = filed.read_bytes()
    filed.write_bytes(content[: len(content) // 2])
    outcome = cli(*tiny.mosaic("train.steps=2", f"teacher.checkpoint={filed}"), code=1)
    assert str(filed) in outcome.err


def test_a_teacher_that_predicts_nothing_finite_is_refused(cli: Cli, tiny: Tiny) -> None:
    """Finite weights, and a variance that no batch has."""
    assert tiny.teacher
    weights = load_file(tiny.teacher)
    name = next(name for name in weights if name.endswith("running_var"))
    save_file(weights | {name: -weights[name] - 1}, cli.folder / "odd.safetensors")
    odd = ["teacher.checkpoint=odd.safetensors", "hydra.run.dir=run", "train.steps=2"]
    outcome = cli(*tiny.distil("kd", *odd), code=1)
    assert "predicts values that are not finite" in outcome.err
