"""Whole iterations as one CUDA graph: images, all turns, optimizer steps, in one launch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mosaickd.engine.batch_sampler import BatchSampler
from mosaickd.engine.trainer import StepOutput, Trainer


class CapturedStep:
    """Takes a trainer's iterations by replaying a captured one.

    The first `warmup` iterations run eagerly on a side stream, as capture demands; the next is
    captured and from then on replayed: which images are wanted is copied into its inputs, random
    numbers go on from `generators` and the sampler's, learning rates are read from tensors. Each
    replay is a new iteration.
    """

    def __init__(
        self,
        trainer: Trainer,
        sampler: BatchSampler,
        generators: Iterable[torch.Generator] = (),
        warmup: int = 3,
    ) -> None:
        self.trainer = trainer
        self.sampler = sampler
        self.generators = [*generators, *sampler.generators]
        self.warmup = warmup
        self.stream = torch.cuda.Stream()  # of the current device: memory belongs to a stream
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: dict[str, Tensor] = {}
        self.outputs: list[StepOutput] = []

    def __call__(self) -> list[StepOutput]:
        """Take the next iteration, as `Trainer.next_step` does."""
        drawn = self.sampler.sample_indices()
        if self.warmup > 0:
            self.warmup -= 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outputs = self.trainer.play_turns(self.sampler.make_batch(drawn))
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            if self.graph is None:
                self.inputs = {name: indices.clone() for name, indices in drawn.items()}
                self.graph = self._capture()
            for name, indices in drawn.items():
                self.inputs[name].copy_(indices)
            self.graph.replay()
            # The graph writes the same memory at each replay; what is logged later needs a copy.
            outputs = [
                StepOutput(p.player, {k: v.clone() for k, v in p.losses.items()}, p.weights)
                for p in self.outputs
            ]
        self.trainer.advance_schedules(outputs)
        return outputs

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        for player in self.trainer.players.values():
            player.optimizer.zero_grad(set_to_none=True)
        # Other threads go on using CUDA: a checkpoint may be on its way to the disk.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.outputs = self.trainer.play_turns(self.sampler.make_batch(self.inputs))
        return graph
