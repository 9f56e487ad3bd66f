"""Which kernels an iteration spends its time in.

    python -m benchmarks.profile --modes eager graph method=mosaic teacher=wrn40_2

Prints, for each mode, the operators (CPU) or kernels (CUDA) that took longest, with their share of
the device's busy time, and last a JSON line. Looking costs time: what an iteration takes,
`benchmarks.step` says.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import (
    add_image_options,
    compose_config,
    new_parser,
    parse,
    report,
    seconds_per_call,
)
from benchmarks.workload import MODES, Workload, random_data, release_memory
from mosaickd.cli.overrides import hydra_guard
from mosaickd.engine.device import choose_device
from mosaickd.load_data import RunData

TOP = 25


def profile_mode(cfg: DictConfig, mode: str, data: RunData, iterations: int) -> dict[str, Any]:
    """Print the top kernels; return them with the busy seconds and launches of an iteration."""
    workload = Workload(cfg, mode, data)
    workload.warm_up(6)
    on_cuda = workload.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        seconds = seconds_per_call(workload.step, iterations)
    events = profiler.key_averages()
    order = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    print(f"{mode}: where the time of {iterations} iterations goes")
    print(events.table(sort_by=order, row_limit=TOP, max_name_column_width=100), flush=True)

    kernels = [
        {
            "name": event.key,
            "seconds": getattr(event, order) / 1e6 / iterations,
            "calls": event.count / iterations,
        }
        for event in events
        if (event.device_type == DeviceType.CUDA) == on_cuda
        and not event.is_user_annotation
        and event.key != "Context Sync"
    ]
    kernels.sort(key=lambda kernel: -kernel["seconds"])
    return {
        "mode": mode,
        "seconds_per_iteration": seconds,
        "busy_seconds": sum(kernel["seconds"] for kernel in kernels),
        "launches": sum(kernel["calls"] for kernel in kernels),
        "top": kernels[:TOP],
    }


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--modes", nargs="+", default=[], help=", ".join(MODES))
    parser.add_argument("--iterations", type=int, default=3)
    add_image_options(parser)
    arguments = parse(parser, modes=list(MODES))
    cfg = compose_config(arguments.overrides)
    device = choose_device(cfg.device)
    data = random_data(cfg, arguments.images, arguments.classes, device)
    default = ["eager", "graph"] if device.type == "cuda" else ["eager"]
    results = {}
    for mode in arguments.modes or default:
        release_memory(device)
        results[mode] = profile_mode(cfg, mode, data, arguments.iterations)
    report(
        "profile", arguments, cfg,
        title="one iteration while it is profiled",
        columns=("mode", "ms", "device busy ms", "kernels"),
        rows={
            mode: [
                f"{1e3 * row['seconds_per_iteration']:.2f}",
                f"{1e3 * row['busy_seconds']:.2f}",
                f"{row['launches']:.0f}",
            ]
            for mode, row in results.items()
        },
        seconds={mode: row["busy_seconds"] for mode, row in results.items()},
        details={"modes": results},
    )  # fmt: skip


if __name__ == "__main__":
    with hydra_guard():
        main()
