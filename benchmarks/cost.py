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
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.harness import compose_config, finish, parse, parser
from benchmarks.roofline import Work, work_of
from benchmarks.subject import Ours, random_images
from mosaickd.overrides import hydra_guard


def work(cfg: DictConfig, classes: int, peak: float, bandwidth: float) -> Work:
    """Of one iteration, all turns, without the optimizers' steps being fused into one operator."""
    cfg = cfg.copy()
    cfg.device = "cpu"
    with open_dict(cfg):
        for player in cfg.players or {}:
            cfg.players[player].optimizer.fused = False  # fused steps have no shapeless form
    images = random_images(cfg, 2 * cfg.train.batch_size, classes, torch.device("cpu"))
    ours = Ours(cfg, "eager", images)
    with FakeTensorMode(allow_non_fake_inputs=True):  # what has values are weights and the set
        return work_of(ours.tally(), peak, bandwidth)


def main() -> None:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--row", action="append", metavar="OVERRIDES", help="one more row")
    options.add_argument("--tflops", type=float, default=790.0, help="of a large matrix product")
    options.add_argument("--terabytes", type=float, default=4.0, help="a second, read and written")
    options.add_argument("--classes", type=int, default=100)
    arguments = parse(options, whole=["row"])
    rows = arguments.row or [""]
    found = {}
    table = Table(
        title=f"An iteration, counted; floors at {arguments.tflops:g} TFLOP/s and "
        f"{arguments.terabytes:g} TB/s"
    )
    for column in ("", "TFLOP", "GB", "floor ms", "GB, all fused", "floor ms, all fused"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        cfg = compose_config([*arguments.overrides, *row.split()])
        counted = work(cfg, arguments.classes, 1e12 * arguments.tflops, 1e12 * arguments.terabytes)
        found[row] = asdict(counted)
        table.add_row(
            row or cfg.method.name,
            f"{counted.flops / 1e12:.3f}",
            f"{counted.bytes / 1e9:.1f}",
            f"{1e3 * counted.floor:.2f}",
            f"{counted.fused_bytes / 1e9:.1f}",
            f"{1e3 * counted.fused_floor:.2f}",
        )
    peaks = {"tflops": arguments.tflops, "terabytes": arguments.terabytes}
    floors = {row: counted["floor"] for row, counted in found.items()}
    finish(table, "cost", arguments, cfg, floors, {"rows": found, "assumed": peaks})


if __name__ == "__main__":
    with hydra_guard():
        main()
