"""Top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mosaickd.engine import distribution


class Accuracy(NamedTuple):
    """In percent. top5 is the best-of-all accuracy, 100, where there are five classes or fewer."""

    top1: float
    top5: float


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    check: Callable[[], None] = lambda: None,
) -> Accuracy:
    """Accuracy of `model` in eval mode, which is left in the mode it was in.

    batches: pairs of normalised images [B, 3, H, W] and labels [B]; of several processes that
    play together, each has its own part, and all get the accuracy on all images. check: called
    after each batch; may raise to stop early. Draws no random numbers and moves no batch-norm
    statistics.
    """
    training = model.training
    model.eval()
    try:
        hits: list[Tensor] = []
        count = 0
        for images, labels in batches:
            with autocast():
                logits = model(images)
            ranks = logits.float().topk(min(5, logits.shape[1]), dim=1).indices
            correct = ranks == labels[:, None]
            hits.append(torch.stack([correct[:, 0].sum(), correct.sum()]))
            count += len(labels)
            check()
        own = torch.stack(hits).sum(dim=0).tolist() if hits else [0, 0]
        top1, top5, count = distribution.total([*own, count])
        return Accuracy(100 * top1 / count, 100 * top5 / count)
    finally:
        model.train(training)
