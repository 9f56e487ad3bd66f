"""A whole iteration as one CUDA graph: all turns, one launch."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from mosaickd.engine.loop import Game, Played
from mosaickd.methods.base import Batch, Images


class CapturedGame:
    """Plays a game's iterations by replaying a captured one.

    The first `warmup` iterations run eagerly on a side stream, as capture demands; the next is
    captured and from then on replayed on batches copied into its inputs. Random numbers go on
    from `generators`, learning rates are read from tensors: each replay is a new iteration.
    """

    def __init__(
        self, game: Game, generators: Iterable[torch.Generator] = (), warmup: int = 3
    ) -> None:
        self.game = game
        self.generators = list(generators)
        self.warmup = warmup
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: dict[str, list[Images]] = {}
        self.outputs: list[Played] = []

    def __call__(self, batch: Batch) -> list[Played]:
        """One iteration; the same contract as `Game.iterate`."""
        if self.warmup > 0:
            self.warmup -= 1
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                played = self.game.play(batch)
            torch.cuda.current_stream().wait_stream(stream)
        else:
            if self.graph is None:
                self._capture(batch)
            assert self.graph is not None
            for name, draws in batch.items():
                for static, fresh in zip(self.inputs[name], draws, strict=True):
                    for own, new in zip(static, fresh, strict=True):
                        own.copy_(new)
            self.graph.replay()
            # The graph writes the same memory at each replay; what is logged later needs a copy.
            played = [
                Played(p.player, {k: v.clone() for k, v in p.losses.items()}, p.weights)
                for p in self.outputs
            ]
        self.game.advance_schedules(played)
        return played

    def _capture(self, batch: Batch) -> None:
        self.inputs = {
            name: [Images(*(tensor.clone() for tensor in draw)) for draw in draws]
            for name, draws in batch.items()
        }
        self.graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            self.graph.register_generator_state(generator)
        for player in self.game.players.values():
            player.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph):
            self.outputs = self.game.play(self.inputs)
