"""One iteration: the method yields turns, and each turn's player takes an optimizer step.

Of each turn: forward under autocast (in the method), backward into that player's parameters only,
optimizer step. Once an iteration the schedules advance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mosaickd.engine import distributed
from mosaickd.engine.batch_sampler import BatchSampler
from mosaickd.engine.player import Player
from mosaickd.errors import UserError
from mosaickd.methods.base import Batch, Method

Autocast = Callable[[], AbstractContextManager[object]]
AfterTurn = Callable[[str], None]


@dataclass
class StepOutput:
    """What a turn came to: its player, its raw losses (scalars) and their weights."""

    player: str
    losses: dict[str, Tensor]
    weights: dict[str, float]


class Trainer:
    """A method and its players; all state of the training but the loop's bookkeeping is here."""

    def __init__(
        self, method: Method, players: Mapping[str, Player], autocast: Autocast = nullcontext
    ) -> None:
        self.method = method
        self.players = players
        self.autocast = autocast
        self.running = running_statistics([p.module for p in players.values()])

    def train_step(self, batch: Batch, after_turn: AfterTurn | None = None) -> list[StepOutput]:
        """Take one iteration on `batch`: all turns, then the schedules advance once."""
        outputs = self.play_turns(batch, after_turn)
        self.advance_schedules(outputs)
        return outputs

    def next_step(self, sampler: BatchSampler) -> list[StepOutput]:
        """Take one iteration on the sampler's next batch."""
        return self.train_step(sampler.make_batch(sampler.sample_indices()))

    def play_turns(self, batch: Batch, after_turn: AfterTurn | None = None) -> list[StepOutput]:
        """Play all turns of one iteration. Nothing here waits for the device.

        after_turn: called with each turn's player (benchmarks).
        """
        outputs = []
        turns = self.method.turns(batch)
        while True:
            with self.autocast():
                turn = next(turns, None)
            if turn is None:
                break
            if turn.player not in self.players:
                raise UserError(
                    f"{type(self.method).__name__} yields a turn of {turn.player!r}, and its "
                    f"players are {', '.join(self.players)}"
                )
            self.players[turn.player].step(turn.objective(), turn.reset_optimizer)
            outputs.append(
                StepOutput(
                    turn.player,
                    {name: loss.value.detach() for name, loss in turn.losses.items()},
                    {name: loss.weight for name, loss in turn.losses.items()},
                )
            )
            if after_turn:
                after_turn(turn.player)
        distributed.all_reduce_mean(self.running)
        return outputs

    def advance_schedules(self, outputs: list[StepOutput]) -> None:
        """Advance those of the players that had a turn: in phases, nobody's rate falls unused."""
        for name in {output.player for output in outputs}:
            self.players[name].schedule.step()

    def train_mode(self) -> None:
        """Put every trained module into training mode, throughout: the paper's runs did so."""
        for player in self.players.values():
            player.module.train()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all players and of the method."""
        return {
            "players": {name: player.state_dict() for name, player in self.players.items()},
            "method": self.method.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        for name, player in self.players.items():
            player.load_state_dict(state["players"][name])
        self.method.load_state_dict(state["method"])


def running_statistics(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Return the running means and variances of the modules' batch norms.

    Their mean over the ranks is what a batch norm would remember whose statistics were averaged at
    every step: remembering is linear.
    """
    norms = [
        norm for module in modules for norm in module.modules() if isinstance(norm, _BatchNorm)
    ]
    tensors = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
    return [tensor for tensor in tensors if tensor is not None]
