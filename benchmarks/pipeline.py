"""Time what surrounds the iterations: the loader, evaluation, checkpoints, start-up.

    python -m benchmarks.pipeline method=mosaic teacher=wrn40_2 student=wrn16_1
    python -m benchmarks.pipeline --parts loader evaluation --reference-style method=kd

Takes whatever `python run.py` takes; start-up is that of the quickstart, whatever is given. Prints
one table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from benchmarks import runs
from benchmarks.harness import (
    add_image_options,
    compose_config,
    new_parser,
    number,
    parse,
    report,
    seconds_per_call,
)
from benchmarks.reference import ReferenceLoaders
from benchmarks.workload import Workload, random_data
from mosaickd.cli.overrides import hydra_guard
from mosaickd.engine.checkpoint import CheckpointWriter, save_checkpoint
from mosaickd.engine.device import choose_device, describe_device
from mosaickd.engine.evaluate import evaluate
from mosaickd.load_data import RunData, build_loaders, build_test_batches
from mosaickd.methods.base import Stream


class Row(NamedTuple):
    """A row of the table. images: how many were made or seen in these seconds."""

    name: str
    seconds: float
    images: int | None = None


def median_seconds(call: Callable[[], Any], times: int, in_a_row: int = 10) -> float:
    """Return the median seconds of a call after two to warm up, of `times` looks at the clock."""
    seconds_per_call(call, 2)
    return statistics.median(seconds_per_call(call, in_a_row) for _ in range(times))


def time_loader(cfg: DictConfig, data: RunData, arguments: argparse.Namespace) -> Iterator[Row]:
    """A batch, plain and augmented; an iteration's images, and what is drawn on the host alone."""
    if data.train is None:
        return
    ours, size, times = Workload(cfg, "eager", data), cfg.train.batch_size, arguments.iterations
    streams = {
        "plain": Stream("ood", False, "dataset"),
        "augmented": Stream("ood", True, "dataset"),
    }
    for name, loader in build_loaders(cfg, data, streams, ours.device, None).items():
        seconds = median_seconds(partial(next, loader), times)
        yield Row(f"loader: a batch, {name}", seconds, size)

    sampler = ours.sampler
    wanted = [name for name, stream in ours.method.streams.items() for _ in range(stream.draws)]
    yield Row("loader: an iteration's draw", median_seconds(sampler.sample_indices, times))
    seconds = median_seconds(lambda: sampler.make_batch(sampler.sample_indices()), times)
    yield Row("loader: an iteration's images", seconds, len(wanted) * size)
    if arguments.reference_style:
        loaders = ReferenceLoaders(cfg, ours.method, data, ours.device)
        make = lambda: [loaders(name) for name in wanted]  # noqa: E731
        try:
            seconds_per_call(make, 4)  # past what the workers had prepared
            seconds = median_seconds(make, times, in_a_row=1)
        finally:
            loaders.close()
        yield Row("loader: an iteration's images, reference", seconds, len(wanted) * size)


def time_evaluation(cfg: DictConfig, data: RunData, arguments: argparse.Namespace) -> Iterator[Row]:
    """The student on random test images, the fastest of three."""
    ours = Workload(cfg, "eager", data)
    batches = build_test_batches(cfg, data, ours.device)
    test = partial(evaluate, ours.components.student, batches, autocast=ours.trainer.autocast)
    seconds = min(seconds_per_call(test) for _ in range(3))
    yield Row(f"evaluation: {len(data.test)} images", seconds, len(data.test))


def time_checkpoint(cfg: DictConfig, data: RunData, arguments: argparse.Namespace) -> Iterator[Row]:
    """All that the loop's checkpoint holds, optimizers' states included."""
    ours = Workload(cfg, "eager", data)
    ours.warm_up(1)  # optimizers have no state before

    def state() -> dict[str, Any]:
        shared_rng = ours.components.shared_rng
        return {
            "trainer": ours.trainer.state_dict(),
            "loaders": ours.sampler.state_dict(),
            "shared_rng": {name: rng.state_dict() for name, rng in shared_rng.items()},
        }

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        writer = CheckpointWriter(path)
        ways: dict[str, Callable[[], None]] = {
            "checkpoint": lambda: save_checkpoint(path, state()),
            "checkpoint in a thread": lambda: writer.save(state()),
        }
        for name, write in ways.items():
            held, on_disk = [], []
            for _ in range(5):
                held.append(seconds_per_call(write))
                on_disk.append(held[-1] + seconds_per_call(writer.wait))
            megabytes = path.stat().st_size / 1e6
            yield Row(f"{name}: loop held ({megabytes:.0f} MB)", statistics.median(held))
            yield Row(f"{name}: on disk", statistics.median(on_disk))
        writer.close()


def time_startup(cfg: DictConfig, data: RunData, arguments: argparse.Namespace) -> Iterator[Row]:
    """`run.py experiment=quickstart` until its first iteration, its images and teacher there."""
    with tempfile.TemporaryDirectory(prefix="mosaickd-benchmark-") as name:
        folder = Path(name)
        overrides = [*runs.quickstart(folder, cfg.device), *arguments.startup]
        starts = [
            runs.seconds_to_first_iteration(folder / f"run{start}", *overrides)
            for start in range(arguments.starts + 1)
        ]
        # The first draws the images and fills the file cache.
        whole = statistics.median(starts[1:])
        yield Row("start-up: to the first iteration", whole)
        output = runs.call(["-m", "benchmarks.startup", "tracker=none", *overrides])
        steps: dict[str, float] = json.loads(output.splitlines()[-1])
        for step, seconds in steps.items():
            yield Row(f"  of that: {step}", seconds)
        yield Row("  of that: the rest", max(whole - sum(steps.values()), 0.0))


PARTS = {
    "loader": time_loader,
    "evaluation": time_evaluation,
    "checkpoint": time_checkpoint,
    "startup": time_startup,
}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--parts", nargs="+", default=[], help=", ".join(PARTS))
    parser.add_argument("--reference-style", action="store_true", help="also its loaders")
    parser.add_argument("--iterations", type=int, default=10, help="looks at the clock")
    parser.add_argument("--starts", type=int, default=3, help="runs started, of which a median")
    parser.add_argument("--startup", nargs="+", default=[], help="overrides of the started runs")
    parser.add_argument("--test-images", type=int, default=10_000)
    add_image_options(parser)
    arguments = parse(parser, parts=list(PARTS))
    cfg = compose_config(arguments.overrides)
    device = choose_device(cfg.device)
    data = random_data(
        cfg, arguments.images, arguments.classes, device, test_images=arguments.test_images
    )
    rows = [row for part in arguments.parts or PARTS for row in PARTS[part](cfg, data, arguments)]
    rates = {row.name: row.images / row.seconds for row in rows if row.images}
    report(
        "pipeline", arguments, cfg,
        title=f"around the iterations of {cfg.method.name}, batch {cfg.train.batch_size}, "
        f"{describe_device(device)}",
        columns=("what", "ms", "images/s"),
        rows={row.name: [number(1e3 * row.seconds), number(rates.get(row.name), 0)]
              for row in rows},
        seconds={row.name: row.seconds for row in rows},
        details={"images_per_second": rates},
    )  # fmt: skip


if __name__ == "__main__":
    with hydra_guard():
        main()
