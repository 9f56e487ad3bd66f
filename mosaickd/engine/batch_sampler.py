"""The images of each iteration, as the method's streams ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from mosaickd.methods.base import Batch, Images, Stream

#: For each stream, which images its draws of an iteration are: [draws, batch_size].
SampledIndices = Mapping[str, Tensor]


class Loader(Protocol):
    """Endless batches of one image set."""

    rng: torch.Generator

    def sample_indices(self, count: int) -> Tensor:
        """Return which images the next `count` batches hold, [count, batch_size]."""
        ...

    def make_batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return their pixels [count, b, 3, H, W], labels [count, b] and indices [count, b].

        Happens on the device alone, without waiting for it.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class BatchSampler:
    """Samples an iteration's images (the host counts), then makes them (on the device alone).

    A captured iteration holds the second half; the first fills its inputs.
    """

    def __init__(self, streams: Mapping[str, Stream], loaders: Mapping[str, Loader]) -> None:
        self.streams = streams
        self.loaders = loaders

    def sample_indices(self) -> SampledIndices:
        """What comes next in every stream."""
        return {
            name: self.loaders[name].sample_indices(s.draws) for name, s in self.streams.items()
        }

    def make_batch(self, sampled: SampledIndices) -> Batch:
        """Return the images that were sampled, as the method's `turns` takes them."""
        batch = {}
        for name, indices in sampled.items():
            parts = self.loaders[name].make_batch(indices)
            batch[name] = [Images(*draw) for draw in zip(*parts, strict=True)]
        return batch

    @property
    def generators(self) -> list[torch.Generator]:
        """Return what making images draws from, for whoever captures it."""
        return [loader.rng for loader in self.loaders.values()]

    def state_dict(self) -> dict[str, Any]:
        return {name: loader.state_dict() for name, loader in self.loaders.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, loader in self.loaders.items():
            loader.load_state_dict(state[name])
