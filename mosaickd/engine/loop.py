"""The one training loop: takes every method's steps, and around them evaluates, writes checkpoints,
logs, and stops on losses that are not finite.

Under torchrun each rank runs it on its part of every batch. They evaluate together; rank 0 writes.
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
from mosaickd.engine.device import eagerly, peak_memory_mb
from mosaickd.engine.evaluate import evaluate
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.engine.progress import Progress
from mosaickd.engine.samples import SampleLogger
from mosaickd.engine.settings import TrainSettings
from mosaickd.engine.trackers import Tracker
from mosaickd.engine.trainer import StepOutput, Trainer
from mosaickd.errors import UserError
from mosaickd.models.weights import save_weights
from mosaickd.run_dir import RunDir, no_accuracy
from mosaickd.utils.locks import check_run_lock

log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Where a run stands: the loop's part of a checkpoint. seconds: over all sessions."""

    step: int = 0
    evaluated: int = -1  # the last step that was evaluated
    seconds: float = 0.0
    accuracy: dict[str, Any] = field(default_factory=no_accuracy)


class NonFiniteLoss(UserError):
    """A loss became NaN or infinite: nothing after that step is worth keeping."""

    def __init__(self, player: str, reason: str) -> None:
        super().__init__(player, reason)  # what pickle calls the class with again

    def __str__(self) -> str:
        player, reason = self.args
        return (
            f"the {player}'s {reason}; stopped. The last good checkpoint is kept. Try a smaller "
            f"learning rate (players.{player}.optimizer.lr), train.clip=1 or train.precision=fp32"
        )


class Term(NamedTuple):
    """One loss of one turn. name: player/loss."""

    name: str
    value: float
    weight: float


