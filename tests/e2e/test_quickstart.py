"""The quickstart sweep, cut short to its table: what a newcomer finds when it has ended."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import Cli, Outcome, Tiny, losses, metrics, read_json
from PIL import Image
from safetensors.torch import load_file

from mosaickd.models.wresnet import WideResNet
from mosaickd.run_dir import Result

JOBS = ["mosaic/letters-strokes", "kd/letters-strokes", "kd/letters-letters"]


@pytest.fixture(scope="module")
def quickstart(shared_cli: Cli, tiny: Tiny) -> tuple[Outcome, Path]:
    """`python run.py -m sweep=quickstart`, four steps a run, each with a teacher of its own."""
    # ++: Hydra first composes what all jobs share, and that has other readers than the letters'.
    images = [f"++{override}" for role in ("dataset", "ood") for override in tiny.source(role)]
    length = ["train.steps=4", "train.eval_every=2", "train.log_every=2", "train.batch_size=16",
              "++dataset.recipe.batch_size=16"]  # fmt: skip
    outcome = shared_cli("-m", "sweep=quickstart", *length, *images, "teachers_dir=none_here")
    return outcome, shared_cli.folder / "outputs" / "quickstart"


@pytest.fixture(scope="module")
def mosaic(quickstart: tuple[Outcome, Path]) -> Path:
    """The folder of its first run."""
    return quickstart[1] / JOBS[0] / "wrn16_2-wrn16_1" / "seed0"


def test_it_ends_with_a_table_of_all_runs(quickstart: tuple[Outcome, Path]) -> None:
    outcome, folder = quickstart
    assert outcome.err == ""
    assert "\r" not in outcome.out
    assert "\x1b" not in outcome.out
    evaluations = [line for line in outcome.out.splitlines() if line.startswith("mosaic:")]
    assert [step for line in evaluations for step in ("step 2/4", "step 4/4") if step in line] == [
        "step 2/4", "step 4/4",
    ]  # fmt: skip
    table = outcome.out[outcome.out.rindex("┏") :]
    rows = [line for line in table.splitlines() if line.startswith("│")]
    assert len(rows) == 4, "a teacher and three students, side by side"
    assert "teacher wrn16_2" in rows[0]
    for words in ("MosaicKD on strokes", "KD on strokes", "KD on letters"):
        assert words in table
    for job in JOBS:
        result = read_json(folder / job / "wrn16_2-wrn16_1" / "seed0" / "result.json")
        assert result["status"] == "finished"
        assert f"{result['accuracy']['last']:.2f} %" in table


def test_result_says_what_was_run_and_what_came_out(mosaic: Path) -> None:
    result = read_json(mosaic / "result.json")
    assert set(result) == {field.name for field in fields(Result)} - {"skipped"}
    expected = {
        "status": "finished", "method": "mosaic", "dataset": "letters", "ood": "strokes",
        "ood_subset": False, "teacher": "wrn16_2", "student": "wrn16_1", "seed": 0, "steps": 4,
        "total_steps": 4, "processes": 1, "error": None,
    }  # fmt: skip
    assert {key: result[key] for key in expected} == expected
    assert "experiment=quickstart" in result["variant"].split(", ")
    accuracy = result["accuracy"]
    assert set(accuracy) == {"last", "best", "best_step", "top5_last"}
    assert 0 <= accuracy["last"] <= accuracy["best"] <= 100
    assert accuracy["last"] <= accuracy["top5_last"] <= 100
    assert accuracy["best_step"] in (2, 4)
    assert 0 <= result["teacher_accuracy"] <= 100
    assert result["seconds"] == pytest.approx(4 * result["seconds_per_step"], abs=0.01)
    assert "threads" in result["device"]
    assert result["versions"]["torch"]


def test_result_and_checkpoint_say_where_they_come_from(mosaic: Path) -> None:
    import torch

    result = read_json(mosaic / "result.json")
    saved = torch.load(mosaic / "checkpoints" / "last.pt", weights_only=True)["provenance"]
    for key in ("config_hash", "code", "data_fingerprint", "teacher_fingerprint"):
        assert result[key], key
        assert saved[key] == result[key]
    assert set(result["code"]) == {"commit", "dirty"}
    assert set(result["data_fingerprint"]) == {"dataset/test", "ood/train"}


def test_folder_holds_all_that_a_run_leaves(mosaic: Path) -> None:
    for step in (2, 4):
        with Image.open(mosaic / "samples" / f"step{step:07d}.png") as picture:
            picture.load()
            assert picture.width > picture.height > 600  # two grids of 10 x 10, side by side
            assert len(picture.convert("L").getcolors() or []) > 10
    student = WideResNet(num_classes=24, depth=16, widen_factor=1)
    student.load_state_dict(load_file(mosaic / "student.safetensors"))
    student.load_state_dict(load_file(mosaic / "checkpoints" / "best.safetensors"))
    assert (mosaic / ".hydra" / "config.yaml").exists()
    hidden = [p.name for p in mosaic.rglob(".*") if p.name != ".hydra"]
    assert not hidden, "temporary files were left behind"


def test_metrics_have_a_line_a_log_and_a_line_an_evaluation(mosaic: Path) -> None:
    lines = metrics(mosaic)
    assert [line["step"] for line in lines if losses(line)] == [1, 2, 4]
    assert [line["step"] for line in lines if "accuracy/top1" in line] == [2, 4]
    assert lines[-1]["accuracy/top1"] == read_json(mosaic / "result.json")["accuracy"]["last"]
    first = lines[0]
    assert set(losses(first)) == {
        "discriminator/fake", "discriminator/real", "generator/local", "generator/align",
        "generator/adv", "generator/balance", "student/kd",
    }  # fmt: skip
    balance = losses(first)["generator/balance"]
    assert first["weighted/generator/balance"] == pytest.approx(10 * balance)
    assert first["lr/student"] > 0
    assert first["speed/images_per_second"] > 0
    assert first["memory/peak_mb"] > 10


def test_a_teacher_cut_short_is_nobody_elses(mosaic: Path, shared_cli: Cli) -> None:
    record = read_json(mosaic / "teacher" / "wrn16_2.json")
    assert record["accuracy"] == read_json(mosaic / "result.json")["teacher_accuracy"]
    assert not (shared_cli.folder / "none_here").exists()


def test_what_is_written_is_strict_json(quickstart: tuple[Outcome, Path]) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    paths = [*quickstart[1].rglob("*.json"), *quickstart[1].rglob("*.jsonl")]
    assert {"result.json", "config.json", "metrics.jsonl"} <= {path.name for path in paths}
    for path in paths:
        texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        for text in texts:
            json.loads(text, parse_constant=refuse)
