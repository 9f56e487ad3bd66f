"""How much work an iteration is, for a machine that isn't here.

    python -m benchmarks.cost --row train.batch_size=64 --row train.batch_size=256 method=mosaic
    python -m benchmarks.cost --tflops 790 --terabytes 4 train.precision=bf16

Nothing is computed: tensors have shapes and no values. Prints a row for each `--row` (overrides on
top of the others), its FLOPs and traffic as `roofline.py` counts them, and the time that a machine
with these peaks needs at least. One table and, last, one JSON line.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from omegaconf import DictConfig, open_dict
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.harness import compose_config, new_parser, parse, report
from benchmarks.roofline import Work, add_up
from benchmarks.workload import Workload, random_data
from mosaickd.cli.overrides import hydra_guard

COLUMNS = ("", "TFLOP", "GB", "floor ms", "GB, all fused", "floor ms, all fused")


def count(cfg: DictConfig, classes: int, peak: float, bandwidth: float) -> Work:
    """Return the work of one iteration. peak: FLOP/s; bandwidth: bytes/s."""
    cfg = cfg.copy()
    cfg.device = "cpu"
    with open_dict(cfg):
        for player in cfg.players or {}:
            cfg.players[player].optimizer.fused = False  # fused steps don't work without values
    data = random_data(cfg, 2 * cfg.train.batch_size, classes, torch.device("cpu"))
    workload = Workload(cfg, "eager", data)
    with FakeTensorMode(allow_non_fake_inputs=True):  # weights and images have values
        return add_up(workload.count_operators().turns, peak, bandwidth)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--row", action="append", metavar="OVERRIDES", help="one more row")
    parser.add_argument("--tflops", type=float, default=790.0, help="of a large matrix product")
    parser.add_argument("--terabytes", type=float, default=4.0, help="a second, read and written")
    parser.add_argument("--classes", type=int, default=100)
    arguments = parse(parser)
    work = {}
    for row in arguments.row or [""]:
        cfg = compose_config([*arguments.overrides, *row.split()])
        name = row or cfg.method.name
        work[name] = count(
            cfg, arguments.classes, 1e12 * arguments.tflops, 1e12 * arguments.terabytes
        )
    peaks = {"tflops": arguments.tflops, "terabytes": arguments.terabytes}
    report(
        "cost", arguments, cfg, columns=COLUMNS,
        title="An iteration, counted; floors at "
        f"{arguments.tflops:g} TFLOP/s and {arguments.terabytes:g} TB/s",
        rows={
            name: [
                f"{each.flops / 1e12:.3f}",
                f"{each.bytes / 1e9:.1f}",
                f"{1e3 * each.floor:.2f}",
                f"{each.fused_bytes / 1e9:.1f}",
                f"{1e3 * each.fused_floor:.2f}",
            ]
            for name, each in work.items()
        },
        seconds={name: each.floor for name, each in work.items()},
        details={"rows": {name: asdict(each) for name, each in work.items()}, "assumed": peaks},
    )  # fmt: skip


if __name__ == "__main__":
    with hydra_guard():
        main()
