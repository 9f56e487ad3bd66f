"""Time whole iterations: images, all turns, optimizer steps.

    python -m benchmarks.step method=mosaic teacher=wrn40_2 student=wrn16_1 train.batch_size=32
    python -m benchmarks.step --reference-style --modes eager compiled method=kd

Everything that `python run.py` would be told may be given. Weights are untrained and images are
noise: neither changes the time of an iteration. Prints one table and, last, one JSON line: the
fastest mode, and all of them under "modes".
"""

from __future__ import annotations

import argparse
import statistics
import sys
import traceback
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table

from benchmarks.harness import choose, compose_config, finish, number, parse, parser
from benchmarks.reference_loader import WORKERS, worker_activity
from benchmarks.roofline import Peaks, Work, measure_peaks, work_of
from benchmarks.subject import MODES, Memory, Ours, Reference, Subject, random_images, release
from mosaickd.data.source import ImageSet
from mosaickd.engine.device import choose_device, describe_device
from mosaickd.errors import UserError
from mosaickd.overrides import hydra_guard


class Session:
    """All that is timed in one process: modes of ours and, in turn with each, the reference."""

    def __init__(self, cfg: DictConfig, arguments: argparse.Namespace) -> None:
        self.cfg = cfg
        self.device = choose_device(cfg.device)
        self.images: ImageSet = random_images(cfg, arguments.images, arguments.classes, self.device)
        on_cuda = self.device.type == "cuda"
        self.iterations: int = arguments.iterations
        self.warmup: int = arguments.warmup
        # On a GPU the host runs ahead of the device; a look at the clock each iteration stops it.
        self.in_a_row: int = arguments.in_a_row or (5 if on_cuda else 1)
        # A reference that starts with full queues would not show how it waits for images. A CPU's
        # iterations are so long that the queues are always full.
        self.lead_in: int = 2 if on_cuda else 0
        self.workers = WORKERS if arguments.reference_loader == "workers" else None
        self.work: dict[str, Work] = {}  # by "ours" and "reference"
        self.peaks = Peaks({}, 0.0)
        self.reference: Reference | None = None
        self.reference_row: dict[str, Any] = {}
        try:
            self.count(arguments.reference_style)
            if arguments.reference_style:
                self.prepare_reference()
            self.rows = [self.measure(mode) for mode in arguments.modes]
        finally:
            if self.reference:
                self.reference.close()

    # ------------------------------------------------------------------------------ the story

    def count(self, with_reference: bool) -> None:
        """What the iteration consists of, ours and the reference's, and what the machine can do."""
        subjects: dict[str, Subject] = {"ours": Ours(self.cfg, "eager", self.images)}
        if with_reference:
            subjects["reference"] = Reference(self.cfg, self.images, None)
        tallies = {name: subject.tally() for name, subject in subjects.items()}
        precisions = {name: subject.precision for name, subject in subjects.items()}
        subjects.clear()
        release(self.device)
        self.peaks = measure_peaks(self.device, sorted({*precisions.values()}))
        for name, tally in tallies.items():
            peak = self.peaks.flops[precisions[name]]
            self.work[name] = work_of(tally, peak, self.peaks.bandwidth)

    def prepare_reference(self) -> None:
        memory = Memory(self.device)
        self.reference = Reference(self.cfg, self.images, self.workers)
        self.reference.warm_up(max(1, self.warmup))
        self.reference_row = {
            "mode": "reference" if self.workers else "reference, no loaders",
            "precision": self.reference.precision,
            "loader": f"{WORKERS} workers a stream" if self.workers else "none",
            "by_turn": {},
            **memory.read(),
        }

    def measure(self, mode: str) -> dict[str, Any]:
        """One mode, beside the reference. A mode that fails is reported; the others go on."""
        torch.compiler.reset()
        release(self.device)
        try:
            return self.time_mode(mode)
        except UserError:
            raise
        except Exception as error:
            traceback.print_exc()
            return {"mode": mode, "error": f"{type(error).__name__}: {error}"}

    def time_mode(self, mode: str) -> dict[str, Any]:
        memory = Memory(self.device)
        ours = Ours(self.cfg, mode, self.images)
        # A captured iteration needs three to get ready, one to be captured, and a first replay.
        ours.warm_up(max(self.warmup, 5 if ours.captured else 1))
        held = memory.read()
        seconds, reference, waited, disturbed = [], [], 0.0, 0
        for _ in range(self.iterations):
            if self.reference:
                self.reference.loaders.settle()
            before = worker_activity().ticks
            seconds.append(ours.time(self.in_a_row))
            disturbed += worker_activity().ticks - before
            if self.reference:
                for _ in range(self.lead_in):
                    self.reference.time(1)
                already = self.reference.loaders.waited
                reference.append(self.reference.time(self.in_a_row))
                waited += self.reference.loaders.waited - already
        if self.reference:
            self.reference.loaders.settle()
        row = {
            "mode": mode,
            "precision": ours.precision,
            "seconds_per_iteration": statistics.median(seconds),
            "fastest": min(seconds),
            "slowest": max(seconds),
            "by_turn": ours.by_turn(self.iterations),
            **held,
            **speeds(self.cfg, statistics.median(seconds), self.work["ours"], self.peaks, ours),
        }
        if self.reference:
            ratios = [theirs / own for own, theirs in zip(seconds, reference, strict=True)]
            row |= {
                "reference_style_seconds": statistics.median(reference),
                "reference_waited_seconds": waited / (self.iterations * self.in_a_row),
                "reference_workers_ticks_meanwhile": disturbed,
                "ratio": statistics.median(ratios),
                "ratio_lowest": min(ratios),
                "ratio_highest": max(ratios),
            }
        else:
            row |= {"reference_style_seconds": None, "ratio": None}
        return row

    def finish_reference(self) -> dict[str, Any]:
        """The reference's row: the median of what it took beside each mode."""
        assert self.reference
        beside = [row for row in self.rows if "error" not in row]
        seconds = statistics.median(row["reference_style_seconds"] for row in beside)
        waited = statistics.median(row["reference_waited_seconds"] for row in beside)
        return self.reference_row | {
            "seconds_per_iteration": seconds,
            "waited_seconds": waited,
            "workers_settled": self.reference.loaders.settled,
            **speeds(self.cfg, seconds, self.work["reference"], self.peaks, self.reference),
        }


