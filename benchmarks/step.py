"""Time whole iterations: images, all turns, optimizer steps.

    python -m benchmarks.step method=mosaic teacher=wrn40_2 student=wrn16_1 train.batch_size=32
    python -m benchmarks.step --reference-style --modes eager compiled method=kd

Takes whatever `python run.py` takes. Weights are untrained and images are noise: neither changes
the time of an iteration. Prints one table and, last, one JSON line: the fastest mode, and all of
them under "modes".
"""

from __future__ import annotations

import argparse
import statistics
import sys
import traceback
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import DictConfig

from benchmarks.harness import (
    add_image_options,
    compose_config,
    new_parser,
    number,
    parse,
    report,
    seconds_per_call,
)
from benchmarks.reference import WORKERS, ReferenceWorkload
from benchmarks.roofline import Peaks, Work, add_up, measure_peaks
from benchmarks.workload import MODES, PeakMemory, Workload, random_data, release_memory
from mosaickd.cli.overrides import hydra_guard
from mosaickd.engine.device import choose_device, describe_device
from mosaickd.errors import UserError
from mosaickd.load_data import RunData

Row = dict[str, Any]

COLUMNS = ("way", "precision", "s/iteration", "reference/this", "images/s", "TFLOP/s", "of peak",
           "of floor", "memory MB", "by turn")  # fmt: skip

#: What the reference took: medians of what it took beside each mode.
REFERENCE_COLUMNS = {
    "seconds_per_iteration": "reference_style_seconds",
    "seconds_waited": "reference_seconds_waited",
}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--modes", nargs="+", default=[], help=", ".join(MODES))
    parser.add_argument("--reference-style", action="store_true", help="time the reference's way")
    parser.add_argument("--reference-loader", choices=["workers", "none"], default="workers")
    parser.add_argument("--iterations", type=int, default=5, help="looks at the clock, each mode")
    parser.add_argument("--in-a-row", type=int, help="iterations a look; 1, on CUDA 5")
    parser.add_argument("--warmup", type=int, default=2, help="iterations before, each mode")
    add_image_options(parser)
    arguments = parse(parser, modes=list(MODES))
    cfg = compose_config(arguments.overrides)
    device = choose_device(cfg.device)
    on_cuda = device.type == "cuda"
    modes = arguments.modes or list(MODES)[: 4 if on_cuda else 2]
    if not on_cuda and (graphs := [mode for mode in modes if "graph" in mode]):
        raise UserError(f"--modes: {', '.join(graphs)} need a CUDA device; this one is the CPU")
    # On a GPU the host runs ahead of the device; a look at the clock each iteration stops it.
    arguments.in_a_row = arguments.in_a_row or (5 if on_cuda else 1)

    data = random_data(cfg, arguments.images, arguments.classes, device)
    work, peaks = count_work(cfg, data, device, arguments.reference_style)
    reference: ReferenceWorkload | None = None
    reference_row: Row = {}
    rows: dict[str, Row] = {}
    try:
        if arguments.reference_style:
            reference, reference_row = prepare_reference(cfg, data, device, arguments)
        for mode in modes:
            try:
                rows[mode] = time_mode(cfg, mode, data, device, arguments, reference)
            except UserError:
                raise
            except Exception as error:  # the other modes go on
                traceback.print_exc()
                rows[mode] = {"mode": mode, "error": f"{type(error).__name__}: {error}"}
    finally:
        if reference:
            reference.images.close()

    timed = [row for row in rows.values() if "error" not in row]
    if not timed:
        raise UserError("no mode could be timed; what went wrong is told above")
    for row in timed:
        row |= speeds(row, cfg.train.batch_size, work["ours"], peaks)
    fastest = min(timed, key=lambda row: row["seconds_per_iteration"])
    details = {
        **fastest,
        "work": {kind: asdict(each) for kind, each in work.items()},
        "peaks": asdict(peaks),
        "modes": dict(rows),
    }
    title = (
        f"{cfg.method.name}, {cfg.teacher.name} to {cfg.student.name}, "
        f"batch {cfg.train.batch_size}, {describe_device(device)}"
    )
    if reference:
        for own, beside in REFERENCE_COLUMNS.items():
            reference_row[own] = statistics.median(row[beside] for row in timed)
        reference_row |= speeds(reference_row, cfg.train.batch_size, work["reference"], peaks)
        details["reference"] = reference_row
        title += f"; reference's loaders: {reference_row['loader']}"
        rows = {"reference": reference_row, **rows}
        timed = [reference_row, *timed]
    report(
        "step", arguments, cfg, title=title, columns=COLUMNS,
        rows={name: cells(row) for name, row in rows.items()},
        seconds={row["mode"]: row["seconds_per_iteration"] for row in timed},
        details=details,
    )  # fmt: skip
    if len(timed) < len(rows):
        sys.exit(1)


