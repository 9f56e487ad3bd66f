"""The quickstart, cut short: what a newcomer finds when it has ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli, Outcome, Tiny, losses, metrics, read_json
from PIL import Image
from safetensors.torch import load_file

from mosaickd.models.wresnet import WideResNet

FIELDS = {
    *("processes", "memory_mb", "total_steps"),
    "status", "method", "dataset", "ood", "ood_subset", "teacher", "student", "seed", "variant",
    "accuracy", "teacher_accuracy", "steps", "seconds", "seconds_per_step", "device", "versions",
    "config_hash", "code", "data_fingerprint", "teacher_fingerprint", "broken_images", "error",
}  # fmt: skip


@pytest.fixture(scope="module")
def quickstart(shared_cli: Cli, tiny: Tiny) -> tuple[Outcome, Path]:
    """Six steps; trains its own teacher, also cut short."""
    images = [*tiny.source("dataset"), *tiny.source("ood")]
    outcome = shared_cli(
        "experiment=quickstart", "tracker=none", *images, "train.batch_size=16", "train.steps=6",
        "train.eval_every=3", "train.log_every=2", "teachers_dir=none_here",
    )  # fmt: skip
    return outcome, (
        shared_cli.folder / "outputs/mosaic/letters-strokes/wrn16_2-wrn16_1/seed0"
    )  # where a user looks for it


def test_result_says_what_was_run_and_what_came_out(quickstart: tuple[Outcome, Path]) -> None:
    result = read_json(quickstart[1] / "result.json")
    assert set(result) == FIELDS
    expected = {
        "status": "finished", "method": "mosaic", "dataset": "letters", "ood": "strokes",
        "ood_subset": False,
        "teacher": "wrn16_2", "student": "wrn16_1", "seed": 0, "steps": 6, "error": None,
    }  # fmt: skip
    assert {key: result[key] for key in expected} == expected
    assert "experiment=quickstart" in result["variant"].split(", ")
    accuracy = result["accuracy"]
    assert set(accuracy) == {"last", "best", "best_step", "top5_last"}
    assert 0 <= accuracy["last"] <= accuracy["best"] <= 100
    assert accuracy["last"] <= accuracy["top5_last"] <= 100
    assert accuracy["best_step"] in (3, 6)
    assert 0 <= result["teacher_accuracy"] <= 100
    assert result["seconds"] == pytest.approx(6 * result["seconds_per_step"], abs=0.01)
    assert "threads" in result["device"]
    assert result["versions"]["torch"]
    assert len(result["config_hash"]) == 12


def test_folder_holds_all_that_a_run_leaves(quickstart: tuple[Outcome, Path]) -> None:
    folder = quickstart[1]
    for step in (3, 6):
        with Image.open(folder / "samples" / f"step{step:07d}.png") as picture:
            picture.load()
            assert picture.width > picture.height > 600  # two grids of 10 x 10, side by side
            assert len(picture.convert("L").getcolors() or []) > 10
    student = WideResNet(num_classes=24, depth=16, widen_factor=1)
    student.load_state_dict(load_file(folder / "student.safetensors"))
    student.load_state_dict(load_file(folder / "checkpoints" / "best.safetensors"))
    assert (folder / "checkpoints" / "last.pt").stat().st_size > 100_000
    assert (folder / ".hydra" / "config.yaml").exists()
    assert "finished" in read_json(folder / "result.json")["status"]
    hidden = [p.name for p in folder.rglob(".*") if p.name != ".hydra"]
    assert not hidden, "temporary files were left behind"


def test_metrics_have_a_line_a_log_and_a_line_an_evaluation(
    quickstart: tuple[Outcome, Path],
) -> None:
    lines = metrics(quickstart[1])
    assert [line["step"] for line in lines if losses(line)] == [1, 2, 3, 4, 6]
    assert [line["step"] for line in lines if "accuracy/top1" in line] == [3, 6]
    assert (
        lines[-1]["accuracy/top1"] == read_json(quickstart[1] / "result.json")["accuracy"]["last"]
    )
    first = lines[0]
    assert set(losses(first)) == {
        "discriminator/fake", "discriminator/real", "generator/local", "generator/align",
        "generator/adv", "generator/balance", "student/kd",
    }  # fmt: skip
    assert first["weighted/generator/balance"] == pytest.approx(
        10 * losses(first)["generator/balance"]
    )
    assert first["lr/student"] > 0
    assert first["speed/images_per_second"] > 0
    assert first["memory/peak_mb"] > 10


def test_terminal_output_is_readable_without_a_terminal(quickstart: tuple[Outcome, Path]) -> None:
    outcome, folder = quickstart
    assert outcome.err == ""
    assert "\r" not in outcome.out
    assert "\x1b" not in outcome.out
    evaluations = [line for line in outcome.out.splitlines() if line.startswith("mosaic:")]
    assert len([line for line in evaluations if "step 3/6" in line]) == 1
    assert len([line for line in evaluations if "step 6/6" in line]) == 1
    for words in ("teacher wrn16_2", "student wrn16_1", "from labelled letters", "strokes"):
        assert words in outcome.out
    assert str(folder / "student.safetensors") in outcome.out


def test_a_cut_teacher_is_nobody_elses(quickstart: tuple[Outcome, Path]) -> None:
    folder = quickstart[1]
    record = read_json(folder / "teacher" / "wrn16_2.json")
    assert record["accuracy"] == read_json(folder / "result.json")["teacher_accuracy"]
    assert not list(folder.parents[4].glob("none_here/**/*.safetensors"))


def test_what_is_written_is_strict_json(quickstart: tuple[Outcome, Path]) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    paths = [*quickstart[1].rglob("*.json"), *quickstart[1].rglob("*.jsonl")]
    assert {"result.json", "config.json", "metrics.jsonl"} <= {path.name for path in paths}
    for path in paths:
        texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        for text in texts:
            json.loads(text, parse_constant=refuse)
