"""Top-1 and top-5 accuracy, and top-1 by class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mosaickd.engine import distributed


class Accuracy(NamedTuple):
    """In percent. top5 is the best-of-all accuracy, 100, where there are five classes or fewer."""

    top1: float
    top5: float
    #: Of each class the right ones and all of its images.
    by_class: tuple[tuple[int, int], ...] = ()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Accuracy:
    """Return the accuracy of `model` in eval mode; it is left in the mode it was in.

    batches: pairs of normalised images [B, 3, H, W] and labels [B]; each rank has its own part, and
    all get the accuracy on all images. Draws no random numbers and moves no batch-norm statistics.
    """
    training = model.training
    model.eval()
    try:
        sums: list[Tensor] = []  # [3, C]: of each class the right ones, its images, in the top 5
        for images, labels in batches:
            with autocast():
                logits = model(images)
            ranks = logits.float().topk(min(5, logits.shape[1]), dim=1).indices
            correct = ranks == labels[:, None]
            counts = torch.stack([correct[:, 0], torch.ones_like(labels, dtype=torch.bool),
                                 correct.any(dim=1)]).long()  # fmt: skip
            sums.append(counts.new_zeros(3, logits.shape[1]).index_add_(1, labels, counts))
        classes = distributed.all_reduce_max(sums[0].shape[1] if sums else 0)
        own = torch.stack(sums).sum(dim=0).flatten().tolist() if sums else [0] * 3 * classes
        numbers = distributed.sum_over_ranks(own)
        right, all_images, top5 = (numbers[i * classes : (i + 1) * classes] for i in range(3))
        count = sum(all_images)
        by_class = tuple(zip(right, all_images, strict=True))
        return Accuracy(100 * sum(right) / count, 100 * sum(top5) / count, by_class)
    finally:
        model.train(training)
