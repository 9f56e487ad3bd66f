"""Training from scratch on labelled in-domain images: teachers, and the table's student row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from mosaickd.losses import cross_entropy
from mosaickd.methods.base import Batch, Loss, Method, SourceName, Stream, Turn


@dataclass(kw_only=True, eq=False)
class Scratch(Method):
    """Cross-entropy on augmented in-domain images and their labels."""

    display_name: ClassVar[str] = "Student"  # its row of Table 1
    source: ClassVar[SourceName | None] = "dataset"

    student: nn.Module

    def __post_init__(self) -> None:
        self.players = {"student": self.student}
        self.streams = {"labelled": Stream("dataset", augment=True, normalization="dataset")}

    def turns(self, batch: Batch) -> Iterator[Turn]:
        (images,) = batch["labelled"]
        logits = self.student(images.pixels)
        yield Turn("student", {"cross_entropy": Loss(cross_entropy(logits, images.labels))})