@dataclass
class TrainingLoop:
    """Trains to the last step, from wherever the run's checkpoint says it stands.

    iterate: takes the next iteration, eagerly or by a CUDA graph. shared_rng, per_rank_rng: random
    generators that all ranks draw from alike, and that each has for itself. provenance: what a
    checkpoint says of settings, code, images and teacher. classes: names of the test classes.
    """

    trainer: Trainer
    sampler: BatchSampler
    iterate: Callable[[], list[StepOutput]]
    student: nn.Module
    test_batches: Iterable[tuple[Tensor, Tensor]]
    classes: Sequence[str]
    run: RunDir
    settings: TrainSettings
    steps: int
    eval_every: int
    tracker: Tracker
    progress: Progress
    interruption: Interruption
    sample_logger: SampleLogger
    shared_rng: Mapping[str, Any]
    per_rank_rng: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.state = TrainState()
        self.writer = CheckpointWriter(self.run.checkpoint, self.offer_checkpoint)
        self.checkpoint_every = self.settings.checkpoint_every or self.eval_every
        self._pending: list[tuple[int, list[StepOutput]]] = []  # on the device
        self._terms: list[Term] = []  # fetched, not logged yet
        self._iterations = 0  # that the fetched terms are of
        self._flushed_at = time.perf_counter()
        self._started = time.perf_counter()

    # ------------------------------------------------------------------------------ the story

    def fit(self) -> TrainState:
        """Train until the last step. Raises Interrupted (after saving) and NonFiniteLoss."""
        self.resume()
        self.trainer.train_mode()
        self._started = self._flushed_at = time.perf_counter()
        with self.interruption.deferred():
            try:
                while True:
                    if self.is_due(self.eval_every) and self.state.evaluated != self.state.step:
                        self.flush()
                        self.evaluate()
                    if self.state.step >= self.steps:
                        break
                    if self.is_due(self.checkpoint_every):
                        self.save_checkpoint()
                    self.step()
                    if self.state.step % self.settings.log_every == 0 or self.state.step == 1:
                        self.flush()
                    elif len(self._pending) >= self.settings.check_every:
                        self.fetch()
                    self.interruption.check(distributed.all_reduce_max)
                self.save_checkpoint()
            except Interrupted:
                self.save_checkpoint()
                raise
            finally:
                self.count_time()
                self.writer.close()
        return self.state

    def is_due(self, every: int) -> bool:
        """Return whether it is a multiple of `every`, or the end; never at the start."""
        step = self.state.step
        return step > 0 and (step % every == 0 or step == self.steps)

    def step(self) -> None:
        """Take one iteration."""
        outputs = self.iterate()
        self.state.step += 1
        self._pending.append((self.state.step, outputs))
        self.progress.advance(self.state.step)

    # ------------------------------------------------------------------------------ bookkeeping

    def fetch(self) -> None:
        """Bring the pending losses from the device in one transfer. Raises NonFiniteLoss."""
        terms = [
            (step, turn.player, name, turn.weights[name], loss.float())
            for step, outputs in self._pending
            for turn in outputs
            for name, loss in turn.losses.items()
        ]
        if not terms:
            return
        stacked = torch.stack([loss for *_, loss in terms])
        distributed.all_reduce_mean([stacked])
        for (step, player, name, weight, _), value in zip(terms, stacked.tolist(), strict=True):
            if not math.isfinite(value):
                raise NonFiniteLoss(player, f"loss {name!r} is {value} at step {step}")
            self._terms.append(Term(f"{player}/{name}", value, weight))
        self._iterations += len(self._pending)
        self._pending.clear()

    def flush(self) -> None:
        """Check, log and show the losses since the last flush."""
        self.fetch()
        if not self._terms:
            return
        check_run_lock(self.run.path)
        now = time.perf_counter()
        seconds = (now - self._flushed_at) / self._iterations
        self._flushed_at, self._iterations = now, 0
        raw: dict[str, list[float]] = {}
        weighted: dict[str, list[float]] = {}
        for term in self._terms:
            raw.setdefault(term.name, []).append(term.value)
            weighted.setdefault(term.name, []).append(term.value * term.weight)
        self._terms.clear()
        means = {name: sum(v) / len(v) for name, v in raw.items()}
        players = self.trainer.players.items()
        self.log(
            {
                **{metric_names.loss(name): value for name, value in means.items()},
                **{metric_names.weighted(n): sum(v) / len(v) for n, v in weighted.items()},
                **{metric_names.learning_rate(n): player.learning_rate for n, player in players},
                metric_names.SECONDS_PER_STEP: seconds,
                metric_names.IMAGES_PER_SECOND: self.settings.batch_size / seconds,
                metric_names.PEAK_MEMORY: peak_memory_mb(next(self.student.parameters()).device),
            }
        )
        self.progress.show(means, seconds)

    def log(self, record: dict[str, Any]) -> None:
        """Log metrics of this step, by the names of `metric_names`."""
        if not distributed.is_rank0():
            return
        now = round(time.time(), 3)
        self.run.append_metrics(
            {metric_names.STEP: self.state.step, metric_names.TIME: now, **record}
        )
        self.tracker.log(self.state.step, record)

    def evaluate(self) -> None:
        """Measure the student, draw the samples, keep the best.

        A single process stops at once when asked to: the evaluation comes again on resuming.
        """
        self.check_weights()  # of ruined ones no accuracy is kept
        self.progress.evaluation()
        with self.interruption.immediate(distributed.world_size() == 1), eagerly():
            measured = evaluate(self.student, self.test_batches, autocast=self.trainer.autocast)
        accuracy = self.state.accuracy
        previous_best = accuracy["best"]
        last, top5 = round(measured.top1, 4), round(measured.top5, 4)
        is_best = previous_best is None or last > previous_best
        best = last if is_best else previous_best
        if distributed.is_rank0():
            path = self.run.sample(self.state.step)
            with self.interruption.immediate(distributed.world_size() == 1), eagerly():
                report = self.sample_logger(path, self.state.step)
            if is_best:
                metadata = {"step": self.state.step, "accuracy": last}
                save_weights(self.student, self.run.best_student, metadata)
            names = (metric_names.TOP1, metric_names.TOP5, metric_names.BEST)
            self.log(dict(zip(names, (last, top5, best), strict=True)) | report.metrics)
            if report.drawn:
                self.tracker.image(self.state.step, metric_names.SAMPLES, path)
            rows = [
                {"class": name, "images": images, "right": right}
                for name, (right, images) in zip(self.classes, measured.by_class, strict=False)
            ]
            self.run.write_per_class(self.state.step, rows)
        accuracy.update(last=last, top5_last=top5, best=best)
        if is_best:
            accuracy.update(best_step=self.state.step)
        self.state.evaluated = self.state.step
        self.progress.evaluated(self.state.step, measured, best)
        self._flushed_at = time.perf_counter()  # evaluation is not the iterations' time

    # ------------------------------------------------------------------------------ checkpoints

    def save_checkpoint(self) -> None:
        """Save everything that a resumed run needs to go on as if it had never stopped."""
        self.flush()  # a non-finite loss must stop the run before it reaches a checkpoint
        self.check_weights()
        check_run_lock(self.run.path)
        self.count_time()
        own = {name: part.state_dict() for name, part in self.per_rank_rng.items()}
        per_rank = distributed.gather_states(own)
        if not distributed.is_rank0():
            return
        self.writer.save(
            {
                "provenance": dict(self.provenance),
                "state": vars(self.state),
                "trainer": self.trainer.state_dict(),
                "loaders": self.sampler.state_dict(),
                "shared_rng": {name: part.state_dict() for name, part in self.shared_rng.items()},
                "per_rank_rng": per_rank,
            }
        )

    def offer_checkpoint(self, state: dict[str, Any]) -> None:
        """Tell the tracker of a checkpoint that has reached the disk."""
        self.tracker.file(state["state"]["step"], "checkpoint", self.writer.path)

    def count_time(self) -> None:
        """Add the time since the last count to the run's."""
        now = time.perf_counter()
        self.state.seconds += now - self._started
        self._started = now

    def check_weights(self) -> None:
        """Raise NonFiniteLoss where the last step has ruined weights that no loss shows yet."""
        for name, player in self.trainer.players.items():
            tensors = [*player.parameters, *player.module.buffers()]
            finite = torch.stack([t.isfinite().all() for t in tensors if t.is_floating_point()])
            if not finite.all():
                raise NonFiniteLoss(name, f"weights are not finite after step {self.state.step}")

    def resume(self) -> None:
        """Go on from the run's newest checkpoint that can be read, if it has one."""
        path = distributed.rank0_only(lambda: newest_readable(self.writer.path))
        if path is not None:
            checkpoint = load_checkpoint(path)
            self.check_provenance(path, checkpoint["provenance"])
            try:
                self.trainer.load_state_dict(checkpoint["trainer"])
                self.sampler.load_state_dict(checkpoint["loaders"])
                for name, part in self.shared_rng.items():
                    part.load_state_dict(checkpoint["shared_rng"][name])
                self.state = TrainState(**checkpoint["state"])
                self.resume_per_rank_rng(checkpoint["per_rank_rng"])
            except Exception as error:  # of a file that holds anything
                raise UserError(
                    f"{path} does not fit this run ({error}); "
                    "start anew with force=true, or choose another hydra.run.dir=FOLDER"
                ) from error
            log.info("resumed at step %d of %d", self.state.step, self.steps)
        if distributed.is_rank0():  # what lies after the checkpoint is to come again
            self.run.truncate(self.state.step, self.state.evaluated)
            self.tracker.resume(self.state.step)

    def check_provenance(self, path: Path, before: Mapping[str, Any]) -> None:
        """Raise UserError where the run would go on with other images or another teacher."""
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
        if before["code"] != self.provenance["code"]:
            log.warning("%s was written by other code (%s) than now goes on with it (%s)",
                        path, before["code"], self.provenance["code"])  # fmt: skip

    def resume_per_rank_rng(self, per_rank: list[dict[str, Any]]) -> None:
        """Let each rank take up its own random numbers, if there are as many ranks as before."""
        before, now = len(per_rank), distributed.world_size()
        if before == now:
            for name, part in self.per_rank_rng.items():
                part.load_state_dict(per_rank[distributed.rank()][name])
            return
        for part in self.per_rank_rng.values():
            part.reseed(self.state.step)
        batch = self.settings.batch_size
        log.warning(
            "resumed by %d processes what %d began. The same: which images and which noise come, "
            "learning rates, losses averaged over a batch. Not the same: batch norms, and losses "
            "that compare the images of a batch, now see %d images at a time in place of %d; "
            "random numbers of the method's own and of PyTorch (dropout) begin anew",
            now, before, batch // now, batch // before,
        )  # fmt: skip
