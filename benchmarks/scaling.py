"""Time training by several processes, as torchrun starts them.

    python -m benchmarks.scaling --processes 1 2 train.batch_size=64
    python -m benchmarks.scaling method=kd teacher.checkpoint=FILE dataset.root=DIR ood.root=DIR

Each number of processes is a run of `run.py` in a temporary folder; its own account of seconds an
iteration is read. Without a `method=` or `experiment=` it is the quickstart: images are drawn and a
teacher is trained on the spot. `train.batch_size` is that of all processes together. Prints one
table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table

from benchmarks.harness import compose_config, finish, number, parse, parser
from benchmarks.runs import RUN, Runs, metrics_of, temporary_runs
from benchmarks.subject import Ours, random_images
from mosaickd.engine.device import choose_device, describe_device
from mosaickd.errors import UserError
from mosaickd.metric_names import SECONDS_PER_STEP
from mosaickd.overrides import hydra_guard


def time_run(
    runs: Runs, processes: int, overrides: list[str], arguments: argparse.Namespace
) -> list[float]:
    """Seconds an iteration, each a mean over `train.log_every` iterations."""
    folder = runs.folder / f"processes{processes}"
    steps, every = arguments.steps, arguments.log_every
    runs.finish(
        *overrides,
        f"hydra.run.dir={folder}",
        f"train.steps={steps}",
        f"train.log_every={every}",
        f"train.eval_every={steps}",
        f"train.checkpoint_every={steps}",
        processes=processes,
        environment={"OMP_NUM_THREADS": str(arguments.threads)},
    )
    lines = [line for line in metrics_of(folder) if SECONDS_PER_STEP in line]
    # The first iteration, and those until the next line, still choose kernels and compile.
    return [line[SECONDS_PER_STEP] for line in lines if line["step"] > every]


def reduced(cfg: DictConfig) -> list[int]:
    """For each turn of an iteration, how many numbers its player's gradient has."""
    images = random_images(cfg, 2 * cfg.train.batch_size, 10, choose_device(cfg.device))
    ours = Ours(cfg, "eager", images)
    turns: list[str] = []
    ours.iterate(turns.append)
    players = ours.trainer.players
    return [sum(p.numel() for p in players[name].parameters) for name in turns if name in players]


def time_all_reduce(processes: int, sizes: list[int], device: str, threads: int) -> float:
    """Seconds that an iteration's gradients take to be added up when nobody is late."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc_per_node={processes}", "-m", "benchmarks.all_reduce", device,
         *map(str, sizes)],
        cwd=RUN.parent,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    if done.returncode:
        words = "\n".join(done.stderr.splitlines()[-20:])
        raise UserError(f"all-reduce by {processes} processes failed:\n{words}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def measure(
    cfg: DictConfig, overrides: list[str], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    sizes = reduced(cfg)
    rows: list[dict[str, Any]] = []
    with temporary_runs(cfg.device) as runs:
        given = runs.quickstart(*overrides) if is_quickstart(overrides) else overrides
        for processes in arguments.processes:
            seconds = time_run(runs, processes, given, arguments)
            if not seconds:
                raise UserError("--steps must be at least three times --log-every")
            row: dict[str, Any] = {
                "processes": processes,
                "seconds_per_iteration": statistics.median(seconds),
                "fastest": min(seconds),
                "slowest": max(seconds),
                "all_reduce_seconds": 0.0,
            }
            if processes > 1:
                spent = time_all_reduce(
                    processes, sizes, choose_device(cfg.device).type, arguments.threads
                )
                row["all_reduce_seconds"] = spent
            row["all_reduce_share"] = row["all_reduce_seconds"] / row["seconds_per_iteration"]
            rows.append(row)
    first = rows[0]
    for row in rows:
        row["speedup"] = first["seconds_per_iteration"] / row["seconds_per_iteration"]
        row["efficiency"] = row["speedup"] * first["processes"] / row["processes"]
        row["images_per_second"] = cfg.train.batch_size / row["seconds_per_iteration"]
    return rows


def is_quickstart(overrides: list[str]) -> bool:
    return not any(override.startswith(("method=", "experiment=")) for override in overrides)


def main() -> None:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--processes", nargs="+", default=["1", "2"])
    options.add_argument("--steps", type=int, default=30, help="iterations of each run")
    options.add_argument("--log-every", type=int, default=5)
    options.add_argument("--threads", type=int, help="of each process; cores / most processes")
    arguments = parse(options)
    if not all(count.isdigit() and int(count) for count in arguments.processes):
        raise UserError(f"--processes: numbers from 1, not {' '.join(arguments.processes)}")
    arguments.processes = sorted(map(int, arguments.processes))
    most = arguments.processes[-1]
    # All processes have as many threads as if there were the most: else one process would have
    # all cores to itself, and two could not be faster.
    arguments.threads = arguments.threads or max((os.cpu_count() or 1) // most, 1)
    chosen = ["experiment=quickstart"] if is_quickstart(arguments.overrides) else []
    cfg = compose_config([*chosen, *arguments.overrides])
    device = choose_device(cfg.device)
    if device.type == "cuda" and torch.cuda.device_count() < most:
        raise UserError(
            f"--processes: {most} need as many CUDA devices, and there are "
            f"{torch.cuda.device_count()}; choose fewer, or device=cpu"
        )
    overrides = [each for each in arguments.overrides if not each.startswith("device=")]
    rows = measure(cfg, overrides, arguments)
    torch.set_num_threads(arguments.threads)  # what the device's description tells

    table = Table(title=f"{cfg.method.name}, {cfg.teacher.name} to {cfg.student.name}, batch "
                        f"{cfg.train.batch_size} in all, {describe_device(device)} a process")  # fmt: skip
    columns = ["processes", "s/iteration", "images/s", "speed-up", "efficiency", "all-reduce"]
    columns += ["baseline/this"] if arguments.compared else []
    for column in columns:
        table.add_column(column)
    measures = {f"{row['processes']} processes": row["seconds_per_iteration"] for row in rows}
    for name, row in zip(measures, rows, strict=True):
        cells = [
            str(row["processes"]),
            f"{row['seconds_per_iteration']:.4f}",
            f"{row['images_per_second']:.0f}",
            number(row["speedup"]),
            f"{row['efficiency']:.0%}",
            f"{row['all_reduce_share']:.1%}",
        ]
        if arguments.compared:
            cells.append(number(arguments.compared.ratio(name, row["seconds_per_iteration"])))
        table.add_row(*cells)
    details = {"rows": rows, "threads": arguments.threads, "batch_size": cfg.train.batch_size}
    finish(table, "scaling", arguments, cfg, measures, details)


if __name__ == "__main__":
    with hydra_guard():
        main()
