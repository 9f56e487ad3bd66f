"""Settings of the loop (`train.*`). No torch here: `python run.py --help` and `--cfg` read this."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mosaickd.constraints import Range


class Precision(StrEnum):
    """auto: bf16 where the device computes it fast (CUDA; CPUs with AVX512-bf16 or AMX)."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


def setting(default: Any, **bounds: Any) -> Any:
    """A dataclass field with its range in the metadata, where `mosaickd.config.validation` finds it."""
    return field(default=default, metadata={"range": Range(**bounds)} if bounds else {})


@dataclass
class TrainSettings:
    """How long, how big, how often; and how it computes. Counts are in iterations."""

    batch_size: int = setting(256, low=1)
    epochs: int | None = setting(None, low=1)
    epoch_steps: int | None = setting(None, low=1)  # iterations; null: one pass over the images
    steps: int | None = setting(None, low=1)  # iterations; fewer than `epochs` makes: cut short
    eval_every: int | None = setting(None, low=1)  # null: once an epoch
    checkpoint_every: int | None = setting(None, low=1)  # null: as often as it evaluates
    log_every: int = setting(20, low=1)
    check_every: int = setting(20, low=1)  # within so many a loss that is not finite stops the run
    eval_batch_size: int = setting(500, low=1)
    clip: float | None = setting(None, low=0, above=True)  # a turn's largest gradient norm
    precision: Precision = Precision.auto
    channels_last: bool = True
    compile: bool = False
    cuda_graph: bool = False
    deterministic: bool = False
    # Of several processes: whose batch norms see the whole batch, not one process's part of it.
    sync_batch_norm: list[str] = field(default_factory=list)
