"""One run's parts, built from its config, and the game played to its end."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from mosaickd import teachers, tracking
from mosaickd.build import (
    build,
    build_players,
    derived_seed,
    scratch_config,
    teacher_path,
    try_players,
)
from mosaickd.components import Parts
from mosaickd.config.run_key import differences, identity
from mosaickd.data.broken import listing
from mosaickd.data.subset import fingerprint
from mosaickd.engine import distributed
from mosaickd.engine.batch_sampler import BatchSampler
from mosaickd.engine.checkpoint import TorchRNG
from mosaickd.engine.device import autocast_for, begin_compiling, choose_device, describe, eagerly
from mosaickd.engine.evaluate import evaluate
from mosaickd.engine.graph import CapturedStep
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.engine.loop import TrainingLoop, TrainState, peak_memory_mb
from mosaickd.engine.progress import Progress
from mosaickd.engine.samples import SampleLogger
from mosaickd.engine.trackers import NoTracker, Tracker
from mosaickd.engine.trainer import StepOutput, Trainer
from mosaickd.errors import UserError
from mosaickd.files import write_atomically
from mosaickd.load_data import Gallery
from mosaickd.locks import check_run_lock, owned
from mosaickd.methods.base import Latents
from mosaickd.models.weights import save_weights, weights_digest
from mosaickd.run_setup import keep_result

log = logging.getLogger(__name__)

SAMPLES = 100  # images a grid
MOST_COUNTED = 1000  # synthetic images whose classes are counted, where there are many classes

#: What result.json and each checkpoint say of where a run's numbers come from.
PROVENANCE = ("config_hash", "code", "data_fingerprint", "teacher_fingerprint")


class Fit:
    """The parts of one run, built in the order in which they can fail: cheap checks first."""

    def __init__(
        self,
        cfg: DictConfig,
        folder: Path,
        interruption: Interruption,
        group: str | None,
        result: dict[str, Any],
        run: Callable[..., dict[str, Any]],
        discard: Callable[[], None] | None = None,
    ) -> None:
        self.cfg = cfg
        self.run = run  # to train a teacher is a run of its own
        self.folder = folder
        self.discard = discard  # the run that lies in the folder, as soon as this one can begin
        self.interruption = interruption
        self.group = group
        self.result = result
        self.device = choose_device(cfg.device, distributed.local_rank())
        self.precision, self.autocast = autocast_for(self.device, cfg.train.precision)
        if cfg.train.cuda_graph and self.device.type != "cuda":
            raise UserError("train.cuda_graph=true needs a CUDA device; this run is on the CPU")
        if cfg.train.deterministic:  # cuBLAS reads this when it is first used
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(cfg.train.deterministic)
        torch.backends.cudnn.benchmark = not cfg.train.deterministic
        torch.backends.cudnn.allow_tf32 = self.precision != "fp32"  # fp32 means float32
        if self.device.type == "cuda":  # streams and graphs take the current device
            torch.cuda.set_device(self.device)
        if cfg.train.compile:
            begin_compiling()
        result["device"] = f"{describe(self.device)}, {self.precision}"

    def fit(self) -> None:
        """Build everything, obtain the teacher, play the game, keep the student."""
        try_players(self.cfg)
        self.look_at_images()
        self.steps, cut_short = self.length()
        game = self.build_game()
        if self.teacher is not None:
            accuracy = self.prepare_teacher(self.steps if cut_short else None)
            self.result["teacher_accuracy"] = accuracy
            self.result["teacher_fingerprint"] = weights_digest(self.teacher)[:16]
            if self.cfg.ood_subset and "ood" in self.gallery.images:
                self.gallery.choose_subset(self.teacher)
        streams = self.method.streams
        sampler = BatchSampler(streams, self.gallery.loaders(streams, self.teacher, self.seed))
        log.info("%s: %d steps of %d images, on %s", self.heading, self.steps,
                 self.cfg.train.batch_size, self.result["device"])  # fmt: skip
        self.play(self.build_loop(game, sampler))

    # ------------------------------------------------------------------------------ the parts

    def look_at_images(self) -> None:
        """Open all image sets, and note what they are and what was left out of them."""
        self.gallery = Gallery(
            self.cfg, device=self.device, autocast=self.autocast, check=self.interruption.check
        )
        self.result["data_fingerprint"] = self.gallery.fingerprints()
        if self.discard is None:
            self.list_broken()
        self.epoch_steps = self.gallery.epoch_steps()

    def length(self) -> tuple[int, bool]:
        """-> steps of this run, and whether its recipe has more."""
        cfg = self.cfg
        recipe: int | None = None
        if cfg.train.epochs and self.epoch_steps:
            recipe = cfg.train.epochs * self.epoch_steps
        steps: int | None = cfg.train.steps or recipe
        if steps is None:
            raise UserError(
                f"method={cfg.method.name} trains on no images, so train.epochs says nothing "
                "without train.epoch_steps: set it, or train.steps"
            )
        return steps, recipe is not None and steps < recipe

    def build_game(self) -> Trainer:
        """Networks, the method, and its players; the same in every process."""
        cfg = self.cfg
        self.parts = Parts(
            cfg,
            device=self.device,
            num_classes=len(self.gallery.test.classes),
            instances=self.gallery.count_of("ood"),
            steps=self.steps,
        )
        self.student, self.teacher = self.parts.student, self.parts.teacher
        self.method = self.parts.method
        if cfg.train.cuda_graph and not self.method.graph_capturable:
            raise UserError(
                f"train.cuda_graph=true captures one iteration for all, and those of method="
                f"{cfg.method.name} are not all alike: leave it out"
            )
        distributed.rank0_only(self.check_shareable)
        for player in self.method.players:
            if self.method.iterations(player, self.steps) == 0:
                log.warning("a run of %d steps is too short for method=%s: the %s never has a turn",
                            self.steps, cfg.method.name, player)  # fmt: skip
        game = Trainer(self.method, build_players(cfg, self.method, self.steps), self.autocast)
        distributed.broadcast(
            *(p for m in self.method.players.values() for p in m.state_dict().values())
        )
        return game

    def build_loop(self, game: Trainer, sampler: BatchSampler) -> TrainingLoop:
        """What plays the game, with all that watches it. The run is under way from here on."""
        cfg = self.cfg
        iterate: Callable[[], list[StepOutput]] = partial(game.next_iteration, sampler)
        if cfg.train.cuda_graph:
            iterate = CapturedStep(game, sampler, self.parts.generators)
        every = cfg.train.eval_every or self.epoch_steps or self.steps
        look = self.sample_grids()
        tracker = self.begin()
        return TrainingLoop(
            game=game,
            sampler=sampler,
            test=self.gallery.test_batches,
            student=self.student,
            folder=self.folder,
            steps=self.steps,
            eval_every=every,
            checkpoint_every=cfg.train.checkpoint_every or every,
            log_every=cfg.train.log_every,
            check_every=cfg.train.check_every,
            batch_size=cfg.train.batch_size,
            tracker=tracker,
            progress=Progress(
                self.heading, self.steps, every, of_teacher=self.group == tracking.TEACHERS
            ),
            interruption=self.interruption,
            shared_rng=self.parts.shared_rng,
            per_rank_rng={**self.parts.per_rank_rng, "torch": TorchRNG()},
            provenance={key: self.result[key] for key in PROVENANCE},
            classes=self.gallery.test.classes,
            look=look,
            on_best=self.save_best,
            iterate=iterate,
        )

    def begin(self) -> Tracker:
        """Say in result.json that the run is under way, and to its tracker."""
        if self.discard is not None:
            distributed.rank0_only(self.discard)
            self.discard = None
            self.list_broken()
        about = tracking.tracked(self.cfg, self.folder, self.result, self.group)
        if not distributed.is_rank0():
            return NoTracker(run=about)
        check_run_lock(self.folder)  # to prepare may have taken long
        self.result |= {"status": "running", "total_steps": self.steps}
        keep_result(self.folder, self.result)
        tracker: Tracker = build(self.cfg.tracker, run=about)
        return tracker

    def play(self, loop: TrainingLoop) -> None:
        """To the end, or until something stops it; either way the result says how far."""
        result = self.result
        status = "failed"
        torch.manual_seed(self.seed("training") + distributed.rank())  # dropout in a user's model
        try:
            with loop.progress:
                loop.fit()
            if distributed.is_rank0():
                self.keep_student(loop)
            status = "finished"
        except Interrupted:
            status = "interrupted"
            raise
        finally:
            at = loop.state
            result |= {"accuracy": at.accuracy, "steps": at.step, "seconds": round(at.seconds, 3)}
            result["memory_mb"] = round(peak_memory_mb(self.device))
            result["seconds_per_step"] = round(at.seconds / at.step, 5) if at.step else None
            result["status"] = status
            loop.tracker.finish(status, tracking.summary(result))

    def keep_student(self, loop: TrainingLoop) -> None:
        check_run_lock(self.folder)
        path = self.folder / "student.safetensors"
        metadata = {"model": self.cfg.student.name, "accuracy": loop.state.accuracy["last"]}
        save_weights(self.student, path, metadata)
        loop.tracker.file(loop.state.step, "model", path)
        tracking.show_classes(loop.tracker, self.folder)

    def list_broken(self) -> None:
        """Say in the run's folder which images were left out because they can't be read."""
        broken = self.gallery.broken
        self.result["broken_images"] = {split: len(places) for split, places in broken.items()}
        if distributed.is_rank0():
            path = self.folder / "broken.txt"
            if broken:
                write_atomically(path, lambda file: file.write(listing(broken)))
            else:
                path.unlink(missing_ok=True)

    def check_shareable(self) -> None:
        if distributed.world_size() > 1 and not self.method.supports_ddp:
            raise UserError(
                f"method={self.cfg.method.name} can't be played by several processes: run it "
                "without torchrun (the cells of a sweep can share several devices)"
            )

    # ------------------------------------------------------------------------------ the pictures

    def sample_grids(self) -> SampleLogger:
        """Fixed noise and fixed images, so that grids of different steps can be compared."""
        latents = chosen = None
        if "latents" in self.parts.wanted:
            latents = Latents(self.parts.latents.dim, self.device, self.seed("samples"))
        for images in self.gallery.images.values():
            chosen = images.images[:: max(1, len(images) // SAMPLES)][:SAMPLES]
            chosen = self.parts.in_domain(chosen.float() / 255)
        return SampleLogger(
            self.method,
            teacher=self.teacher,
            denormalize=self.parts.in_domain.inverse,
            latents=latents,
            images=chosen,
            autocast=self.autocast,
            shown=SAMPLES,
            counted=min(10 * len(self.gallery.test.classes), MOST_COUNTED),
        )

    # ------------------------------------------------------------------------------ the teacher

    def prepare_teacher(self, cut_short: int | None) -> float:
        """Fill the teacher with weights, training it first where it is missing; measure it.

        cut_short: where this run is cut to so many steps, a teacher that it must train for
        itself is cut as well, and stays in the run's folder: nobody else should find it.
        """
        cfg = self.cfg
        assert self.teacher is not None
        recipe: DictConfig | None = None  # of a teacher that is looked for, not named
        if cfg.teacher.get("checkpoint") is not None:
            path = Path(cfg.teacher.checkpoint).expanduser()
        else:
            path = teacher_path(cfg)
            missing = distributed.rank0_only(lambda: not path.exists())
            own = cut_short is not None and missing and cfg.teacher_missing != "error"
            recipe = scratch_config(cfg, cfg.teacher, cut_short if own else None)
            if own:
                log.info("no teacher at %s, and this run is cut to %d steps: so is the teacher it "
                         "trains for itself; its numbers mean little", path, cut_short)  # fmt: skip
                path = self.folder / "teacher" / path.name
                if self.discard is not None:
                    distributed.rank0_only(partial(teachers.remove, path))

            def train() -> Path:
                folder = teachers.training_folder(path)
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    with distributed.rank0_holds(partial(owned, folder)):
                        self.run(recipe, folder, self.interruption, group=tracking.TEACHERS)
                except distributed.LostProcess:
                    raise
                except UserError as error:
                    raise UserError(
                        f"while training the teacher {cfg.teacher.name} ({error}); its recipe is "
                        "dataset.recipe.*, and teacher.checkpoint=FILE takes a trained one instead"
                    ) from error
                return folder

            teachers.obtain(path, missing=cfg.teacher_missing, train=train)
        record = teachers.load(self.teacher, path)
        if recipe is not None and "recipe" in record:
            teachers.check_recipe(differences(record["recipe"], identity(recipe)), path)
        accuracy = teachers.measured(self.teacher_in_use(), self.measure_teacher)
        log.info("teacher %s: %.2f %% on %s", path, accuracy, cfg.dataset.name)
        teachers.check_accuracy(accuracy, record, path)
        return round(accuracy, 4)

    def measure_teacher(self) -> float:
        """Top-1 on the test images."""
        assert self.teacher is not None
        with eagerly():
            return evaluate(self.teacher, self.gallery.test_batches, autocast=self.autocast).top1

    def teacher_in_use(self) -> str:
        """What its accuracy depends on: weights, images, arithmetic; and what the network's code
        makes of them, by a look at some predictions."""
        assert self.teacher is not None
        images, _ = next(iter(self.gallery.test_batches))
        with torch.no_grad(), self.autocast(), eagerly():
            logits = self.teacher(images[:100])
        if not torch.isfinite(logits).all():
            raise UserError(
                f"the teacher {self.cfg.teacher.name} predicts values that are not finite: of its "
                "weights (the statistics of batch norms, too), dataset.mean and dataset.std, some "
                "are wrong"
            )
        seen = logits.argmax(dim=1)
        domain = self.gallery.sources["dataset"]
        facts = (weights_digest(self.teacher), fingerprint(self.gallery.test), domain.mean,
                 domain.std, self.result["device"], torch.__version__, seen.tolist())  # fmt: skip
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]

    # ------------------------------------------------------------------------------ small things

    @property
    def title(self) -> str:
        """The run in a few words."""
        return tracking.title(self.result)

    @property
    def heading(self) -> str:
        """The same on a terminal: who asked for a student must see that it is a teacher's."""
        if self.group != tracking.TEACHERS:
            return self.title
        r = self.result
        return f"teacher {r['student']}: {r['dataset']}, seed {r['seed']}"

    def seed(self, purpose: str) -> int:
        return derived_seed(self.cfg.seed, purpose)

    def save_best(self, at: TrainState) -> None:
        metadata = {"step": at.step, "accuracy": at.accuracy["best"]}
        save_weights(self.student, self.folder / "checkpoints" / "best.safetensors", metadata)
