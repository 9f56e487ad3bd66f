"""The one training loop: every method's turns are played here.

For each turn: forward under autocast (in the method), backward into that player's parameters
only, optimizer step. Once an iteration the schedules advance. Around that: evaluation,
checkpoints, logging and stopping on non-finite losses.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mosaickd.engine.checkpoint import load_checkpoint, save_checkpoint
from mosaickd.engine.evaluate import Accuracy, evaluate
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.engine.metrics import MetricsFile
from mosaickd.engine.player import Player
from mosaickd.engine.progress import Progress
from mosaickd.engine.trackers import Tracker
from mosaickd.errors import UserError
from mosaickd.methods.base import Batch, Images, Method

log = logging.getLogger(__name__)

Autocast = Callable[[], AbstractContextManager[object]]
AfterTurn = Callable[[str], None]


class Loader(Protocol):
    def __next__(self) -> tuple[Tensor, Tensor, Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Played:
    """What a turn was: its player, its raw losses and their weights."""

    player: str
    losses: dict[str, Tensor]
    weights: dict[str, float]


class Game:
    """A method and its players: plays iterations. All state but the loop's bookkeeping is here."""

    def __init__(
        self, method: Method, players: Mapping[str, Player], autocast: Autocast = nullcontext
    ) -> None:
        self.method = method
        self.players = players
        self.autocast = autocast

    def iterate(self, batch: Batch, after_turn: AfterTurn | None = None) -> list[Played]:
        """Play one iteration, then advance the schedules: once, however many turns there were."""
        played = self.play(batch, after_turn)
        self.advance_schedules(played)
        return played

    def play(self, batch: Batch, after_turn: AfterTurn | None = None) -> list[Played]:
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
            self.players[turn.player].step(turn.objective(), turn.restart)
            played.append(
                Played(
                    turn.player,
                    {name: loss.value.detach() for name, loss in turn.losses.items()},
                    {name: loss.weight for name, loss in turn.losses.items()},
                )
            )
            if after_turn:
                after_turn(turn.player)
        return played

    def advance_schedules(self, played: list[Played]) -> None:
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


@dataclass
class Progression:
    """Where a run stands: the loop's part of a checkpoint."""

    step: int = 0
    evaluated: int = -1  # the last step that was evaluated
    seconds: float = 0.0  # spent so far, over all sessions of the run
    accuracy: dict[str, Any] = field(
        default_factory=lambda: {"last": None, "best": None, "best_step": None, "top5_last": None}
    )


class NonFiniteLoss(UserError):
    """A loss became NaN or infinite: nothing after that step is worth keeping."""

    def __init__(self, player: str, what: str) -> None:
        super().__init__(player, what)  # what pickle calls the class with again

    def __str__(self) -> str:
        player, what = self.args
        return (
            f"the {player}'s {what}; stopped. The last good checkpoint is kept. Try a smaller "
            f"learning rate (players.{player}.optimizer.lr), train.clip=1 or train.precision=fp32"
        )


