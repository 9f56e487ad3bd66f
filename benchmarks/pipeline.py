"""Time what surrounds the iterations: the loader, evaluation, checkpoints, start-up.

    python -m benchmarks.pipeline method=mosaic teacher=wrn40_2 student=wrn16_1
    python -m benchmarks.pipeline --parts loader evaluation --reference-style method=kd

Everything that `python run.py` would be told may be given; start-up is that of the quickstart,
whatever is given. Prints one table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table

from benchmarks.harness import choose, compose_config, finish, number, parse, parser
from benchmarks.reference_loader import ReferenceLoaders
from benchmarks.runs import RUN, Runs, temporary_runs
from benchmarks.subject import Ours, now, random_images, resident_loader
from mosaickd.data.loader import TestBatches
from mosaickd.data.source import ImageSet
from mosaickd.engine.checkpoint import CheckpointWriter, save_checkpoint
from mosaickd.engine.device import choose_device, describe_device
from mosaickd.engine.evaluate import evaluate
from mosaickd.methods.base import Stream
from mosaickd.overrides import hydra_guard

PARTS = ("loader", "evaluation", "checkpoint", "startup")


class Report:
    """Rows of the table. seconds: what a baseline comparison is made of."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, float | None]] = []

    def add(self, name: str, seconds: float, images: int | None = None) -> None:
        self.rows.append((name, seconds, images / seconds if images else None))

    @property
    def measures(self) -> dict[str, float]:
        return {name: seconds for name, seconds, _ in self.rows}


def median_of(call: Callable[[], Any], device: torch.device, times: int) -> float:
    """Seconds of one call, after two to warm up: the median of `times` looks at ten in a row."""
    for _ in range(2):
        call()
    in_a_row = 10
    seconds = []
    for _ in range(times):
        start = now(device)
        for _ in range(in_a_row):
            call()
        seconds.append((now(device) - start) / in_a_row)
    return statistics.median(seconds)


# ------------------------------------------------------------------------------------ the loader


def time_loader(
    cfg: DictConfig, arguments: argparse.Namespace, images: ImageSet, report: Report
) -> None:
    """A batch, plain and augmented; an iteration's images; what is drawn on the host alone."""
    device, size = images.images.device, cfg.train.batch_size
    for name, augment in {"plain": False, "augmented": True}.items():
        loader = resident_loader(cfg, name, Stream("ood", augment, "dataset"), images, device)
        seconds = median_of(lambda loader=loader: next(loader), device, arguments.iterations)  # type: ignore[misc]
        report.add(f"loader: a batch, {name}", seconds, size)
    ours = Ours(cfg, "eager", images)
    draws = sum(stream.draws for stream in ours.method.streams.values())
    if not draws:
        return
    sampler = ours.sampler
    report.add(
        "loader: an iteration's draw",
        median_of(sampler.sample_indices, device, arguments.iterations),
    )
    seconds = median_of(
        lambda: sampler.make_batch(sampler.sample_indices()), device, arguments.iterations
    )
    report.add("loader: an iteration's images", seconds, draws * size)
    if arguments.reference_style:
        time_reference_loader(cfg, arguments, images, ours, report)


def time_reference_loader(
    cfg: DictConfig,
    arguments: argparse.Namespace,
    images: ImageSet,
    ours: Ours,
    report: Report,
) -> None:
    """The same images from the reference's workers, when nothing else wants the processor."""
    streams = ours.method.streams
    wanted = [name for name, stream in streams.items() for _ in range(stream.draws)]
    loaders = ReferenceLoaders(cfg, streams, images, ours.device)
    try:
        for _ in range(4):  # past what the workers had prepared
            list(map(loaders, wanted))
        seconds = []
        for _ in range(arguments.iterations):
            start = now(ours.device)
            list(map(loaders, wanted))
            seconds.append(now(ours.device) - start)
    finally:
        loaders.close()
    count = len(wanted) * cfg.train.batch_size
    report.add("loader: an iteration's images, reference", statistics.median(seconds), count)


# ------------------------------------------------------------- evaluation, checkpoint, start-up


def time_evaluation(
    cfg: DictConfig, arguments: argparse.Namespace, images: ImageSet, report: Report
) -> None:
    """The student on random test images."""
    ours = Ours(cfg, "eager", images)
    test = random_images(cfg, arguments.test_images, arguments.classes, ours.device)
    batches = TestBatches(
        test,
        batch_size=cfg.train.eval_batch_size,
        mean=list(cfg.dataset.mean),
        std=list(cfg.dataset.std),
        device=ours.device,
        channels_last=cfg.train.channels_last,
    )
    seconds = []
    for _ in range(3):
        start = now(ours.device)
        evaluate(ours.components.student, batches, autocast=ours.trainer.autocast)
        seconds.append(now(ours.device) - start)
    report.add(f"evaluation: {len(test)} images", min(seconds), len(test))


