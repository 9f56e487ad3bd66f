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
from torch import Tensor

from mosaickd import config, teachers
from mosaickd.build import (
    build,
    build_players,
    derived_seed,
    scratch_config,
    teacher_path,
    try_players,
)
from mosaickd.config import identity, images_of, plain
from mosaickd.data.loader import (
    BalancedLoader,
    Normalize,
    ResidentLoader,
    TestBatches,
    check_batch_size,
)
from mosaickd.data.source import ImageSet, Source
from mosaickd.data.subset import fingerprint, most_uncertain
from mosaickd.engine import distribution
from mosaickd.engine.checkpoint import TorchRandom
from mosaickd.engine.dealer import Dealer
from mosaickd.engine.device import autocast_for, begin_compiling, choose_device, describe, eagerly
from mosaickd.engine.evaluate import evaluate
from mosaickd.engine.graph import CapturedGame
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.engine.loop import Game, Loop, Played, Progression
from mosaickd.engine.predict import predict
from mosaickd.engine.progress import Progress
from mosaickd.engine.samples import SampleGrids
from mosaickd.engine.trackers import NoTracker, Tracker
from mosaickd.errors import UserError
from mosaickd.files import owned
from mosaickd.losses import entropy
from mosaickd.methods.base import Latents, SourceName
from mosaickd.models.weights import save_weights, weights_digest
from mosaickd.parts import Parts

log = logging.getLogger(__name__)

