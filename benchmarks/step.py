"""Time whole iterations on resident data.

    python -m benchmarks.step method=mosaic teacher=wrn40_2 student=wrn16_1 train.batch_size=32
    python -m benchmarks.step --reference-style --modes eager compiled -- method=kd

Everything that `python run.py` would be told may be given. Weights are untrained and images are
noise: neither changes the time of an iteration. Prints one table and, last, one JSON line: the
fastest mode, and all of them under "modes".
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.table import Table

from benchmarks.reference_style import reference_iteration
from mosaickd import config
from mosaickd.build import build_players
from mosaickd.command_line import run_command
from mosaickd.config import CONF, register
from mosaickd.engine.device import autocast_for, choose_device, describe
from mosaickd.engine.graph import CapturedGame
from mosaickd.engine.loop import Game
from mosaickd.launch import versions
from mosaickd.methods.base import Batch, Images
from mosaickd.parts import Parts
from mosaickd.report import console

STEPS = 10_000  # of the run that an iteration is thought to belong to
INSTANCES = 50_000  # images of the set that its batch is thought to come from


class Bench:
    """The parts of one config on random images, built as the launcher builds them."""

    def __init__(self, cfg: DictConfig, mode: str, classes: int) -> None:
        self.cfg = cfg = cfg.copy()
        self.mode = mode
        self.device = choose_device(cfg.device)
        reference = mode == "reference"
        precision = "fp32" if reference else cfg.train.precision
        self.channels_last = cfg.train.channels_last and not reference
        torch.backends.cudnn.benchmark = True
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.precision, autocast = autocast_for(self.device, precision)
        cfg.train.channels_last = self.channels_last
        cfg.train.compile = mode == "compiled"
        parts = Parts(
            cfg, device=self.device, num_classes=classes, instances=INSTANCES, steps=STEPS
        )
        self.method = parts.method
        self.batch = self.build_batch()
        self.turns: dict[str, float] = {}
        self.last = 0.0
        self.iterate: Callable[[Batch], Any]
        self.game: Game | None = None
        if reference:
            self.iterate = reference_iteration(self.method)
            return
        cfg.train.cuda_graph = mode == "graph"
        players = build_players(cfg, self.method, steps=STEPS)
        game = Game(self.method, players, autocast)
        game.train()
        if mode == "graph":
            self.iterate = CapturedGame(game, parts.generators)
        else:
            self.iterate = game.iterate
            self.game = game

    def build_batch(self) -> Batch:
        """One draw of every stream, kept for all iterations: data loading is not timed."""
        cfg, size = self.cfg, self.cfg.dataset.image_size
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format

        def draw() -> Images:
            pixels = torch.randn(cfg.train.batch_size, 3, size, size, device=self.device)
            labels = torch.zeros(len(pixels), dtype=torch.int64, device=self.device)
            indices = torch.arange(len(pixels), device=self.device)
            return Images(pixels.contiguous(memory_format=memory_format), labels, indices)

        return {
            name: [draw() for _ in range(stream.draws)]
            for name, stream in self.method.streams.items()
        }

    # ------------------------------------------------------------------------------ the clock

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def after_turn(self, player: str) -> None:
        now = self.now()
        self.turns[player] = self.turns.get(player, 0.0) + now - self.last
        self.last = now

    def measure(self, iterations: int, warmup: int) -> dict[str, Any]:
        """Median seconds of whole iterations; of the turns, the mean of as many more."""
        for _ in range(warmup):
            self.iterate(self.batch)
        seconds = []
        for _ in range(iterations):
            start = self.now()
            self.iterate(self.batch)
            seconds.append(self.now() - start)
        self.turns = {}
        if self.game is not None:  # apart from the above: on CUDA each look at the clock waits
            for _ in range(iterations):
                self.last = self.now()
                self.game.iterate(self.batch, self.after_turn)
        return {
            "mode": self.mode,
            "seconds_per_iteration": statistics.median(seconds),
            "fastest": min(seconds),
            "slowest": max(seconds),
            "by_turn": {name: total / iterations for name, total in self.turns.items()},
            "precision": self.precision,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled", "graph"])
    parser.add_argument("--reference-style", action="store_true", help="time the reference's way")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2, help="besides compiling")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("overrides", nargs="*", help="as given to run.py")
    arguments = parser.parse_args()

    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=arguments.overrides)
    config.validate(cfg)
    on_cuda = choose_device(cfg.device).type == "cuda"
    default = ["eager", "compiled", "graph"] if on_cuda else ["eager", "compiled"]
    modes = arguments.modes or default
    rows = []
    for mode in (["reference"] if arguments.reference_style else []) + modes:
        torch.compiler.reset()
        warmup = max(arguments.warmup, 5 if mode == "graph" else 1)
        rows.append(Bench(cfg, mode, arguments.classes).measure(arguments.iterations, warmup))
    reference = rows.pop(0) if arguments.reference_style else None

    draws = cfg.train.batch_size
    device = choose_device(cfg.device)
    table = Table(title=f"{cfg.method.name}, {cfg.teacher.name} to {cfg.student.name}, "
                        f"batch {draws}, {describe(device)}")  # fmt: skip
    for column in ("way", "precision", "s/iteration", "images/s", "reference/this", "by turn"):
        table.add_column(column)
    for row in [*([reference] if reference else []), *rows]:
        seconds = row["seconds_per_iteration"]
        row["images_per_second"] = draws / seconds
        base = reference["seconds_per_iteration"] if reference else None
        row["reference_style_seconds"] = base
        row["ratio"] = base / seconds if base else None
        turns = "  ".join(f"{name} {value:.3f}" for name, value in row["by_turn"].items())
        ratio = f"{row['ratio']:.2f}" if base else "-"
        table.add_row(row["mode"], row["precision"], f"{seconds:.3f}",
                      f"{draws / seconds:.0f}", ratio, turns)  # fmt: skip
    console().print(table)
    fastest = min(rows, key=lambda row: row["seconds_per_iteration"])
    modes_by_name = {row["mode"]: row for row in rows}
    where = {"device": describe(device), "versions": versions()}
    print(json.dumps(fastest | where | {"modes": modes_by_name}))


if __name__ == "__main__":
    run_command(main)