#: What a way of writing a checkpoint is called with, and what waits until it is on the disk.
Write = Callable[[Path, dict[str, Any]], Callable[[], None]]


def ways_of_writing() -> dict[str, Write]:
    """By name. A way that writes while the loop goes on returns before the file is there; what it
    returns waits for it. Add such a way here, and nowhere else."""

    def at_once(path: Path, state: dict[str, Any]) -> Callable[[], None]:
        save_checkpoint(path, state)
        return lambda: None

    writers: dict[Path, CheckpointWriter] = {}

    def in_a_thread(path: Path, state: dict[str, Any]) -> Callable[[], None]:
        writer = writers.setdefault(path, CheckpointWriter(path))
        writer.save(state)
        return writer.wait

    return {"checkpoint": at_once, "checkpoint in a thread": in_a_thread}


def time_checkpoint(
    cfg: DictConfig, arguments: argparse.Namespace, images: ImageSet, report: Report
) -> None:
    """All that the loop's checkpoint holds, optimizers' states included."""
    ours = Ours(cfg, "eager", images)
    ours.warm_up(1)  # optimizers have no state before
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        for name, write in ways_of_writing().items():
            held, written = [], []
            for _ in range(5):
                start = now(ours.device)
                state = {
                    "trainer": ours.trainer.state_dict(),
                    "loaders": ours.sampler.state_dict(),
                    "shared_rng": {
                        k: v.state_dict() for k, v in ours.components.shared_rng.items()
                    },
                }
                wait = write(path, state)
                held.append(now(ours.device) - start)
                wait()
                written.append(now(ours.device) - start)
            megabytes = path.stat().st_size / 1e6
            report.add(f"{name}: loop held ({megabytes:.0f} MB)", statistics.median(held))
            report.add(f"{name}: on disk", statistics.median(written))


def time_startup(cfg: DictConfig, arguments: argparse.Namespace, report: Report) -> None:
    """`python run.py experiment=quickstart` until its first iteration, images and teacher there."""
    with temporary_runs(cfg.device) as runs:
        overrides = runs.quickstart(*arguments.startup)
        # The first of these draws images and fills the file cache; it isn't counted.
        seconds = [
            runs.time_to_first_iteration(runs.folder / f"run{number}", *overrides)
            for number in range(arguments.starts + 1)
        ][1:]
        stages = time_stages(runs, overrides)
    whole = statistics.median(seconds)
    report.add("start-up: to the first iteration", whole)
    for name, spent in stages.items():
        report.add(f"  of that: {name}", spent)
    report.add("  of that: the rest", max(whole - sum(stages.values()), 0.0))


def time_stages(runs: Runs, overrides: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.startup", *runs.common, *overrides]
    done = subprocess.run(command, cwd=RUN.parent, check=True, capture_output=True, text=True)
    stages: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return stages


# ------------------------------------------------------------------------------------- the table


def main() -> None:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--parts", nargs="+", default=[], help=", ".join(PARTS))
    options.add_argument("--reference-style", action="store_true", help="also its loaders")
    options.add_argument("--iterations", type=int, default=10, help="looks at the clock")
    options.add_argument("--starts", type=int, default=3, help="runs started, of which a median")
    options.add_argument("--startup", nargs="+", default=[], help="overrides of the started runs")
    options.add_argument("--images", type=int, default=50_000, help="random ones, to draw from")
    options.add_argument("--test-images", type=int, default=10_000)
    options.add_argument("--classes", type=int, default=100)
    arguments = parse(options)
    choose("--parts", arguments.parts, PARTS)
    parts = arguments.parts or list(PARTS)
    cfg = compose_config(arguments.overrides)
    device = choose_device(cfg.device)
    images = random_images(cfg, arguments.images, arguments.classes, device)

    report = Report()
    if "loader" in parts:
        time_loader(cfg, arguments, images, report)
    if "evaluation" in parts:
        time_evaluation(cfg, arguments, images, report)
    if "checkpoint" in parts:
        time_checkpoint(cfg, arguments, images, report)
    if "startup" in parts:
        time_startup(cfg, arguments, report)

    table = Table(title=f"around the iterations of {cfg.method.name}, "
                        f"batch {cfg.train.batch_size}, {describe_device(device)}")  # fmt: skip
    columns = ["what", "ms", "images/s"] + (["baseline/this"] if arguments.compared else [])
    for column in columns:
        table.add_column(column)
    for name, seconds, rate in report.rows:
        cells = [name, number(1e3 * seconds), number(rate, 0)]
        if arguments.compared:
            cells.append(number(arguments.compared.ratio(name, seconds)))
        table.add_row(*cells)
    rates = {name: rate for name, _, rate in report.rows if rate is not None}
    finish(table, "pipeline", arguments, cfg, report.measures, {"images_per_second": rates})


if __name__ == "__main__":
    with hydra_guard():
        main()
