"""Settings of the training (`train.*`). No torch here: `python run.py --cfg job` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mosaickd.constraints import Count, Positive


class Precision(StrEnum):
    """auto: bf16 where the device computes it fast (CUDA; CPUs with AVX512-bf16 or AMX)."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


@dataclass
class TrainSettings:
    """How long, how big, how often; and how it computes. Counts are in iterations."""

    batch_size: Count = 256
    epochs: Count | None = None
    epoch_steps: Count | None = None  # null: one pass over the images
    steps: Count | None = None  # fewer than `epochs` makes: cut short
    eval_every: Count | None = None  # null: once an epoch
    checkpoint_every: Count | None = None  # null: as often as it evaluates
    log_every: Count = 20
    check_every: Count = 20  # within so many a loss that is not finite stops the run
    eval_batch_size: Count = 500
    clip: Positive | None = None  # a turn's largest gradient norm
    precision: Precision = Precision.auto
    channels_last: bool = True
    compile: bool = False
    cuda_graph: bool = False
    deterministic: bool = False
    # Of several processes: whose batch norms see the whole batch, not one process's part of it.
    sync_batch_norm: list[str] = field(default_factory=list)
