"""Training from scratch on labelled in-domain images: teachers, and the table's student row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import nn

from mosaickd.losses import cross_entropy
from mosaickd.methods.base import Batch, Loss, Method, SourceName, Stream, Turn


class Scratch(Method):
    """Cross-entropy on augmented in-domain images and their labels."""

    source: ClassVar[SourceName | None] = "dataset"

    def __init__(self, *, student: nn.Module) -> None:
        self.student = student
        self.players = {"student": student}
        self.streams = {"labelled": Stream("dataset", augment=True, statistics="dataset")}

    def turns(self, batch: Batch) -> Iterator[Turn]:
        (images,) = batch["labelled"]
        logits = self.student(images.pixels)
        yield Turn("student", {"cross_entropy": Loss(cross_entropy(logits, images.labels))})