SAMPLES = 100  # images a grid


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
    ) -> None:
        self.cfg = cfg
        self.run = run  # to train a teacher is a run of its own
        self.folder = folder
        self.interruption = interruption
        self.group = group
        self.result = result
        self.device = choose_device(cfg.device, distribution.local_rank())
        self.share = distribution.share_of(cfg.train.batch_size)
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
        cfg, result = self.cfg, self.result
        try_players(cfg)
        self.load_images()
        epoch = self.epoch_steps()
        recipe: int | None = cfg.train.epochs * epoch if cfg.train.epochs and epoch else None
        steps: int | None = cfg.train.steps or recipe
        if steps is None:
            raise UserError(
                f"method={cfg.method.name} trains on no images, so train.epochs says nothing "
                "without train.epoch_steps: set it, or train.steps"
            )
        cut_short = recipe is not None and steps < recipe
        self.parts = Parts(
            cfg,
            device=self.device,
            num_classes=len(self.test.classes),
            instances=self.count_of("ood"),
            steps=steps,
        )
        self.student, self.teacher = self.parts.student, self.parts.teacher
        self.method = self.parts.method
        if cfg.train.cuda_graph and not self.method.uniform:
            raise UserError(
                f"train.cuda_graph=true captures one iteration for all, and those of method="
                f"{cfg.method.name} are not all alike: leave it out"
            )
        distribution.first(self.check_shareable)
        for player in self.method.players:
            if self.method.iterations(player, steps) == 0:
                log.warning("a run of %d steps is too short for method=%s: the %s never has a turn",
                            steps, cfg.method.name, player)  # fmt: skip
        game = Game(self.method, build_players(cfg, self.method, steps), self.autocast)
        distribution.same(
            *(p for m in self.method.players.values() for p in m.state_dict().values())
        )

        if self.teacher is not None:
            result["teacher_accuracy"] = self.prepare_teacher(steps if cut_short else None)
        if cfg.ood_subset and "ood" in self.images:
            self.choose_subset()
        dealer = Dealer(self.method.streams, self.build_loaders())

        log.info("%s: %d steps of %d images, on %s",
                 self.title, steps, cfg.train.batch_size, result["device"])  # fmt: skip
        about: dict[str, Any] = {
            "folder": self.folder,
            "settings": plain(cfg),
            "run_name": self.title,
            "group": self.group,
        }
        tracker: Tracker = NoTracker(**about)
        if distribution.is_first():
            tracker = build(cfg.tracker, **about)
        iterate: Callable[[], list[Played]] = partial(game.next_iteration, dealer)
        if cfg.train.cuda_graph:
            iterate = CapturedGame(game, dealer, self.parts.generators)
        every = cfg.train.eval_every or epoch or steps
        loop = Loop(
            game=game,
            dealer=dealer,
            test=self.test_batches,
            student=self.student,
            folder=self.folder,
            steps=steps,
            eval_every=every,
            checkpoint_every=cfg.train.checkpoint_every or every,
            log_every=cfg.train.log_every,
            batch_size=cfg.train.batch_size,
            tracker=tracker,
            progress=Progress(self.title, steps),
            interruption=self.interruption,
            stateful=self.parts.stateful,
            private={**self.parts.private, "torch": TorchRandom()},
            draw_samples=self.sample_grids(),
            on_best=self.save_best,
            iterate=iterate,
        )
        status = "failed"
        torch.manual_seed(self.seed("training") + distribution.rank())  # dropout in a user's model
        try:
            with loop.progress:
                loop.fit()
            metadata = {"model": cfg.student.name, "accuracy": loop.at.accuracy["last"]}
            if distribution.is_first():
                save_weights(self.student, self.folder / "student.safetensors", metadata)
            status = "finished"
        except Interrupted:
            status = "interrupted"
            raise
        finally:
            at = loop.at
            result |= {"accuracy": at.accuracy, "steps": at.step, "seconds": round(at.seconds, 3)}
            result["seconds_per_step"] = round(at.seconds / at.step, 5) if at.step else None
            summary = {"accuracy": at.accuracy, "teacher_accuracy": result["teacher_accuracy"]}
            tracker.finish(status, summary)

    def check_shareable(self) -> None:
        if distribution.world() > 1 and not self.method.shareable:
            raise UserError(
                f"method={self.cfg.method.name} can't be played by several processes: run it "
                "without torchrun (the cells of a sweep can share several devices)"
            )

    # ------------------------------------------------------------------------------- the images

    def load_images(self) -> None:
        """The test images, and those that the method trains on."""
        cfg = self.cfg
        self.sources: dict[SourceName, Source] = {"dataset": build(cfg.dataset)}
        source = images_of(cfg)
        if source == "ood":
            self.sources["ood"] = build(cfg.ood)
        dataset = self.sources["dataset"]
        if "ood" in self.sources and self.sources["ood"].image_size != dataset.image_size:
            raise UserError(
                f"dataset.image_size is {dataset.image_size} and ood.image_size is "
                f"{self.sources['ood'].image_size}: give both the same"
            )
        self.test = distribution.in_order(lambda: dataset.load("test"))
        self.test_batches = TestBatches(
            self.test,
            batch_size=cfg.train.eval_batch_size,
            mean=dataset.mean,
            std=dataset.std,
            device=self.device,
            channels_last=cfg.train.channels_last,
            part=distribution.rank(),
            parts=distribution.world(),
        )
        self.images: dict[SourceName, ImageSet] = {}
        if source is not None:
            self.images[source] = distribution.in_order(lambda: self.sources[source].load("train"))
            subset = "the ood_subset of " if source == "ood" and cfg.ood_subset else ""
            name = f"{subset}{self.sources[source].name}"
            check_batch_size(cfg.train.batch_size, self.count_of(source), name)

    def count_of(self, source: SourceName) -> int:
        """How many images the method has to train on."""
        if source not in self.images:
            return 0
        available = len(self.images[source])
        if source != "ood" or not self.cfg.ood_subset:
            return available
        count = self.cfg.ood_subset_size or self.sources["dataset"].train_size
        if count is None:
            raise UserError(
                "ood_subset=true takes as many images as the teacher had, and dataset.train_size "
                "doesn't say how many those were: set ood_subset_size=N"
            )
        if count > available:
            raise UserError(
                f"ood_subset=true wants {count} images, and {self.sources['ood'].name} has "
                f"{available}: set ood_subset_size=N to fewer, or leave out ood_subset"
            )
        return int(count)

    def epoch_steps(self) -> int | None:
        """Iterations of an epoch: a setting, or one pass over the images. None: no images."""
        train = self.cfg.train
        if train.epoch_steps is not None or not self.images:
            return train.epoch_steps
        (source,) = self.images
        return -(-self.count_of(source) // train.batch_size)

    def choose_subset(self) -> None:
        """Of the OOD images, keep those that the teacher is least sure about (its appendix)."""
        images, teacher = self.images["ood"], self.teacher
        assert teacher is not None
        count, source = self.count_of("ood"), self.sources["ood"]
        dataset = self.sources["dataset"]
        chosen_by = hashlib.sha256(f"{dataset.mean} {dataset.std}".encode())
        chosen_by.update(weights_digest(teacher).encode())
        chosen_by.update(fingerprint(images).encode())
        folder = Path(self.cfg.teachers_dir) / dataset.label / "subsets"
        name = f"{source.label}-{count}-by-{self.cfg.teacher.name}-{chosen_by.hexdigest()[:16]}"
        kept = distribution.in_order(
            lambda: most_uncertain(
                lambda: self.ask_teacher(
                    images, entropy, "asking the teacher about all OOD images"
                ),
                count=count,
                path=folder / f"{name}.safetensors",
                what=source.name,
            )
        )
        self.images["ood"] = ImageSet(
            images.images[kept].contiguous(), images.labels[kept], images.classes
        )

    def ask_teacher(
        self,
        images: ImageSet,
        question: Callable[[Tensor], Tensor],
        what: str,
        statistics: SourceName = "dataset",
    ) -> Tensor:
        """`question` (logits [B, C] -> [B]) of the teacher's logits for each image, unaugmented."""
        assert self.teacher is not None
        source = self.sources[statistics]
        normalize = Normalize(source.mean, source.std).to(self.device)
        return predict(
            self.teacher,
            images.images,
            question,
            prepare=lambda batch: normalize(batch.float() / 255),
            what=what,
            batch_size=self.cfg.train.eval_batch_size,
            device=self.device,
            autocast=self.autocast,
            check=self.interruption.check,
        )

    def build_loaders(self) -> dict[str, ResidentLoader]:
        """One loader a stream of the method; streams of the same source share its images."""
        train = self.cfg.train
        self.images = {name: images.to(self.device) for name, images in self.images.items()}
        loaders = {}
        for name, stream in self.method.streams.items():
            statistics = self.sources[stream.statistics]
            data = self.images[stream.source]
            kind = ResidentLoader
            if stream.balanced:
                predicted = self.ask_teacher(
                    data,
                    lambda logits: logits.argmax(dim=1),
                    f"asking the teacher for the classes of {self.sources[stream.source].name}",
                    stream.statistics,
                )
                distribution.same(predicted)
                data = ImageSet(data.images, predicted.to(self.device), self.test.classes)
                kind = BalancedLoader
            loaders[name] = kind(
                data,
                batch_size=train.batch_size,
                mean=statistics.mean,
                std=statistics.std,
                augment=stream.augment,
                seed=self.seed(f"stream {name}"),
                device=self.device,
                channels_last=train.channels_last,
                name=self.sources[stream.source].name,
                share=self.share,
            )
        return loaders

    def sample_grids(self) -> SampleGrids:
        """Fixed noise and fixed images, so that grids of different steps can be compared."""
        latents = chosen = None
        if "latents" in self.parts.wanted:
            latents = Latents(self.parts.latents.dim, self.device, self.seed("samples"))(SAMPLES)
        for images in self.images.values():
            chosen = images.images[:: max(1, len(images) // SAMPLES)][:SAMPLES]
            chosen = self.parts.in_domain(chosen.float() / 255)
        return SampleGrids(
            self.method,
            teacher=self.teacher,
            denormalize=self.parts.in_domain.inverse,
            latents=latents,
            images=chosen,
            autocast=self.autocast,
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
            missing = distribution.first(lambda: not path.exists())
            own = cut_short is not None and missing and cfg.teacher_missing != "error"
            recipe = scratch_config(cfg, cfg.teacher, cut_short if own else None)
            if own:
                log.info("no teacher at %s, and this run is cut to %d steps: so is the teacher it "
                         "trains for itself; its numbers mean little", path, cut_short)  # fmt: skip
                path = self.folder / "teacher" / path.name

            def train() -> Path:
                folder = path.with_name(f"{path.stem}-training")
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    with distribution.first_holds(partial(owned, folder)):
                        self.run(recipe, folder, self.interruption, group="teachers")
                except UserError as error:
                    raise UserError(
                        f"while training the teacher {cfg.teacher.name} ({error}); its recipe is "
                        "dataset.recipe.*, and teacher.checkpoint=FILE takes a trained one instead"
                    ) from error
                return folder

            teachers.obtain(path, missing=cfg.teacher_missing, train=train)
        record = teachers.load(self.teacher, path)
        if recipe is not None and "recipe" in record:
            teachers.check_recipe(config.differences(record["recipe"], identity(recipe)), path)
        accuracy = teachers.measured(self.teacher_in_use(), self.measure_teacher)
        log.info("teacher %s: %.2f %% on %s", path, accuracy, cfg.dataset.name)
        teachers.check_accuracy(accuracy, record, path)
        return round(accuracy, 4)

    def measure_teacher(self) -> float:
        """Top-1 on the test images."""
        assert self.teacher is not None
        with eagerly():
            return evaluate(self.teacher, self.test_batches, autocast=self.autocast).top1

    def teacher_in_use(self) -> str:
        """What its accuracy depends on: weights, images, arithmetic; and what the network's code
        makes of them, by a look at some predictions."""
        assert self.teacher is not None
        images, _ = next(iter(self.test_batches))
        with torch.no_grad(), self.autocast(), eagerly():
            seen = self.teacher(images[:100]).argmax(dim=1)
        dataset = self.sources["dataset"]
        facts = (weights_digest(self.teacher), fingerprint(self.test), dataset.mean, dataset.std,
                 self.result["device"], torch.__version__, seen.tolist())  # fmt: skip
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]

    # ------------------------------------------------------------------------------ small things

    @property
    def title(self) -> str:
        """The run in a few words."""
        r = self.result
        pair = f"{r['teacher']} to {r['student']}" if r["teacher"] else r["student"]
        images = f"{r['dataset']} from {r['ood']}" if r["ood"] else r["dataset"]
        return f"{r['method']}: {images}, {pair}, seed {r['seed']}"

    def seed(self, purpose: str) -> int:
        return derived_seed(self.cfg.seed, purpose)

    def save_best(self, at: Progression) -> None:
        metadata = {"step": at.step, "accuracy": at.accuracy["best"]}
        save_weights(self.student, self.folder / "checkpoints" / "best.safetensors", metadata)
