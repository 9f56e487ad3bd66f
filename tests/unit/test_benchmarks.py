"""The benchmarks count, compare and load what they say; how long anything takes is not tested."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cost, step
from benchmarks.harness import Baseline, compose_config, parse, parser
from benchmarks.reference_loader import ReferenceLoaders
from benchmarks.reference_style import reference_iteration
from benchmarks.roofline import Operation, Tally, size_of, work_of
from benchmarks.subject import Ours, random_images
from mosaickd.errors import UserError
from mosaickd.methods.base import Stream

REPO = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TINY = ["experiment=quickstart", "train.batch_size=8", "train.precision=fp32", "device=cpu"]


def only(tally: Tally, name: str) -> Operation:
    (found,) = [operation for operation in tally.operations if operation.name == name]
    return found


# ---------------------------------------------------------------------------------- the counts


def test_flops_and_traffic_of_a_convolution_are_those_counted_by_hand() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    images = torch.randn(2, 3, 16, 16)
    with Tally() as forward:
        output = layer(images)
    multiplications = 2 * 8 * 16 * 16 * 3 * 3 * 3  # each output pixel: 3 channels of 3x3
    convolution = only(forward, "convolution")
    assert convolution.flops == 2 * multiplications
    floats = 2 * 3 * 16 * 16 + 8 * 3 * 3 * 3 + 2 * 8 * 16 * 16
    assert convolution.bytes == convolution.fused_bytes == 4 * floats

    with Tally() as backward:  # images ask for no gradient: only that of the weights is computed
        output.backward(torch.ones_like(output))
    gradient = only(backward, "convolution_backward")
    assert gradient.flops == 2 * multiplications
    assert gradient.bytes == 4 * floats, "reads images and gradient, writes the weights' gradient"


@pytest.mark.slow
def test_work_without_computing_is_the_work_of_computing() -> None:
    cfg = compose_config(TINY)
    counted = cost.work(cfg, 24, 1e12, 1e11)
    images = random_images(cfg, 16, 24, CPU)
    computed = work_of(Ours(cfg, "eager", images).tally(), 1e12, 1e11)
    assert counted.flops == computed.flops > 0
    assert counted.flops_by_turn == computed.flops_by_turn
    assert counted.bytes == pytest.approx(computed.bytes, rel=0.1), "but for optimizers' steps"


def test_a_gradient_that_nobody_wants_is_not_counted() -> None:
    layer = nn.Conv2d(3, 8, 3, bias=False).requires_grad_(False)
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    output = layer(images)
    with Tally() as frozen:
        output.backward(torch.ones_like(output))
    floats = 2 * 8 * 6 * 6 + 8 * 3 * 3 * 3 + 2 * 3 * 8 * 8  # gradient, weights, images' gradient
    assert only(frozen, "convolution_backward").bytes == 4 * floats


def test_elementwise_operators_read_and_write_unless_fused() -> None:
    x = torch.randn(10, 10)
    with Tally() as tally:
        x.relu().t().add_(1.0)
    relu, add = tally.operations
    assert (relu.bytes, add.bytes) == (800, 800), "the transposed view in between is free"
    assert relu.fused_bytes == add.fused_bytes == relu.flops == 0


def test_what_is_picked_counts_not_what_it_is_picked_from() -> None:
    images, chosen = torch.zeros(1000, 3, dtype=torch.uint8), torch.tensor([1, 2])
    with Tally() as tally:
        images[chosen]
    assert only(tally, "index").bytes == 6 + 6 + 16  # read, written, two int64 that say which


@pytest.mark.parametrize("training", [True, False])
def test_the_statistics_of_a_training_batch_norm_are_a_pass_of_their_own(training: bool) -> None:
    norm, x = nn.BatchNorm2d(4).train(training), torch.randn(2, 4, 8, 8)
    with Tally() as tally:
        norm(x)
    found = only(tally, "native_batch_norm")
    assert found.fused_bytes == (size_of(x) if training else 0)
    assert found.bytes >= (3 if training else 2) * size_of(x)


def test_an_expanded_tensor_exists_once() -> None:
    assert size_of(torch.zeros(1, 5).expand(100, 5)) == 20
    assert size_of(torch.zeros(0, 5)) == 0


def test_a_whole_iteration_has_the_flops_that_torch_counts() -> None:
    """And every turn has some: the turns are told apart."""
    cfg = compose_config(TINY)
    ours = Ours(cfg, "eager", random_images(cfg, 16, 24, CPU))
    with FlopCounterMode(display=False) as torchs:
        ours.play()
    tally = ours.tally()
    work = work_of(tally, peak=1e9, bandwidth=1e9)
    assert work.flops == torchs.get_total_flops()
    assert work.flops_by_turn.keys() == {"images", "discriminator", "generator", "student"}
    assert work.flops_by_turn["images"] == 0
    assert sum(work.flops_by_turn.values()) == work.flops
    assert 0 < work.fused_bytes < work.bytes


def test_the_floor_adds_up_what_bounds_each_operator() -> None:
    tally = Tally()
    tally.turns["turn"] = [Operation("mm", 100, 10, 10), Operation("relu", 0, 30, 0)]
    work = work_of(tally, peak=10.0, bandwidth=2.0)
    assert work.floor == 100 / 10 + 30 / 2
    assert work.fused_floor == 100 / 10


# ------------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_the_references_loader_gives_normalised_batches(workers: int | None) -> None:
    cfg = compose_config(TINY)
    images = random_images(cfg, 32, 24, CPU)
    images.images.fill_(255)  # white: normalised with 0.5 and 0.5 it is 1
    streams = {"real": Stream("ood", False, "dataset"), "student": Stream("ood", True, "ood")}
    loaders = ReferenceLoaders(cfg, streams, images, CPU, workers)
    try:
        for _ in range(5):  # 32 images are four batches: another epoch begins
            real, student = loaders("real"), loaders("student")
        loaders.settle()
        assert loaders.settled
        assert len(multiprocessing.active_children()) == (2 * workers if workers else 0)
    finally:
        loaders.close()
    assert real.shape == student.shape == (8, 3, 16, 16)
    assert real.dtype == student.dtype == torch.float32
    assert (real == 1).all(), "not augmented"
    assert {-1.0, 1.0} == {*student.unique().tolist()}, "cropped out of black borders"
    assert not multiprocessing.active_children()


def test_the_references_loader_keeps_colours_and_places() -> None:
    cfg = compose_config(TINY)
    images = random_images(cfg, 8, 24, CPU)
    loaders = ReferenceLoaders(cfg, {"real": Stream("ood", False, "dataset")}, images, CPU, 0)

    def sort(pixels: Tensor) -> list[tuple[float, ...]]:
        return sorted(map(tuple, pixels.flatten(1).tolist()))

    expected = (images.images.float() / 255 - 0.5) / 0.5
    assert sort(loaders("real")) == [pytest.approx(row, abs=1e-6) for row in sort(expected)]


def test_a_batch_larger_than_the_random_images_is_refused() -> None:
    cfg = compose_config(TINY)
    with pytest.raises(UserError, match="--images"):
        ReferenceLoaders(cfg, {}, random_images(cfg, 4, 24, CPU), CPU)


def test_the_reference_plays_all_its_turns_and_only_the_teacher_stays() -> None:
    cfg = compose_config([*TINY, "train.channels_last=false"])
    images = random_images(cfg, 16, 24, CPU)
    method: Any = Ours(cfg, "eager", images).method
    networks = {**method.players, "teacher": method.teacher}
    before = {n: [p.clone() for p in net.parameters()] for n, net in networks.items()}
    asked: list[str] = []

    def following(name: str) -> Tensor:
        asked.append(name)
        return torch.randn(8, 3, 16, 16)

    reference_iteration(method)(following)
    assert asked == ["real", *["student"] * 5]
    for name, network in networks.items():
        pairs = zip(before[name], network.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs) == (name == "teacher")
    assert all(p.grad is not None for p in method.teacher.parameters()), "it collects gradients"


# -------------------------------------------------------------------------------- command line


def test_options_and_overrides_come_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "--modes eager compiled method=kd --iterations 3 train.batch_size=8"
    monkeypatch.setattr(sys, "argv", ["step", *line.split()])
    options = parser("")
    options.add_argument("--modes", nargs="+", default=[])
    options.add_argument("--iterations", type=int)
    arguments = parse(options)
    assert arguments.modes == ["eager", "compiled"]
    assert arguments.iterations == 3
    assert sorted(arguments.overrides) == ["method=kd", "train.batch_size=8"]


def test_a_baseline_is_compared_and_what_differs_is_told(tmp_path: Path) -> None:
    before = {"benchmark": "step", "device": "old", "versions": {"torch": "1"}, "overrides": []}
    path = tmp_path / "before.log"
    path.write_text("a table\n" + json.dumps(before | {"measures": {"eager": 3.0}}) + "\n")
    baseline = Baseline.read(path)
    assert baseline.ratio("eager", 1.5) == 2.0
    assert baseline.ratio("graph", 1.5) is None
    now = before | {"device": "new", "versions": {"torch": "1"}}
    assert baseline.differences(now) == ["device was old, is new"]


def test_a_result_without_measures_is_compared_by_its_modes(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"modes": {"eager": {"seconds_per_iteration": 1.0}}}))
    assert Baseline.read(path).measures == {"eager": 1.0}


@pytest.mark.parametrize("text", ["", "no result\n", "[1]\n"])
def test_a_baseline_that_holds_no_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(UserError, match="holds no result"):
        Baseline.read(path)


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | variables
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_step_prints_a_table_and_then_one_json_line(tmp_path: Path) -> None:
    small = ["--iterations", "1", "--warmup", "1", "--images", "64"]
    done = run(sys.executable, "-m", "benchmarks.step", "--reference-style", "--modes", "eager",
               *small, "--json", str(tmp_path / "step.json"), *TINY)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "reference/this" in done.stdout
    record = json.loads(done.stdout.splitlines()[-1])
    assert record == json.loads((tmp_path / "step.json").read_text())
    assert record["mode"] == "eager"
    for key in ("seconds_per_iteration", "images_per_second", "reference_style_seconds", "ratio",
                "flops_per_second", "share_of_peak", "share_of_floor", "memory_mb"):  # fmt: skip
        assert record[key] > 0, key
        assert record["modes"]["eager"][key] == record[key]
    assert record["by_turn"].keys() == {"images", "discriminator", "generator", "student"}
    assert {"device", "versions", "peaks", "work"} <= record.keys()
    assert record["reference"]["loader"] == "4 workers a stream"
    assert record["work"]["reference"]["flops"] > record["work"]["ours"]["flops"]
    assert record["measures"].keys() == {"reference", "eager"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--modes", "fast"], "'fast' is unknown"), (["--modes", "graph"], "need a CUDA device")],
)
def test_step_refuses_modes_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["step", *arguments, *TINY])
    with pytest.raises(UserError, match=said):
        step.main()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cuda_script_passes_its_rehearsal(tmp_path: Path) -> None:
    done = run("bash", "benchmarks/cuda.sh", str(tmp_path), "--rehearse", PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + (tmp_path / "benchmarks.log").read_text()
    assert "all parts passed" in (tmp_path / "summary.txt").read_text()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) <= 8
    assert {"step.json", "compiled.json", "profile.json", "pipeline.json", "tests.log"} <= {*files}


@pytest.mark.slow
def test_scaling_times_a_run(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "benchmarks.scaling", "--processes", "1", "--steps", "6",
               "--log-every", "2", "train.batch_size=8", "device=cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["measures"]["1 processes"] > 0
    assert record["rows"][0]["efficiency"] == 1.0
