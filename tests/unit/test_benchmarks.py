"""The benchmarks run, count and compare; how long anything takes is not tested."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cost, pipeline, profile, scaling, step
from benchmarks.harness import compose_config
from benchmarks.reference import ReferenceLoaders, reference_iteration
from benchmarks.roofline import OperatorCost, OperatorCounter, add_up, size_of
from benchmarks.workload import Workload, random_data
from mosaickd.errors import UserError

REPO = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TINY = ["experiment=quickstart", "train.batch_size=8", "train.precision=fp32", "device=cpu"]
QUICK = ["--iterations", "1", "--images", "64"]


def run(monkeypatch: pytest.MonkeyPatch, command: ModuleType, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [command.__name__, *arguments])
    command.main()


def only(counter: OperatorCounter, name: str) -> OperatorCost:
    (cost,) = [cost for cost in counter.current if cost.name == name]
    return cost


# ---------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize(
    ("command", "arguments", "measures"),
    [
        (step, ["--warmup", "1", "--reference-style", "--modes", "eager"], ["eager", "reference"]),
        pytest.param(profile, [], ["eager"], marks=pytest.mark.slow),
        (pipeline, ["--test-images", "8", "--parts", "loader", "evaluation"],
         ["evaluation: 8 images", "loader: a batch, augmented", "loader: a batch, plain",
          "loader: an iteration's draw", "loader: an iteration's images"]),
        (pipeline, ["--parts", "checkpoint"], None),
    ],
)  # fmt: skip
def test_a_command_prints_a_table_and_then_one_json_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: ModuleType,
    arguments: list[str],
    measures: list[str] | None,
) -> None:
    file = tmp_path / "result.json"
    run(monkeypatch, command, *QUICK, "--json", str(file), *arguments, *TINY)
    record = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert record == json.loads(file.read_text())
    assert measures is None or sorted(record["measures"]) == measures
    assert min(record["measures"].values()) > 0
    assert {"benchmark", "device", "versions", "overrides"} <= record.keys()
    if command is step:
        assert record["mode"] == "eager"
        assert record["by_turn"].keys() == {"images", "discriminator", "generator", "student"}
        for key in ("seconds_per_iteration", "images_per_second", "reference_style_seconds",
                    "ratio", "flops_per_second", "share_of_peak", "share_of_floor"):  # fmt: skip
            assert record[key] == record["modes"]["eager"][key] > 0
        assert record["reference"]["loader"] == "4 workers a stream"
        assert record["work"]["reference"]["flops"] > record["work"]["ours"]["flops"] > 0
        assert not multiprocessing.active_children()


def test_cost_counts_as_an_iteration_does_and_compares_with_a_baseline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "before.log"
    path.write_text(f"a table\n{json.dumps({'measures': {'kd': 1.0}, 'device': 'another'})}\n")
    overrides = ["experiment=quickstart_kd", *TINY[1:]]
    run(monkeypatch, cost, "--baseline", str(path), "--classes", "24", *overrides)
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    counted = record["rows"]["kd"]
    turns = Workload(compose_config(overrides), "eager", tiny_data()).count_operators().turns
    work = add_up(turns, peak=1e9, bandwidth=1e9)
    assert counted["flops_by_turn"] == work.flops_by_turn
    assert counted["bytes"] == pytest.approx(work.bytes, rel=0.1), "but for optimizers' steps"
    assert record["baseline"]["ratios"] == {"kd": pytest.approx(1 / counted["floor"])}
    assert any("device was another" in each for each in record["baseline"]["differences"])


def test_a_whole_iteration_has_the_flops_that_torch_counts() -> None:
    workload = Workload(compose_config(TINY), "eager", tiny_data())
    with FlopCounterMode(display=False) as torchs:
        workload.step()
    work = add_up(workload.count_operators().turns, peak=1e9, bandwidth=1e9)
    assert work.flops == torchs.get_total_flops() == sum(work.flops_by_turn.values())
    assert work.flops_by_turn.keys() == {"images", "discriminator", "generator", "student"}
    assert 0 < work.fused_bytes < work.bytes


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (step, ["--modes", "fast"], "'fast' is unknown"),
        (step, ["--modes", "graph"], "need a CUDA device"),
        (step, ["--baseline", __file__], "holds no result"),
        (scaling, ["--processes", "0"], "numbers from 1"),
        (scaling, ["--steps", "5"], "three times --log-every"),
    ],
)
def test_a_command_refuses_what_cannot_be(
    monkeypatch: pytest.MonkeyPatch, command: ModuleType, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, command, *arguments, *TINY)


def run_process(*command: str) -> str:
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHON": sys.executable}
    done = subprocess.run(
        command, cwd=REPO, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_scaling_times_runs() -> None:
    options = ["--processes", "1", "2", "--steps", "6", "--log-every", "2"]
    command = [sys.executable, "-m", "benchmarks.scaling", *options]
    output = run_process(*command, "train.batch_size=8", "device=cpu")
    one, two = json.loads(output.splitlines()[-1])["rows"]
    assert one["efficiency"] == 1.0
    assert two["all_reduce_seconds"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cuda_script_passes_its_rehearsal(tmp_path: Path) -> None:
    run_process("bash", "benchmarks/cuda.sh", str(tmp_path), "--rehearse")
    assert "all parts passed" in (tmp_path / "summary.txt").read_text()
    files = {path.name for path in tmp_path.iterdir()}
    assert {"step.json", "compiled.json", "profile.json", "pipeline.json", "tests.log"} <= files


# ------------------------------------------------------------------------------------- the counts


def test_the_cost_of_a_convolution_is_that_counted_by_hand() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    images = torch.randn(2, 3, 16, 16)
    with OperatorCounter() as forward:
        output = layer(images)
    with OperatorCounter() as backward:  # images ask for no gradient: only the weights do
        output.backward(torch.ones_like(output))
    flops = 2 * 2 * 8 * 16 * 16 * 3 * 3 * 3  # each output pixel: 3 channels of 3x3
    bytes_ = 4 * (2 * 3 * 16 * 16 + 8 * 3 * 3 * 3 + 2 * 8 * 16 * 16)
    for counter, name in ((forward, "convolution"), (backward, "convolution_backward")):
        assert only(counter, name) == OperatorCost(name, flops, bytes_, bytes_)


def test_the_cost_of_other_operators() -> None:
    x, images, norm = torch.randn(10, 10), torch.randn(2, 4, 8, 8), nn.BatchNorm2d(4)
    pixels, chosen = torch.zeros(1000, 3, dtype=torch.uint8), torch.tensor([1, 2])
    with OperatorCounter() as counter:
        x.relu().t().add_(1.0)  # the transposed view is free
        pixels[chosen]  # read, written, two int64 that say which
        norm(images)
        norm.eval()(images)
    relu, add, index = only(counter, "relu"), counter.current[1], only(counter, "index")
    assert (relu.bytes, add.bytes, index.bytes) == (800, 800, 6 + 6 + 16)
    assert relu.fused_bytes == add.fused_bytes == relu.flops == 0
    training, evaluating = [cost for cost in counter.current if "batch_norm" in cost.name]
    assert training.fused_bytes == size_of(images), "statistics are a pass of their own"
    assert training.bytes >= 3 * size_of(images)
    assert evaluating.fused_bytes == 0
    assert size_of(torch.zeros(1, 5).expand(100, 5)) == 20, "an expanded tensor exists once"


def test_the_floor_adds_up_what_bounds_each_operator() -> None:
    turns = {"turn": [OperatorCost("mm", 100, 10, 10), OperatorCost("relu", 0, 30, 0)]}
    work = add_up(turns, peak=10.0, bandwidth=2.0)
    assert (work.floor, work.fused_floor) == (100 / 10 + 30 / 2, 100 / 10)


# ---------------------------------------------------------------------------------- the reference


def tiny_data(images: int = 16) -> Any:
    return random_data(compose_config(TINY), images, 24, CPU)


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_the_references_loaders_give_normalised_batches(workers: int | None) -> None:
    cfg, data = compose_config(TINY), tiny_data(32)
    data.train.images.fill_(255)  # white: normalised with 0.5 and 0.5 it is 1
    loaders = ReferenceLoaders(cfg, Workload(cfg, "eager", data).method, data, CPU, workers)
    try:
        for _ in range(5):  # 32 images are four batches: another epoch begins
            with loaders.running():
                real, student = loaders("real"), loaders("student")
        assert len(multiprocessing.active_children()) == 2 * (workers or 0)
    finally:
        loaders.close()
    assert real.shape == student.shape == (8, 3, 16, 16)
    assert (real == 1).all(), "not augmented"
    assert {-1.0, 1.0} == {*student.unique().tolist()}, "cropped out of black borders"
    assert not multiprocessing.active_children()


def test_the_reference_plays_all_its_turns_and_only_the_teacher_stays() -> None:
    method: Any = Workload(compose_config(TINY), "eager", tiny_data()).method
    networks = {**method.players, "teacher": method.teacher}
    before = {n: [p.clone() for p in net.parameters()] for n, net in networks.items()}
    streams: list[str] = []

    def next_images(name: str) -> Tensor:
        streams.append(name)
        return torch.randn(8, 3, 16, 16)

    reference_iteration(method)(next_images)
    assert streams == ["real", *["student"] * 5]
    for name, network in networks.items():
        pairs = zip(before[name], network.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs) == (name == "teacher")
    assert all(p.grad is not None for p in method.teacher.parameters()), "it collects gradients"
