"""A small game of each method, with everyone who sits at its table."""

from __future__ import annotations

import inspect
import itertools
from functools import partial
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Tensor, nn

from mosaickd.config.schema import CONF
from mosaickd.data.loader import Normalize, random_crop_and_flip
from mosaickd.engine import distributed
from mosaickd.engine.player import Player
from mosaickd.engine.schedules import cosine
from mosaickd.engine.trainer import Trainer
from mosaickd.methods.base import Batch, Images, Latents, Method
from mosaickd.models.discriminator import PatchDiscriminator
from mosaickd.models.features import BatchNormStatsHook, FeatureExtractor
from mosaickd.models.generator import Generator

#: The class of each method, by the name of its YAML.
METHODS: dict[str, type[Method]] = {
    path.stem: get_class(OmegaConf.load(path).method._target_)
    for path in sorted((CONF / "method").glob("*.yaml"))
}

#: Settings that make whatever method has them small.
SMALL = {"student_steps": 2, "inversion_steps": 2, "head_fraction": 0.5, "negatives": 20, "dim": 7}

CPU = torch.device("cpu")
SIZE, BATCH, CLASSES, INSTANCES, STEPS = 8, 6, 4, 40, 12
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


class Classifier(nn.Module):
    """Two stages of a convolution with batch norm, and a linear layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stage1 = self.stage(3, width, stride=1)
        self.stage2 = self.stage(width, 2 * width, stride=2)
        self.fc = nn.Linear(2 * width, CLASSES)

    @staticmethod
    def stage(inner: int, outer: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(inner, outer, 3, stride, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.stage2(self.stage1(images)).mean((2, 3)))


def teacher_of(width: int = 12) -> Classifier:
    """One that has seen a few batches, so that its batch norms remember something."""
    teacher = Classifier(width)
    for _ in range(3):
        teacher(torch.randn(16, 3, SIZE, SIZE) + 0.5)
    teacher.requires_grad_(False).eval()
    return teacher


class Table:
    """One method's trainer.

    optimizers: by player, instead of `optimizer`; settings: the method's, and whatever else its
    constructor shall get instead of ours, such as `steps`, those of the run.
    """

    def __init__(
        self,
        name: str,
        *,
        optimizer: Any = SGD,
        optimizers: Any = None,
        **settings: Any,
    ) -> None:
        torch.manual_seed(0)
        factory = METHODS[name]
        self.steps: int = settings.pop("steps", STEPS)
        self.teacher, self.student = teacher_of(), Classifier()
        self.generator = Generator(image_size=SIZE, latent_dim=5, width=4)
        self.discriminator = PatchDiscriminator(image_size=SIZE, width=4, patch_size=4)
        rank, world = distributed.rank(), distributed.world_size()
        self.rng = torch.Generator().manual_seed(rank)
        self.latents = Latents(5, CPU, 0, rank, world)
        self.normalize = Normalize(MEAN, STD)
        offered: dict[str, Any] = {
            "student": self.student,
            "teacher": self.teacher,
            "generator": self.generator,
            "discriminator": self.discriminator,
            "normalize": self.normalize,
            "latents": self.latents,
            "augment": lambda images: random_crop_and_flip(images, 1, self.rng),
            "rng": self.rng,
            "gather": distributed.gather,
            "batch_size": BATCH // world,
            "num_classes": CLASSES,
            "image_size": SIZE,
            "instances": INSTANCES,
            "steps": self.steps,
            **self.probes(),
        }
        asked = inspect.signature(factory).parameters
        self.method: Any = factory(**{k: v for k, v in offered.items() if k in asked} | settings)
        self.players = {
            name: Player(
                module,
                (optimizers or {}).get(name, optimizer),
                cosine,
                steps=self.method.iterations(name, self.steps),
            )
            for name, module in self.method.players.items()
        }
        self.trainer = Trainer(self.method, self.players)
        self.trainer.train_mode()
        self.pixels = torch.randn(INSTANCES, 3, SIZE, SIZE)  # of the OOD images, normalised

    def probes(self) -> dict[str, Any]:
        example = torch.zeros(1, 3, SIZE, SIZE)
        probes: dict[str, Any] = {}
        for role, network in (("student", self.student), ("teacher", self.teacher)):
            probes[f"{role}_features"] = FeatureExtractor(
                network, ["stage1", "stage2"], example=example, setting=f"{role}.features"
            )
            probes[f"{role}_embedding"] = FeatureExtractor(
                network, ["fc"], example=example, setting=f"{role}.embedding", of="input"
            )
        probes["teacher_bn_stats"] = BatchNormStatsHook(self.teacher, what="the teacher")
        return probes

    def batch(self, seed: int = 0) -> Batch:
        """Other OOD images for another seed."""
        rng = torch.Generator().manual_seed(seed)
        drawn: dict[str, list[Images]] = {}
        for name, stream in self.method.streams.items():
            indices = [
                torch.randperm(INSTANCES, generator=rng)[:BATCH] for _ in range(stream.draws)
            ]
            drawn[name] = [Images(self.pixels[i], i % CLASSES, i) for i in indices]
        return drawn

    def play(self, iterations: int, start: int = 0) -> list[Any]:
        """The turns of so many iterations, in order."""
        outputs = (
            self.trainer.train_step(self.batch(seed)) for seed in range(start, start + iterations)
        )
        return list(itertools.chain.from_iterable(outputs))


def small(name: str) -> dict[str, float]:
    """Return those of the settings `SMALL` that a method has."""
    parameters = inspect.signature(METHODS[name]).parameters
    return {setting: value for setting, value in SMALL.items() if setting in parameters}


def outputs_of(module: nn.Module) -> list[Tensor]:
    """What `module` gives out from now on, call by call."""
    seen: list[Tensor] = []
    module.register_forward_hook(lambda m, inputs, out: seen.append(out.detach().clone()))
    return seen


def inputs_of(module: nn.Module) -> list[Tensor]:
    """What `module` is given from now on, call by call."""
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of what isn't equal."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}
