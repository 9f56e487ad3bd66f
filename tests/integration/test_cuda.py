"""The same game on CUDA: eager, compiled, captured; resumed bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

RUN = Path(__file__).resolve().parents[2] / "run.py"
TINY = ["experiment=quickstart", "tracker=none", "train.batch_size=32", "train.steps=12"]


def run(folder: Path, *overrides: str) -> dict[str, object]:
    command = [sys.executable, str(RUN), *TINY, f"hydra.run.dir={folder}", *overrides]
    subprocess.run(command, check=True, cwd=folder.parent)
    result: dict[str, object] = json.loads((folder / "result.json").read_text())
    return result


@pytest.mark.parametrize(
    "overrides",
    [[], ["train.compile=true"], ["train.cuda_graph=true"], ["train.precision=fp32"]],
    ids=["eager", "compiled", "graph", "fp32"],
)
@pytest.mark.parametrize("method", ["mosaic", "kd"])
def test_runs_on_cuda(tmp_path: Path, method: str, overrides: list[str]) -> None:
    experiment = [] if method == "mosaic" else ["experiment=quickstart_kd"]
    result = run(tmp_path / "run", *experiment, *overrides)
    assert result["status"] == "finished"
    assert torch.cuda.get_device_name() in str(result["device"])


def test_a_captured_iteration_computes_what_an_eager_one_does(tmp_path: Path) -> None:
    settings = ["train.precision=fp32", "train.deterministic=true", "train.log_every=1"]
    run(tmp_path / "eager", *settings)
    run(tmp_path / "graph", *settings, "train.cuda_graph=true")
    losses = [
        [json.loads(line).get("losses") for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("eager", "graph")
    ]
    for eager, graph in zip(*losses, strict=True):
        if eager is not None:
            assert graph == pytest.approx(eager, rel=2e-2)


def test_deterministic_runs_repeat(tmp_path: Path) -> None:
    weights = []
    for name in ("one", "two"):
        run(tmp_path / name, "train.deterministic=true")
        weights.append(load_file(tmp_path / name / "student.safetensors"))
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
