"""Which kernels an iteration spends its time in.

    python -m benchmarks.profile --modes eager graph method=mosaic teacher=wrn40_2

Prints, for each mode, the operators (CPU) or kernels (CUDA) that took longest, with their share of
the device's busy time, and last a JSON line. Looking costs time: what an iteration takes,
`benchmarks.step` says.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import choose, compose_config, finish, parse, parser
from benchmarks.subject import MODES, Ours, now, random_images, release
from mosaickd.analysis import console
from mosaickd.data.source import ImageSet
from mosaickd.engine.device import choose_device
from mosaickd.overrides import hydra_guard

TOP = 25


def profile_mode(cfg: DictConfig, mode: str, images: ImageSet, iterations: int) -> dict[str, Any]:
    """-> the busy seconds of an iteration, and its top kernels."""
    torch.compiler.reset()
    ours = Ours(cfg, mode, images)
    ours.warm_up(6)  # an iteration is captured after three; a few replays
    on_cuda = ours.device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        start = now(ours.device)
        for _ in range(iterations):
            ours.play()
        seconds = (now(ours.device) - start) / iterations
    kernels = []
    for event in profiler.key_averages():
        is_kernel = event.device_type == DeviceType.CUDA
        is_else = event.key == "Context Sync" or getattr(event, "is_user_annotation", False)
        if is_kernel != on_cuda or is_else:
            continue
        spent = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        kernels.append((spent / 1e6 / iterations, event.count / iterations, event.key))
    kernels.sort(reverse=True)
    busy = sum(spent for spent, _, _ in kernels)
    return {
        "mode": mode,
        "seconds_per_iteration": seconds,
        "busy_seconds": busy,
        "launches": sum(count for _, count, _ in kernels),
        "top": [
            {"name": name, "seconds": spent, "calls": count, "share": spent / busy if busy else 0.0}
            for spent, count, name in kernels[:TOP]
        ],
    }


def main() -> None:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--modes", nargs="+", default=[], help=", ".join(MODES))
    options.add_argument("--iterations", type=int, default=3)
    options.add_argument("--images", type=int, default=50_000, help="random ones, to draw from")
    options.add_argument("--classes", type=int, default=100)
    arguments = parse(options)
    choose("--modes", arguments.modes, list(MODES))
    cfg = compose_config(arguments.overrides)
    device = choose_device(cfg.device)
    images = random_images(cfg, arguments.images, arguments.classes, device)
    default = ["eager", "graph"] if device.type == "cuda" else ["eager"]

    results = []
    for mode in arguments.modes or default:
        release(device)
        results.append(profile_mode(cfg, mode, images, arguments.iterations))
        console().print(top_of(results[-1]))
    summary = Table(title="one iteration while it is looked at")
    for column in ("mode", "ms", "device busy ms", "kernels"):
        summary.add_column(column)
    for row in results:
        summary.add_row(
            row["mode"],
            f"{1e3 * row['seconds_per_iteration']:.2f}",
            f"{1e3 * row['busy_seconds']:.2f}",
            f"{row['launches']:.0f}",
        )
    measures = {row["mode"]: row["busy_seconds"] for row in results}
    finish(summary, "profile", arguments, cfg, measures, {"modes": {r["mode"]: r for r in results}})


def top_of(row: dict[str, Any]) -> Table:
    table = Table(title=f"{row['mode']}: where the time goes", title_justify="left")
    for column in ("share", "ms", "calls", "kernel"):
        table.add_column(column, no_wrap=True)
    for kernel in row["top"]:
        table.add_row(
            f"{kernel['share']:.1%}",
            f"{1e3 * kernel['seconds']:.3f}",
            f"{kernel['calls']:.1f}",
            kernel["name"][:150],
        )
    return table


if __name__ == "__main__":
    with hydra_guard():
        main()
