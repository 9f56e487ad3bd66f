"""Teacher and student of different families, for every method that compares what is inside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Tiny, losses, metrics, new_cli, read_json, stop
from safetensors.torch import load_file

from mosaickd.methods import display_name
from mosaickd.models.resnet import ResNet

pytestmark = pytest.mark.slow

METHODS = ["fitnet", "rkd", "crd", "sskd", "zskt"]
STEPS = 3
SMALL = [
    "dataset.recipe.batch_size=8", "student.blocks=[1,1,1,1]",
    "teacher.stages=[[8],[16],[16,16],[32,32],[32,32]]", "train.batch_size=8",
    f"train.steps={STEPS}",
]  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Any:
    """vgg11 to resnet18, both thinner than the paper's; each run cuts a teacher short."""
    cli = new_cli(tmp_path_factory.mktemp("families"))
    own = tiny.experiment(cli.folder, "teacher=vgg11", "student=resnet18", *SMALL)
    cli("-m", *own, f"method={','.join(METHODS)}", "hydra.sweep.dir=sweep", "train.log_every=1")
    yield cli
    stop(cli)


def folder_of(cli: Cli, method: str) -> Path:
    (path,) = (cli.folder / "sweep" / method).glob("*/vgg11-resnet18/seed0")
    return path


@pytest.mark.parametrize("method", METHODS)
def test_a_vgg_teaches_a_resnet(sweep: Cli, method: str) -> None:
    folder = folder_of(sweep, method)
    result = read_json(folder / "result.json")
    assert (result["status"], result["steps"]) == ("finished", STEPS)
    assert (result["teacher"], result["student"]) == ("vgg11", "resnet18")
    outputs = [losses(line) for line in metrics(folder) if losses(line)]
    assert len(outputs) == STEPS
    assert all(math.isfinite(value) for step in outputs for value in step.values())
    assert read_json(folder / "teacher" / "vgg11.json")["steps"] == STEPS
    student = ResNet(num_classes=24, blocks=[1, 1, 1, 1])
    student.load_state_dict(load_file(folder / "student.safetensors"))  # nothing but the student


def test_the_report_tells_how_the_runs_depart_from_the_paper(sweep: Cli) -> None:
    variant = ", ".join(sorted([*SMALL, "experiment=tiny"]))
    for method in METHODS:
        assert read_json(folder_of(sweep, method) / "result.json")["variant"] == variant
    shown = " ".join(sweep.report("sweep").split())
    assert "Table 1" not in shown
    assert variant in shown
    for method in map(display_name, METHODS):
        assert method in shown
