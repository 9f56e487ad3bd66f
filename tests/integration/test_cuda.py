"""Training on CUDA: eager, compiled, captured; resumed bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import losses
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

RUN = Path(__file__).resolve().parents[2] / "run.py"
TINY = ["tracker=none", "train.batch_size=32"]
LONG = ["experiment=quickstart", "train.steps=12"]
#: What makes a run of each method that has all of its phases in three iterations.
METHODS = {
    "mosaic": ["experiment=quickstart"],
    "kd": ["experiment=quickstart_kd"],
    "scratch": ["dataset=letters", "student=wrn16_1", "method=scratch"],
    "deepinv": [
        "experiment=quickstart_kd", "method=deepinv", "method.inversion_steps=2",
        "method.student_steps=1",
    ],
    "sskd": ["experiment=quickstart_kd", "method=sskd", "method.head_fraction=0.34"],
    **{
        name: ["experiment=quickstart_kd", f"method={name}"]
        for name in ("dfq", "dafl", "zskt", "balanced", "fitnet", "rkd", "crd")
    },
}  # fmt: skip
CAPTURABLE = sorted(METHODS.keys() - {"deepinv", "sskd"})


def run(folder: Path, *overrides: str) -> dict[str, object]:
    command = [sys.executable, str(RUN), *TINY, f"hydra.run.dir={folder}", *overrides]
    subprocess.run(command, check=True, cwd=folder.parent)
    result: dict[str, object] = json.loads((folder / "result.json").read_text())
    return result


def rates(line: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in line.items() if k.startswith("lr/")}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_on_cuda(tmp_path: Path, method: str) -> None:
    result = run(tmp_path / "run", *METHODS[method], "train.steps=3")
    assert result["status"] == "finished"
    assert torch.cuda.get_device_name() in str(result["device"])


@pytest.mark.parametrize("method", CAPTURABLE)
def test_each_method_whose_iterations_are_alike_is_captured(tmp_path: Path, method: str) -> None:
    """Three iterations before, one to capture, two to replay."""
    settings = ["train.steps=6", "train.log_every=1", "train.cuda_graph=true"]
    result = run(tmp_path / "run", *METHODS[method], *settings)
    assert result["status"] == "finished"
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").open())
    outputs = [losses(line) for line in lines if losses(line)]
    assert len(outputs) == 6
    assert outputs[4] != outputs[5], "a replay is a new iteration, not the same again"


@pytest.mark.parametrize("method", sorted(METHODS.keys() - set(CAPTURABLE)))
def test_a_method_in_phases_is_not_captured_and_says_so(tmp_path: Path, method: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run(tmp_path / "run", *METHODS[method], "train.steps=6", "train.cuda_graph=true")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "not all alike" in result["error"]


@pytest.mark.parametrize(
    "overrides", [["train.compile=true"], ["train.precision=fp32"]], ids=["compiled", "fp32"]
)
@pytest.mark.parametrize("method", ["mosaic", "kd", "dfq", "zskt"])
def test_runs_compiled_and_in_float32(tmp_path: Path, method: str, overrides: list[str]) -> None:
    result = run(tmp_path / "run", *METHODS[method], "train.steps=3", *overrides)
    assert result["status"] == "finished"


def test_a_captured_iteration_computes_what_an_eager_one_does(tmp_path: Path) -> None:
    settings = [*LONG, "train.precision=fp32", "train.deterministic=true", "train.log_every=1"]
    run(tmp_path / "eager", *settings)
    run(tmp_path / "graph", *settings, "train.cuda_graph=true")
    outputs = [
        [losses(json.loads(line)) or None for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("eager", "graph")
    ]
    for eager, graph in zip(*outputs, strict=True):
        if eager is not None:
            assert graph == pytest.approx(eager, rel=2e-2)


@pytest.mark.parametrize("overrides", [[], ["train.cuda_graph=true"]], ids=["eager", "graph"])
def test_a_killed_run_goes_on(tmp_path: Path, overrides: list[str]) -> None:
    """Learning rates, random numbers and loaders come back to the device as they were."""
    settings = [*LONG, "train.deterministic=true", "train.checkpoint_every=4", *overrides]
    run(tmp_path / "whole", *settings)
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.pt"
    command = [sys.executable, str(RUN), *TINY, f"hydra.run.dir={tmp_path / 'killed'}", *settings]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    run(tmp_path / "killed", *settings)
    last = [
        [line for line in map(json.loads, (tmp_path / name / "metrics.jsonl").open())][-2:]
        for name in ("whole", "killed")
    ]
    for whole, killed in zip(*last, strict=True):
        assert rates(killed) == pytest.approx(rates(whole))
    if not overrides:  # a graph's warm-up iterations are eager: other kernels, other rounding
        weights = [load_file(tmp_path / n / "student.safetensors") for n in ("whole", "killed")]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_deterministic_runs_repeat(tmp_path: Path) -> None:
    weights = []
    for name in ("one", "two"):
        run(tmp_path / name, *LONG, "train.deterministic=true")
        weights.append(load_file(tmp_path / name / "student.safetensors"))
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
