"""One pass of a network over many images, a batch at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mosaickd.engine.device import eagerly
from mosaickd.engine.progress import track

log = logging.getLogger(__name__)


@torch.no_grad()
def predict(
    network: nn.Module,
    images: Tensor,
    reduce: Callable[[Tensor], Tensor],
    *,
    prepare: Callable[[Tensor], Tensor],
    title: str,
    batch_size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Return `reduce` of the logits of each image: [N], on the CPU.

    images: uint8 [N, 3, H, W], anywhere, also memory-mapped: only a batch is ever on the device,
    or in floats. prepare: uint8 batch -> what the network wants. reduce: logits [B, C] -> [B].
    The network is taken as it is: put it into eval mode first.
    """
    began = time.perf_counter()
    results = []
    for batch in track(images.split(batch_size), title):
        with autocast(), eagerly():
            logits = network(prepare(batch.to(device)))
        results.append(reduce(logits).cpu())
    log.info("%s: %d images in %.1f s", title, len(images), time.perf_counter() - began)
    return torch.cat(results)
