"""One run's parts, built from its config, and the game played to its end."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from mosaickd import config, teachers
from mosaickd.build import (
    build,
    build_players,
    parameters_of,
    scratch_config,
    teacher_path,
    try_players,
)
from mosaickd.config import identity, images_of, needs, plain
from mosaickd.data.loader import Normalize, ResidentLoader, TestBatches
from mosaickd.data.source import ImageSet, Source
from mosaickd.engine.device import autocast_for, choose_device, compile_network, describe
from mosaickd.engine.evaluate import evaluate
from mosaickd.engine.graph import CapturedGame
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.engine.loop import Game, Loop, Played, Progression
from mosaickd.engine.progress import Progress
from mosaickd.engine.samples import SampleGrids
from mosaickd.errors import UserError
from mosaickd.files import owned
from mosaickd.methods.base import Batch, Latents, Method, SourceName
from mosaickd.models.weights import save_weights

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
        self.device = choose_device(cfg.device)
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
        if cfg.train.compile:  # what earlier runs of a sweep compiled counts against a limit
            torch.compiler.reset()
        result["device"] = f"{describe(self.device)}, {self.precision}"

    def fit(self) -> None:
        """Build everything, obtain the teacher, play the game, keep the student."""
        cfg, result = self.cfg, self.result
        try_players(cfg)
        self.build_parts()
        loaders = self.build_loaders()
        epoch = len(next(iter(loaders.values())))
        recipe: int | None = cfg.train.epochs * epoch if cfg.train.epochs else None
        steps: int | None = cfg.train.steps or recipe
        assert steps is not None  # validate() saw to it
        cut_short = recipe is not None and steps < recipe
        game = Game(self.method, build_players(cfg, self.method, steps), self.autocast)

        if self.teacher is not None:
            result["teacher_accuracy"] = self.prepare_teacher(steps if cut_short else None)

        log.info("%s: %d steps of %d images, on %s",
                 self.title, steps, cfg.train.batch_size, result["device"])  # fmt: skip
        tracker = build(
            cfg.tracker,
            folder=self.folder,
            settings=plain(cfg),
            run_name=self.title,
            group=self.group,
        )
        iterate: Callable[[Batch], list[Played]] = game.iterate
        stateful = {"latents": self.latents} if self.latents else {}
        if cfg.train.cuda_graph:
            generators = [part.rng for part in stateful.values()]
            iterate = CapturedGame(game, [*generators, *self.method.generators])
        every = cfg.train.eval_every or epoch
        loop = Loop(
            game=game,
            loaders=loaders,
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
            stateful=stateful,
            draw_samples=self.sample_grids(),
            on_best=self.save_best,
            iterate=iterate,
        )
        status = "failed"
        torch.manual_seed(self.seed("training"))  # dropout in a user's model
        try:
            with loop.progress:
                loop.fit()
            metadata = {"model": cfg.student.name, "accuracy": loop.at.accuracy["last"]}
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

    # -------------------------------------------------------------------------------- the parts

    def build_parts(self) -> None:
        """Sources and networks, and the method that plays with them."""
        cfg = self.cfg
        self.sources: dict[SourceName, Source] = {"dataset": build(cfg.dataset)}
        if images_of(cfg) == "ood":
            self.sources["ood"] = build(cfg.ood)
        dataset = self.sources["dataset"]
        if "ood" in self.sources and self.sources["ood"].image_size != dataset.image_size:
            raise UserError(
                f"dataset.image_size is {dataset.image_size} and ood.image_size is "
                f"{self.sources['ood'].image_size}: give both the same"
            )
        self.test = dataset.load("test")
        self.classes = len(self.test.classes)
        self.normalize = Normalize(dataset.mean, dataset.std).to(self.device)
        self.test_batches = TestBatches(
            self.test,
            batch_size=cfg.train.eval_batch_size,
            mean=dataset.mean,
            std=dataset.std,
            device=self.device,
            channels_last=cfg.train.channels_last,
        )
        parts = needs(cfg)
        self.student = self.build_classifier("student")
        self.teacher = None
        self.latents: Latents | None = None
        available: dict[str, Any] = {
            "student": self.student,
            "normalize": self.normalize,
            "batch_size": cfg.train.batch_size,
        }
        if "teacher" in parts:
            self.teacher = self.build_classifier("teacher").requires_grad_(False).eval()
            available["teacher"] = self.teacher
        if "generator" in parts:
            generator = self.build_network("generator", image_size=dataset.image_size)
            self.latents = Latents(cfg.generator.latent_dim, self.device, self.seed("latents"))
            available |= {"generator": generator, "latents": self.latents}
        if "discriminator" in parts:
            available["discriminator"] = self.build_network("discriminator")
        self.method: Method = build(cfg.method, **{name: available[name] for name in parts})

    def build_classifier(self, role: str) -> nn.Module:
        """A student or teacher, checked to map this data set's images to its classes."""
        node = self.cfg[role]
        accepted = parameters_of(node)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())  # torchvision, timm
        named = "num_classes" in accepted or (takes_any and "num_classes" not in node)
        supplied = {"num_classes": self.classes} if named else {}
        model = self.build_network(role, **supplied)
        size = self.sources["dataset"].image_size
        training = model.training
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            shape = tuple(model.eval()(torch.zeros(1, 3, size, size, device=self.device)).shape)
        model.train(training)
        if shape != (1, self.classes):
            raise UserError(
                f"{role}: {node.name} maps one image to an output of shape {list(shape)}, but "
                f"{self.cfg.dataset.name} has {self.classes} classes here"
            )
        return model

    def build_network(self, role: str, **supplied: Any) -> nn.Module:
        """A network on the device, its initial weights decided by the seed and its role alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed(role))
            network: nn.Module = build(self.cfg[role], **supplied)
        if self.cfg.train.channels_last:
            network = network.to(memory_format=torch.channels_last)
        network = network.to(self.device)
        if self.cfg.train.compile:
            compile_network(network, frozen=role == "teacher")
        return network

    def build_loaders(self) -> dict[str, ResidentLoader]:
        """One loader a stream of the method; streams of the same source share its images."""
        train = self.cfg.train
        images = {s.source: None for s in self.method.streams.values()}
        self.images: dict[SourceName, ImageSet] = {
            name: self.sources[name].load("train").to(self.device) for name in images
        }
        loaders = {}
        for name, stream in self.method.streams.items():
            statistics = self.sources[stream.statistics]
            data = self.images[stream.source]
            loaders[name] = ResidentLoader(
                data,
                batch_size=train.batch_size,
                mean=statistics.mean,
                std=statistics.std,
                augment=stream.augment,
                seed=self.seed(f"stream {name}"),
                device=self.device,
                channels_last=train.channels_last,
                name=self.sources[stream.source].name,
            )
        return loaders

    def sample_grids(self) -> SampleGrids:
        """Fixed noise and fixed images, so that grids of different steps can be compared."""
        latents = None
        if self.latents:
            latents = Latents(self.latents.dim, self.device, self.seed("samples"))(SAMPLES)
        images = next(iter(self.images.values())).images
        chosen = images[:: max(1, len(images) // SAMPLES)][:SAMPLES]
        return SampleGrids(
            self.method,
            teacher=self.teacher,
            normalize=self.normalize,
            latents=latents,
            images=chosen.float() / 255,
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
            own = cut_short is not None and not path.exists() and cfg.teacher_missing != "error"
            recipe = scratch_config(cfg, cfg.teacher, cut_short if own else None)
            if own:
                log.info("no teacher at %s, and this run is cut to %d steps: so is the teacher it "
                         "trains for itself; its numbers mean little", path, cut_short)  # fmt: skip
                path = self.folder / "teacher" / path.name

            def train() -> Path:
                folder = path.with_name(f"{path.stem}-training")
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    with owned(folder):
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
        with torch.compiler.set_stance("force_eager"):
            accuracy = evaluate(self.teacher, self.test_batches, autocast=self.autocast).top1
        log.info("teacher %s: %.2f %% on %s", path, accuracy, cfg.dataset.name)
        teachers.check_accuracy(accuracy, record, path)
        return round(accuracy, 4)

    # ------------------------------------------------------------------------------ small things

    @property
    def title(self) -> str:
        """The run in a few words."""
        r = self.result
        pair = f"{r['teacher']} to {r['student']}" if r["teacher"] else r["student"]
        images = f"{r['dataset']} from {r['ood']}" if r["ood"] else r["dataset"]
        return f"{r['method']}: {images}, {pair}, seed {r['seed']}"

    def seed(self, purpose: str) -> int:
        """Independent random numbers for each purpose, all decided by the run's seed."""
        digest = hashlib.sha256(f"{self.cfg.seed} {purpose}".encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def save_best(self, at: Progression) -> None:
        metadata = {"step": at.step, "accuracy": at.accuracy["best"]}
        save_weights(self.student, self.folder / "checkpoints" / "best.safetensors", metadata)
