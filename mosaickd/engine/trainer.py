"""A method and its players: whose turn it is, what it minimises, and its optimizer's step.

Of each turn: forward under autocast (in the method), backward into that player's parameters only,
optimizer step. Once an iteration the schedules advance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mosaickd.engine import distributed
from mosaickd.engine.batch_norm import running_statistics
from mosaickd.engine.batch_sampler import BatchSampler
from mosaickd.engine.player import Player
from mosaickd.methods.base import Batch, Method

Autocast = Callable[[], AbstractContextManager[object]]
AfterTurn = Callable[[str], None]


@dataclass
class StepOutput:
    """What a turn was: its player, its raw losses and their weights."""

    player: str
    losses: dict[str, Tensor]
    weights: dict[str, float]


class Trainer:
    """A method and its players: plays iterations. All state but the loop's bookkeeping is here."""

    def __init__(
        self, method: Method, players: Mapping[str, Player], autocast: Autocast = nullcontext
    ) -> None:
        self.method = method
        self.players = players
        self.autocast = autocast
        self.running = running_statistics([p.module for p in players.values()])

    def iterate(self, batch: Batch, after_turn: AfterTurn | None = None) -> list[StepOutput]:
        """Play one iteration, then advance the schedules: once, however many turns there were."""
        played = self.play(batch, after_turn)
        self.advance_schedules(played)
        return played

    def next_iteration(self, sampler: BatchSampler) -> list[StepOutput]:
        """Play one iteration on what the sampler deals."""
        return self.iterate(sampler.make_batch(sampler.sample_indices()))

    def play(self, batch: Batch, after_turn: AfterTurn | None = None) -> list[StepOutput]:
        """All turns of one iteration. Nothing here waits for the device.

        after_turn: called with each turn's player (benchmarks).
        """
        played = []
        turns = self.method.turns(batch)
        while True:
            with self.autocast():
                turn = next(turns, None)
            if turn is None:
                break
            self.players[turn.player].step(turn.objective(), turn.reset_optimizer)
            played.append(
                StepOutput(
                    turn.player,
                    {name: loss.value.detach() for name, loss in turn.losses.items()},
                    {name: loss.weight for name, loss in turn.losses.items()},
                )
            )
            if after_turn:
                after_turn(turn.player)
        distributed.all_reduce_mean(self.running)
        return played

    def advance_schedules(self, played: list[StepOutput]) -> None:
        """Of those who had a turn: in a method of several phases, nobody's rate falls unused."""
        for name in {turn.player for turn in played}:
            self.players[name].schedule.step()

    def train(self) -> None:
        """Every trained module in training mode, throughout: the paper's runs did so."""
        for player in self.players.values():
            player.module.train()

    def state_dict(self) -> dict[str, Any]:
        return {
            "players": {name: player.state_dict() for name, player in self.players.items()},
            "method": self.method.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, player in self.players.items():
            player.load_state_dict(state["players"][name])
        self.method.load_state_dict(state["method"])