@dataclass
class Loop:
    """Plays a game to its end, from wherever its run folder's checkpoint says it stands."""

    game: Game
    loaders: Mapping[str, Loader]  # by the method's stream names
    test: Iterable[tuple[Tensor, Tensor]]
    student: nn.Module
    folder: Path
    steps: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    batch_size: int
    tracker: Tracker
    progress: Progress
    interruption: Interruption
    stateful: Mapping[str, Any]  # anything else with a state: noise generators
    draw_samples: Callable[[Path], bool]  # draws the sample grids; False: nothing to draw
    on_best: Callable[[Progression], None]  # called when an evaluation was the best so far
    iterate: Callable[[Batch], list[Played]]  # the game's own, or its captured CUDA graph

    def __post_init__(self) -> None:
        self.at = Progression()
        self.metrics = MetricsFile(self.folder / "metrics.jsonl")
        self._pending: list[tuple[int, list[Played]]] = []
        self._flushed_at = time.perf_counter()
        self._started = time.perf_counter()

    # ------------------------------------------------------------------------------ the story

    def fit(self) -> Progression:
        """Play until the last iteration. Raises Interrupted (after saving), NonFiniteLoss."""
        self.resume()
        self.game.train()
        self._started = self._flushed_at = time.perf_counter()
        with self.interruption.deferred():
            try:
                while True:
                    if self.due(self.eval_every) and self.at.evaluated != self.at.step:
                        self.flush()
                        self.evaluate()
                    if self.at.step >= self.steps:
                        break
                    if self.due(self.checkpoint_every):
                        self.checkpoint()
                    self.play()
                    if self.at.step % self.log_every == 0 or self.at.step == 1:
                        self.flush()
                    self.interruption.check()
                self.checkpoint()
            except Interrupted:
                self.checkpoint()
                raise
            finally:
                self.count_time()
        return self.at

    def due(self, every: int) -> bool:
        """At multiples of `every` and at the end; never at the start."""
        step = self.at.step
        return step > 0 and (step % every == 0 or step == self.steps)

    def play(self) -> None:
        """One iteration on the next draw of every stream."""
        streams = self.game.method.streams
        batch = {
            name: [Images(*next(self.loaders[name])) for _ in range(stream.draws)]
            for name, stream in streams.items()
        }
        played = self.iterate(batch)
        self.at.step += 1
        self._pending.append((self.at.step, played))
        self.progress.advance(self.at.step)

    # ------------------------------------------------------------------------------ bookkeeping

    def flush(self) -> None:
        """Fetch the losses since the last flush in one transfer; check, log and show them."""
        if not self._pending:
            return
        terms = [
            (step, turn.player, name, turn.weights[name])
            for step, played in self._pending
            for turn in played
            for name in turn.losses
        ]
        losses = [loss for _, played in self._pending for t in played for loss in t.losses.values()]
        values = torch.stack([loss.float() for loss in losses]).tolist()
        for (step, player, name, _), value in zip(terms, values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteLoss(player, f"loss {name!r} is {value} at step {step}")
        now = time.perf_counter()
        seconds = (now - self._flushed_at) / len(self._pending)
        self._flushed_at = now
        raw: dict[str, list[float]] = {}
        weighted: dict[str, list[float]] = {}
        for (_, player, name, weight), value in zip(terms, values, strict=True):
            raw.setdefault(f"{player}/{name}", []).append(value)
            weighted.setdefault(f"{player}/{name}", []).append(value * weight)
        self._pending.clear()
        means = {name: sum(v) / len(v) for name, v in raw.items()}
        record = {
            "losses": means,
            "weighted": {name: sum(v) / len(v) for name, v in weighted.items()},
            "learning_rate": {n: p.learning_rate for n, p in self.game.players.items()},
            "seconds_per_step": seconds,
            "images_per_second": self.batch_size / seconds,
            "memory_mb": peak_memory_mb(next(self.student.parameters()).device),
        }
        self.log(record)
        self.progress.show(means, seconds)

    def log(self, record: dict[str, Any]) -> None:
        self.metrics.append({"step": self.at.step, **record})
        self.tracker.log(self.at.step, record)

    def evaluate(self) -> None:
        """Measure the student, draw the samples, remember the best."""
        with torch.compiler.set_stance("force_eager"):  # a batch size or two more to compile for
            result = evaluate(
                self.student,
                self.test,
                autocast=self.game.autocast,
                check=self.interruption.check,
            )
        accuracy = self.at.accuracy
        accuracy.update(last=round(result.top1, 4), top5_last=round(result.top5, 4))
        is_best = accuracy["best"] is None or accuracy["last"] > accuracy["best"]
        if is_best:
            accuracy.update(best=accuracy["last"], best_step=self.at.step)
            self.on_best(self.at)
        self.at.evaluated = self.at.step
        self.log({"accuracy": accuracy["last"], "top5": accuracy["top5_last"]})
        path = self.folder / "samples" / f"step{self.at.step:07d}.png"
        with torch.compiler.set_stance("force_eager"):
            drawn = self.draw_samples(path)
        if drawn:
            self.tracker.image(self.at.step, "samples", path)
        self.progress.evaluated(self.at.step, Accuracy(result.top1, result.top5), accuracy["best"])
        self._flushed_at = time.perf_counter()  # evaluation is not the iterations' time

    # ------------------------------------------------------------------------------ checkpoints

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoints" / "last.pt"

    def checkpoint(self) -> None:
        """Everything that a resumed run needs to go on as if it had never stopped."""
        self.flush()  # a non-finite loss must stop the run before it reaches a checkpoint
        self.check_weights()
        self.count_time()
        state = {
            "progression": vars(self.at),
            "game": self.game.state_dict(),
            "loaders": {name: loader.state_dict() for name, loader in self.loaders.items()},
            "stateful": {name: part.state_dict() for name, part in self.stateful.items()},
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda_random_states()},
        }
        save_checkpoint(self.checkpoint_path, state)

    def count_time(self) -> None:
        now = time.perf_counter()
        self.at.seconds += now - self._started
        self._started = now

    def check_weights(self) -> None:
        """The last step may have ruined weights that no loss has seen yet."""
        for name, player in self.game.players.items():
            finite = torch.stack([p.isfinite().all() for p in player.parameters])
            if not finite.all():
                raise NonFiniteLoss(name, f"weights are not finite after step {self.at.step}")

    def resume(self) -> None:
        """Go on from the folder's last checkpoint, if it has one."""
        if not self.checkpoint_path.exists():
            self.metrics.truncate(0)
            return
        state = load_checkpoint(self.checkpoint_path)
        try:
            self.game.load_state_dict(state["game"])
            for name, loader in self.loaders.items():
                loader.load_state_dict(state["loaders"][name])
            for name, part in self.stateful.items():
                part.load_state_dict(state["stateful"][name])
            self.at = Progression(**state["progression"])
            torch.set_rng_state(state["random"]["cpu"])
            if len(state["random"]["cuda"]) == len(cuda_random_states()):
                torch.cuda.set_rng_state_all(state["random"]["cuda"])
            else:
                log.warning("another number of CUDA devices: PyTorch's own random numbers (dropout "
                            "in your models) do not go on as they would have")  # fmt: skip
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.checkpoint_path} does not fit this run ({error}); "
                "start anew with force=true, or choose another hydra.run.dir=FOLDER"
            ) from error
        self.metrics.truncate(self.at.step)
        log.info("resumed at step %d of %d", self.at.step, self.steps)


def cuda_random_states() -> list[Tensor]:
    """Of every CUDA device, if this process uses CUDA at all."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def peak_memory_mb(device: torch.device) -> float:
    """The most memory that tensors (CUDA) or the process (CPU) ever held, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on Windows, where no one trains

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
