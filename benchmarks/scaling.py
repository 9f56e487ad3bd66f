"""Time training by several processes, as torchrun starts them.

    python -m benchmarks.scaling --processes 1 2 train.batch_size=64
    python -m benchmarks.scaling method=kd teacher.checkpoint=FILE dataset.root=DIR ood.root=DIR

Each number of processes is a run of `run.py` in a temporary folder; its own account of seconds an
iteration is read. Without a `method=` or `experiment=` it is the quickstart: images are drawn and a
teacher is trained on the spot. `train.batch_size` is that of all processes together. Prints one
table and, last, one JSON line.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from omegaconf import DictConfig

from benchmarks import runs
from benchmarks.harness import compose_config, new_parser, number, parse, report, seconds_per_call
from benchmarks.workload import Workload, random_data
from mosaickd.cli.overrides import hydra_guard
from mosaickd.engine.device import choose_device, describe_device
from mosaickd.errors import UserError
from mosaickd.metric_names import SECONDS_PER_STEP

COLUMNS = ("processes", "s/iteration", "images/s", "speed-up", "efficiency", "all-reduce")


def time_run(
    folder: Path, overrides: list[str], *, processes: int, threads: int, steps: int, log_every: int
) -> list[float]:
    """Return seconds of an iteration, each a mean over `log_every` iterations of one run."""
    run = runs.train(
        folder,
        *overrides,
        f"train.steps={steps}",
        f"train.log_every={log_every}",
        f"train.eval_every={steps}",
        f"train.checkpoint_every={steps}",
        processes=processes,
        threads=threads,
    )
    # The first iteration, and those until the next line, still choose kernels and compile.
    return [
        line[SECONDS_PER_STEP]
        for line in run.read_metrics()
        if SECONDS_PER_STEP in line and line["step"] > log_every
    ]


# ------------------------------------------------------------------------------- the all-reduce


def gradient_sizes(cfg: DictConfig) -> list[int]:
    """Return, for each turn of an iteration, how many numbers its player's gradient has."""
    data = random_data(cfg, 2 * cfg.train.batch_size, 10, choose_device(cfg.device))
    workload = Workload(cfg, "eager", data)
    turns: list[str] = []
    workload.step_by_turns(turns.append)
    players = workload.trainer.players
    return [sum(p.numel() for p in players[name].parameters) for name in turns if name in players]


def time_all_reduce(processes: int, sizes: list[int], kind: str, threads: int) -> float:
    """Return the seconds that an iteration's gradients take to be added up when nobody is late."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        mp.spawn(_all_reduce, (processes, sizes, kind, threads, path), processes)
        return float((path / "seconds").read_text())


def _all_reduce(
    rank: int, processes: int, sizes: list[int], kind: str, threads: int, folder: Path
) -> None:
    """Write the median seconds of twenty rounds, each one flat tensor a turn."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    if kind == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=processes,
    )  # fmt: skip
    gradients = [torch.zeros(size, device=device) for size in sizes]

    def add_up() -> None:
        for gradient in gradients:
            dist.all_reduce(gradient)

    seconds = []
    for _ in range(23):
        dist.barrier()
        seconds.append(seconds_per_call(add_up))
    if rank == 0:
        (folder / "seconds").write_text(str(statistics.median(seconds[3:])))
    dist.destroy_process_group()


# ------------------------------------------------------------------------------------ the command


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--processes", nargs="+", default=["1", "2"])
    parser.add_argument("--steps", type=int, default=30, help="iterations of each run")
    parser.add_argument("--log-every", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of each process; cores / most processes")
    arguments = parse(parser, processes=None)
    if not all(count.isdigit() and int(count) for count in arguments.processes):
        raise UserError(f"--processes: numbers from 1, not {' '.join(arguments.processes)}")
    if arguments.steps < 3 * arguments.log_every:
        raise UserError("--steps must be at least three times --log-every")
    counts = sorted(map(int, arguments.processes))
    # All processes have as many threads as if there were the most: else one process would have
    # all cores to itself, and two could not be faster.
    threads = arguments.threads or max((os.cpu_count() or 1) // counts[-1], 1)
    overrides = arguments.overrides
    is_quickstart = not any(each.startswith(("method=", "experiment=")) for each in overrides)
    cfg = compose_config([*(["experiment=quickstart"] if is_quickstart else []), *overrides])
    device = choose_device(cfg.device)
    if device.type == "cpu":  # batch norms are synchronised on CUDA only
        overrides = ["train.sync_batch_norm=[]", *overrides]
    if device.type == "cuda" and torch.cuda.device_count() < counts[-1]:
        raise UserError(
            f"--processes: {counts[-1]} need as many CUDA devices, and there are "
            f"{torch.cuda.device_count()}; choose fewer, or device=cpu"
        )

    sizes = gradient_sizes(cfg)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mosaickd-benchmark-") as name:
        folder = Path(name)
        if is_quickstart:
            overrides = [*runs.quickstart(folder, cfg.device), *overrides]
        for processes in counts:
            seconds = time_run(
                folder / f"processes{processes}", overrides, processes=processes, threads=threads,
                steps=arguments.steps, log_every=arguments.log_every,
            )  # fmt: skip
            median = statistics.median(seconds)
            all_reduce = 0.0
            if processes > 1:
                all_reduce = time_all_reduce(processes, sizes, device.type, threads)
            rows.append({
                "processes": processes,
                "seconds_per_iteration": median,
                "fastest": min(seconds),
                "slowest": max(seconds),
                "all_reduce_seconds": all_reduce,
                "all_reduce_share": all_reduce / median,
                "images_per_second": cfg.train.batch_size / median,
            })  # fmt: skip
    for row in rows:
        row["speedup"] = rows[0]["seconds_per_iteration"] / row["seconds_per_iteration"]
        row["efficiency"] = row["speedup"] * rows[0]["processes"] / row["processes"]

    torch.set_num_threads(threads)  # what the device's description tells
    report(
        "scaling", arguments, cfg, columns=COLUMNS,
        title=f"{cfg.method.name}, {cfg.teacher.name} to {cfg.student.name}, "
        f"batch {cfg.train.batch_size} in all, {describe_device(device)} a process",
        rows={
            str(row["processes"]): [
                f"{row['seconds_per_iteration']:.4f}",
                f"{row['images_per_second']:.0f}",
                number(row["speedup"]),
                f"{row['efficiency']:.0%}",
                f"{row['all_reduce_share']:.1%}",
            ]
            for row in rows
        },
        seconds={str(row["processes"]): row["seconds_per_iteration"] for row in rows},
        details={"rows": rows, "threads": threads, "batch_size": cfg.train.batch_size},
    )  # fmt: skip


if __name__ == "__main__":
    with hydra_guard():
        main()