def speeds(
    cfg: DictConfig, seconds: float, work: Work, peaks: Peaks, subject: Subject
) -> dict[str, float]:
    """What `seconds` an iteration come to."""
    return {
        "images_per_second": cfg.train.batch_size / seconds,
        "flops_per_second": work.flops / seconds,
        "share_of_peak": work.flops / seconds / peaks.flops[subject.precision],
        "share_of_floor": work.fused_floor / seconds,
        "share_of_eager_floor": work.floor / seconds,
    }


# ------------------------------------------------------------------------------------ the table


def table_of(
    cfg: DictConfig, rows: list[dict[str, Any]], session: Session, arguments: argparse.Namespace
) -> Table:
    title = (
        f"{cfg.method.name}, {cfg.teacher.name} to {cfg.student.name}, "
        f"batch {cfg.train.batch_size}, {describe_device(session.device)}"
    )
    if arguments.reference_style:
        title += f"; reference's loaders: {session.reference_row['loader']}"
    table = Table(title=title)
    columns = ["way", "precision", "s/iteration", "reference/this", "images/s", "TFLOP/s",
               "of peak", "of floor", "memory MB", "by turn"]  # fmt: skip
    if arguments.compared:
        columns.insert(4, "baseline/this")
    for column in columns:
        table.add_column(column)
    for row in rows:
        if "error" in row:
            table.add_row(row["mode"], row["error"])
            continue
        seconds = row["seconds_per_iteration"]
        turns = "  ".join(f"{name} {value:.4f}" for name, value in row["by_turn"].items())
        is_reference = row["mode"].startswith("reference")
        if is_reference:
            turns = f"waits for images {row['waited_seconds']:.4f}"
        cells = [
            row["mode"],
            row["precision"],
            f"{seconds:.4f}",
            number(1.0 if is_reference else row["ratio"]),
            f"{row['images_per_second']:.0f}",
            number(row["flops_per_second"] / 1e12),
            f"{row['share_of_peak']:.0%}",
            f"{row['share_of_floor']:.0%}",
            f"{row['memory_mb'] - row['memory_before_mb']:.0f}",
            turns,
        ]
        if arguments.compared:
            cells.insert(4, number(arguments.compared.ratio(row["mode"], seconds)))
        table.add_row(*cells)
    return table


def main() -> None:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--modes", nargs="+", default=[], help=", ".join(MODES))
    options.add_argument("--reference-style", action="store_true", help="time the reference's way")
    options.add_argument("--reference-loader", choices=["workers", "none"], default="workers")
    options.add_argument("--iterations", type=int, default=5, help="looks at the clock, each mode")
    options.add_argument("--in-a-row", type=int, help="iterations a look; 1, on CUDA 5")
    options.add_argument("--warmup", type=int, default=2, help="iterations before, each mode")
    options.add_argument("--images", type=int, default=50_000, help="random ones, to draw from")
    options.add_argument("--classes", type=int, default=100)
    arguments = parse(options)
    choose("--modes", arguments.modes, list(MODES))
    cfg = compose_config(arguments.overrides)
    on_cuda = choose_device(cfg.device).type == "cuda"
    arguments.modes = arguments.modes or list(MODES)[: 4 if on_cuda else 2]
    if not on_cuda and (graphs := [mode for mode in arguments.modes if "graph" in mode]):
        raise UserError(f"--modes: {', '.join(graphs)} need a CUDA device; this one is the CPU")

    session = Session(cfg, arguments)
    rows = [row for row in session.rows if "error" not in row]
    if not rows:
        raise UserError("no mode could be timed; what went wrong is told above")
    shown = list(session.rows)
    details: dict[str, Any] = {}
    if arguments.reference_style:
        details["reference"] = session.finish_reference()
        shown.insert(0, details["reference"])
    details["work"] = {name: vars(work) for name, work in session.work.items()}
    details["peaks"] = vars(session.peaks)
    details["modes"] = {row["mode"]: row for row in session.rows}
    fastest = min(rows, key=lambda row: row["seconds_per_iteration"])
    measures = {row["mode"]: row["seconds_per_iteration"] for row in shown if "error" not in row}
    finish(table_of(cfg, shown, session, arguments), "step", arguments, cfg, measures,
           {**fastest, **details})  # fmt: skip
    if len(rows) < len(session.rows):
        sys.exit(1)


if __name__ == "__main__":
    with hydra_guard():
        main()
