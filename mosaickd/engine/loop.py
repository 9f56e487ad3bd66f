"""The one training loop: plays every method's game (`engine.game`), and around that evaluates,
writes checkpoints, logs, and stops on non-finite losses.

Several processes may play together (`engine.distribution`): each the same iterations on its part
of every batch. They evaluate together; the first one writes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mosaickd import metric_names
from mosaickd.engine import distributed
from mosaickd.engine.batch_sampler import BatchSampler
from mosaickd.engine.checkpoint import CheckpointWriter, load_checkpoint, newest_readable
from mosaickd.engine.device import eagerly
from mosaickd.engine.evaluate import Accuracy, evaluate
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.engine.metrics import MetricsFile, sample_grid
from mosaickd.engine.progress import Progress
from mosaickd.engine.samples import SampleReport
from mosaickd.engine.trackers import Tracker
from mosaickd.engine.trainer import StepOutput, Trainer
from mosaickd.errors import UserError
from mosaickd.files import write_json
from mosaickd.locks import check_run_lock

log = logging.getLogger(__name__)

#: Of a run's folder: how the student did on each class at its last evaluation.
PER_CLASS = "per_class.json"


@dataclass
class TrainState:
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


class Term(NamedTuple):
    """One loss of one turn."""

    name: str  # player/loss
    value: float
    weight: float


@dataclass
class TrainingLoop:
    """Plays a game to its end, from wherever its run folder's checkpoint says it stands."""

    game: Trainer
    sampler: BatchSampler
    test: Iterable[tuple[Tensor, Tensor]]
    student: nn.Module
    folder: Path
    steps: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    check_every: int  # iterations after which a loss that is not finite is noticed, at most
    batch_size: int
    tracker: Tracker
    progress: Progress
    interruption: Interruption
    shared_rng: Mapping[str, Any]  # anything else with a state: noise that processes share
    per_rank_rng: Mapping[str, Any]  # and random numbers that each process has for itself
    provenance: Mapping[str, Any]  # what a checkpoint says of settings, code, images and teacher
    classes: Sequence[str]  # names of the test images' classes
    look: Callable[[Path, int], SampleReport]  # draws the sample grids, and says what is in them
    on_best: Callable[[TrainState], None]  # called when an evaluation was the best so far
    iterate: Callable[[], list[StepOutput]]  # the game's next iteration, or its captured CUDA graph

    def __post_init__(self) -> None:
        self.state = TrainState()
        self.metrics = MetricsFile(self.folder / "metrics.jsonl")
        self.writer = CheckpointWriter(self.folder / "checkpoints" / "last.pt", self.offer)
        self._pending: list[tuple[int, list[StepOutput]]] = []  # on the device
        self._fetched: list[Term] = []
        self._iterations = 0  # that the fetched losses are of
        self._flushed_at = time.perf_counter()
        self._started = time.perf_counter()

    # ------------------------------------------------------------------------------ the story

    def fit(self) -> TrainState:
        """Play until the last iteration. Raises Interrupted (after saving), NonFiniteLoss."""
        self.resume()
        self.game.train()
        self._started = self._flushed_at = time.perf_counter()
        with self.interruption.deferred():
            try:
                while True:
                    if self.due(self.eval_every) and self.state.evaluated != self.state.step:
                        self.flush()
                        self.evaluate()
                    if self.state.step >= self.steps:
                        break
                    if self.due(self.checkpoint_every):
                        self.checkpoint()
                    self.play()
                    if self.state.step % self.log_every == 0 or self.state.step == 1:
                        self.flush()
                    elif len(self._pending) >= self.check_every:
                        self.fetch()
                    self.interruption.check(distributed.all_reduce_max)
                self.checkpoint()
            except Interrupted:
                self.checkpoint()
                raise
            finally:
                self.count_time()
                self.writer.close()
        return self.state

    def due(self, every: int) -> bool:
        """At multiples of `every` and at the end; never at the start."""
        step = self.state.step
        return step > 0 and (step % every == 0 or step == self.steps)

    def play(self) -> None:
        """One iteration on the next draw of every stream."""
        played = self.iterate()
        self.state.step += 1
        self._pending.append((self.state.step, played))
        self.progress.advance(self.state.step)

    # ------------------------------------------------------------------------------ bookkeeping

    def fetch(self) -> None:
        """Bring the pending losses from the device in one transfer. Raises NonFiniteLoss."""
        terms = [
            (step, turn.player, name, turn.weights[name], loss.float())
            for step, played in self._pending
            for turn in played
            for name, loss in turn.losses.items()
        ]
        if not terms:
            return
        stacked = torch.stack([loss for *_, loss in terms])
        distributed.all_reduce_mean([stacked])
        for (step, player, name, weight, _), value in zip(terms, stacked.tolist(), strict=True):
            if not math.isfinite(value):
                raise NonFiniteLoss(player, f"loss {name!r} is {value} at step {step}")
            self._fetched.append(Term(f"{player}/{name}", value, weight))
        self._iterations += len(self._pending)
        self._pending.clear()

    def flush(self) -> None:
        """Check, log and show the losses since the last flush."""
        self.fetch()
        if not self._fetched:
            return
        check_run_lock(self.folder)
        now = time.perf_counter()
        seconds = (now - self._flushed_at) / self._iterations
        self._flushed_at, self._iterations = now, 0
        raw: dict[str, list[float]] = {}
        weighted: dict[str, list[float]] = {}
        for term in self._fetched:
            raw.setdefault(term.name, []).append(term.value)
            weighted.setdefault(term.name, []).append(term.value * term.weight)
        self._fetched.clear()
        means = {name: sum(v) / len(v) for name, v in raw.items()}
        players = self.game.players.items()
        self.log(
            {
                **{metric_names.loss(name): value for name, value in means.items()},
                **{metric_names.weighted(n): sum(v) / len(v) for n, v in weighted.items()},
                **{metric_names.learning_rate(n): player.learning_rate for n, player in players},
                metric_names.SECONDS_PER_STEP: seconds,
                metric_names.IMAGES_PER_SECOND: self.batch_size / seconds,
                metric_names.PEAK_MEMORY: peak_memory_mb(next(self.student.parameters()).device),
            }
        )
        self.progress.show(means, seconds)

    def check_alone(self) -> None:
        """Stop in the middle of something, if no other process is in the middle of it too."""
        if distributed.world_size() == 1:
            self.interruption.check()

    def log(self, record: dict[str, Any]) -> None:
        """Of metrics by the names that `metric_names` has."""
        if not distributed.is_rank0():
            return
        now = round(time.time(), 3)
        self.metrics.append({metric_names.STEP: self.state.step, metric_names.TIME: now, **record})
        self.tracker.log(self.state.step, record)

    def evaluate(self) -> None:
        """Measure the student, draw the samples, remember the best."""
        self.check_weights()  # of ruined ones no accuracy is kept
        self.progress.evaluation()
        with eagerly():
            result = evaluate(
                self.student,
                self.test,
                autocast=self.game.autocast,
                check=self.check_alone,
            )
        accuracy = self.state.accuracy
        accuracy.update(last=round(result.top1, 4), top5_last=round(result.top5, 4))
        is_best = accuracy["best"] is None or accuracy["last"] > accuracy["best"]
        if is_best:
            accuracy.update(best=accuracy["last"], best_step=self.state.step)
            if distributed.is_rank0():
                self.on_best(self.state)
        self.state.evaluated = self.state.step
        if distributed.is_rank0():
            path = sample_grid(self.folder, self.state.step)
            with eagerly():
                seen = self.look(path, self.state.step)
            self.log(
                {
                    metric_names.TOP1: accuracy["last"],
                    metric_names.TOP5: accuracy["top5_last"],
                    metric_names.BEST: accuracy["best"],
                    **seen.metrics,
                }
            )
            if seen.drawn:
                self.tracker.image(self.state.step, metric_names.SAMPLES, path)
            write_json(self.folder / PER_CLASS, by_class(self.classes, result, self.state.step))
        self.progress.evaluated(self.state.step, result, accuracy["best"])
        self._flushed_at = time.perf_counter()  # evaluation is not the iterations' time

    # ------------------------------------------------------------------------------ checkpoints

    def checkpoint(self) -> None:
        """Everything that a resumed run needs to go on as if it had never stopped."""
        self.flush()  # a non-finite loss must stop the run before it reaches a checkpoint
        self.check_weights()
        check_run_lock(self.folder)
        self.count_time()
        own = {name: part.state_dict() for name, part in self.per_rank_rng.items()}
        processes = distributed.gather_states(own)
        if not distributed.is_rank0():
            return
        self.writer.save(
            {
                "provenance": dict(self.provenance),
                "progression": vars(self.state),
                "trainer": self.game.state_dict(),
                "loaders": self.sampler.state_dict(),
                "shared_rng": {name: part.state_dict() for name, part in self.shared_rng.items()},
                "processes": processes,
            }
        )

    def offer(self, state: dict[str, Any]) -> None:
        """A checkpoint has reached the disk."""
        self.tracker.file(state["progression"]["step"], "checkpoint", self.writer.path)

    def count_time(self) -> None:
        now = time.perf_counter()
        self.state.seconds += now - self._started
        self._started = now

    def check_weights(self) -> None:
        """The last step may have ruined weights, or statistics, that no loss has seen yet."""
        for name, player in self.game.players.items():
            state = [*player.parameters, *player.module.buffers()]
            finite = torch.stack([s.isfinite().all() for s in state if s.is_floating_point()])
            if not finite.all():
                raise NonFiniteLoss(name, f"weights are not finite after step {self.state.step}")

    def resume(self) -> None:
        """Go on from the folder's newest checkpoint that can be read, if it has one."""
        path = distributed.rank0_only(lambda: newest_readable(self.writer.path))
        if path is None:
            self.forget_later()
            return
        state = load_checkpoint(path)
        self.check_provenance(path, state.get("provenance", {}))
        try:
            self.game.load_state_dict(state["trainer"])
            self.sampler.load_state_dict(state["loaders"])
            for name, part in self.shared_rng.items():
                part.load_state_dict(state["shared_rng"][name])
            self.state = TrainState(**state["progression"])
            self.resume_per_rank_rng(state["processes"])
        except Exception as error:  # of a file that holds anything
            raise UserError(
                f"{path} does not fit this run ({error}); "
                "start anew with force=true, or choose another hydra.run.dir=FOLDER"
            ) from error
        self.forget_later()
        log.info("resumed at step %d of %d", self.state.step, self.steps)

    def check_provenance(self, path: Path, before: Mapping[str, Any]) -> None:
        """A run goes on with the images and the teacher that it began with, or not at all."""
        changed = [
            f"{key}: {before[key]} -> {now}"
            for key, now in self.provenance.items()
            if key in before and before[key] != now and key != "code"
        ]
        if changed:
            raise UserError(
                f"{path} was made with other images, another teacher or other settings "
                f"({'; '.join(changed)}). Bring back what it was begun with, choose another "
                "hydra.run.dir=FOLDER, or start anew with force=true"
            )
        if before.get("code", self.provenance.get("code")) != self.provenance.get("code"):
            log.warning("%s was written by other code (%s) than now goes on with it (%s)",
                        path, before["code"], self.provenance["code"])  # fmt: skip

    def resume_per_rank_rng(self, processes: list[dict[str, Any]]) -> None:
        """Each process takes up its own random numbers, if they are as many as they were."""
        before, now = len(processes), distributed.world_size()
        if before == now:
            for name, part in self.per_rank_rng.items():
                part.load_state_dict(processes[distributed.rank()][name])
            return
        for part in self.per_rank_rng.values():
            part.reseed(self.state.step)
        log.warning(
            "resumed by %d processes what %d began. The same: which images and which noise come, "
            "learning rates, losses averaged over a batch. Not the same: batch norms, and losses "
            "that compare the images of a batch, now see %d images at a time in place of %d; "
            "random numbers of the method's own and of PyTorch (dropout) begin anew",
            now, before, self.batch_size // now, self.batch_size // before,
        )  # fmt: skip

    def forget_later(self) -> None:
        """What lies after the checkpoint is to come again: until then it isn't there."""
        if not distributed.is_rank0():
            return
        self.metrics.truncate(self.state.step, self.state.evaluated)
        for path in (self.folder / "samples").glob("step*.png"):
            if path > sample_grid(self.folder, self.state.evaluated):
                path.unlink()
        if self.state.evaluated < 0:
            (self.folder / PER_CLASS).unlink(missing_ok=True)
        self.tracker.resume(self.state.step)


def by_class(classes: Sequence[str], measured: Accuracy, step: int) -> dict[str, Any]:
    """What per_class.json holds: of each class its test images and how many of them are right."""
    rows = [
        {"class": name, "images": images, "right": right}
        for name, (right, images) in zip(classes, measured.by_class, strict=False)
    ]
    return {"step": step, "classes": rows}


def peak_memory_mb(device: torch.device) -> float:
    """The most memory that tensors (CUDA) or the process (CPU) ever held, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on Windows, where no one trains

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