def count_work(
    cfg: DictConfig, data: RunData, device: torch.device, with_reference: bool
) -> tuple[dict[str, Work], Peaks]:
    """Return what an iteration consists of, ours and the reference's; what the machine can do."""
    workloads: dict[str, Workload | ReferenceWorkload] = {"ours": Workload(cfg, "eager", data)}
    if with_reference:
        workloads["reference"] = ReferenceWorkload(cfg, data, workers=None)
    turns = {kind: workload.count_operators().turns for kind, workload in workloads.items()}
    precisions = {kind: workload.precision for kind, workload in workloads.items()}
    workloads.clear()
    release_memory(device)
    peaks = measure_peaks(device, sorted(set(precisions.values())))
    work = {
        kind: add_up(turns[kind], peaks.flops[precision], peaks.bandwidth)
        for kind, precision in precisions.items()
    }
    return work, peaks


def prepare_reference(
    cfg: DictConfig, data: RunData, device: torch.device, arguments: argparse.Namespace
) -> tuple[ReferenceWorkload, Row]:
    """Return the reference, warmed up, and its row without times."""
    memory = PeakMemory(device)
    workers = WORKERS if arguments.reference_loader == "workers" else None
    reference = ReferenceWorkload(cfg, data, workers)
    reference.seconds_per_step(max(1, arguments.warmup))
    row: Row = {
        "mode": "reference",
        "precision": reference.precision,
        "loader": f"{workers} workers a stream" if workers else "none",
        "by_turn": {},
        "memory_mb": memory.read(),
        "ratio": 1.0,
    }
    return reference, row


def time_mode(
    cfg: DictConfig,
    mode: str,
    data: RunData,
    device: torch.device,
    arguments: argparse.Namespace,
    reference: ReferenceWorkload | None,
) -> Row:
    """Time one mode and, in turn with it, the reference."""
    memory = PeakMemory(device)
    ours = Workload(cfg, mode, data)
    ours.warm_up(arguments.warmup)
    row: Row = {
        "mode": mode,
        "precision": ours.precision,
        "memory_mb": memory.read(),
        "reference_style_seconds": None,
        "ratio": None,
    }
    count = arguments.in_a_row
    seconds, beside = [], []
    waited_before = reference.images.seconds_waited if reference else 0.0
    for _ in range(arguments.iterations):
        seconds.append(seconds_per_call(ours.step, count))
        if reference:
            beside.append(reference.seconds_per_step(count))
    row |= {
        "seconds_per_iteration": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "by_turn": ours.seconds_by_turn(arguments.iterations),
    }
    if reference:
        ratios = [theirs / own for own, theirs in zip(seconds, beside, strict=True)]
        waited = reference.images.seconds_waited - waited_before
        row |= {
            "reference_style_seconds": statistics.median(beside),
            "reference_seconds_waited": waited / (arguments.iterations * count),
            "ratio": statistics.median(ratios),
            "ratio_lowest": min(ratios),
            "ratio_highest": max(ratios),
        }
    return row


def speeds(row: Row, batch_size: int, work: Work, peaks: Peaks) -> dict[str, float]:
    """Return what the seconds of an iteration come to."""
    seconds = row["seconds_per_iteration"]
    return {
        "images_per_second": batch_size / seconds,
        "flops_per_second": work.flops / seconds,
        "share_of_peak": work.flops / seconds / peaks.flops[row["precision"]],
        "share_of_floor": work.fused_floor / seconds,
        "share_of_eager_floor": work.floor / seconds,
    }


def cells(row: Row) -> list[str]:
    """Return a row of the table, after its name."""
    if "error" in row:
        return [row["error"]]
    by_turn = {"waits for images": row["seconds_waited"]} if "loader" in row else row["by_turn"]
    return [
        row["precision"],
        f"{row['seconds_per_iteration']:.4f}",
        number(row["ratio"]),
        f"{row['images_per_second']:.0f}",
        number(row["flops_per_second"] / 1e12),
        f"{row['share_of_peak']:.0%}",
        f"{row['share_of_floor']:.0%}",
        number(row["memory_mb"], 0),
        "  ".join(f"{name} {seconds:.4f}" for name, seconds in by_turn.items()),
    ]


if __name__ == "__main__":
    with hydra_guard():
        main()
