"""What a method plays with: networks, probes, noise; built as its constructor's signature asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mosaickd.build import UNFIT, build, derived_seed, parameters_of, said
from mosaickd.config.schema import required_inputs
from mosaickd.data.loader import Normalize, random_crop_and_flip, usual_padding
from mosaickd.engine import distributed
from mosaickd.engine.batch_norm import synchronize_batch_norms
from mosaickd.engine.device import compile_network
from mosaickd.errors import UserError
from mosaickd.methods.base import Latents, Method, RandomState
from mosaickd.models.features import BatchNormStatsHook, FeatureExtractor, in_eval_mode


class Parts:
    """The networks of one run on its device, and the method that plays with them.

    instances: how many OOD images there are; steps: how many iterations the run has. Initial
    weights are decided by the run's seed and each network's role alone.
    """

    def __init__(
        self,
        cfg: DictConfig,
        *,
        device: torch.device,
        num_classes: int,
        instances: int,
        steps: int,
    ) -> None:
        self.cfg = cfg
        self.device = device
        self.num_classes = num_classes
        self.instances = instances
        self.steps = steps
        self.in_domain = Normalize(cfg.dataset.mean, cfg.dataset.std).to(device)
        self.wanted = required_inputs(cfg)
        self.teacher: nn.Module | None = None
        if "teacher" in self.wanted:
            self.teacher = self.classifier("teacher").requires_grad_(False).eval()
        self.student = self.classifier("student")
        # Hooks first: a compiled network does not look for new ones.
        supplied = {name: self.supply(name) for name in sorted(self.wanted)}
        if cfg.train.compile:
            self.compile(supplied)
        with self.drawing("method"):
            self.method: Method = build(cfg.method, **supplied)
        for name, module in self.method.players.items():
            module.to(device)  # what the method has built itself
            if name in cfg.train.sync_batch_norm:
                synchronize_batch_norms(module)

    def supply(self, name: str) -> Any:
        """What a method's constructor gets for one of its parameters."""
        probes: dict[str, Callable[[], Any]] = {
            f"{role}_{kind}": partial(self.probe, role, kind)
            for role in ("student", "teacher")
            for kind in ("features", "embedding")
        }
        others: dict[str, Callable[[], Any]] = {
            "student": lambda: self.student,
            "teacher": lambda: self.teacher,
            "teacher_bn_stats": self.teacher_bn_stats,
            "generator": lambda: self.generator,
            "discriminator": lambda: self.network("discriminator", image_size=self.image_size),
            "normalize": lambda: self.normalize,
            "latents": lambda: self.latents,
            "augment": lambda: self.augment,
            "rng": lambda: self.random.rng,
            "gather": lambda: distributed.gather,
            "batch_size": lambda: self.batch_size,
            "num_classes": lambda: self.num_classes,
            "image_size": lambda: self.image_size,
            "instances": lambda: self.instances,
            "steps": lambda: self.steps,
        }
        return (probes | others)[name]()

    @property
    def shared_rng(self) -> dict[str, RandomState]:
        """Random generators that all processes share, whose states are part of a checkpoint."""
        return {"latents": self.latents} if "latents" in self.wanted else {}

    @property
    def per_rank_rng(self) -> dict[str, RandomState]:
        """And those that each process has for itself."""
        return {"rng": self.random} if {"rng", "augment"} & self.wanted else {}

    @property
    def generators(self) -> list[torch.Generator]:
        """All of them, for whoever captures an iteration."""
        return [part.rng for part in [*self.shared_rng.values(), *self.per_rank_rng.values()]]

    # ------------------------------------------------------------------------------- networks

    @property
    def batch_size(self) -> int:
        """Of this process."""
        return int(self.cfg.train.batch_size) // distributed.world_size()

    @property
    def image_size(self) -> int:
        return int(self.cfg.dataset.image_size)

    @cached_property
    def example(self) -> Tensor:
        """One image without content."""
        return torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)

    def classifier(self, role: str) -> nn.Module:
        """A student or teacher, checked to map this data set's images to its classes."""
        node = self.cfg[role]
        accepted = parameters_of(node)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())  # torchvision, timm
        named = "num_classes" in accepted or (takes_any and "num_classes" not in node)
        supplied = {"num_classes": self.num_classes} if named else {}
        model = self.network(role, **supplied)
        try:
            with in_eval_mode(model):
                shape = tuple(model(self.example).shape)
        except UNFIT as error:
            raise UserError(
                f"{role}: {node.name} can't look at an image of {self.image_size}x"
                f"{self.image_size} pixels ({said(error)})"
            ) from error
        if shape != (1, self.num_classes):
            raise UserError(
                f"{role}: {node.name} maps one image to an output of shape {list(shape)}, but "
                f"{self.cfg.dataset.name} has {self.num_classes} classes here"
            )
        return model

    def network(self, role: str, **supplied: Any) -> nn.Module:
        """A network on the device. Of `supplied`, it gets what its constructor takes."""
        accepted = parameters_of(self.cfg[role])
        takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        given = {k: v for k, v in supplied.items() if takes_any or k in accepted}
        with self.drawing(role):
            network: nn.Module = build(self.cfg[role], **given)
        if self.cfg.train.channels_last:
            network = network.to(memory_format=torch.channels_last)
        return network.to(self.device)

    @cached_property
    def generator(self) -> nn.Module:
        return self.network("generator", image_size=self.image_size)

    def compile(self, supplied: dict[str, Any]) -> None:
        """torch.compile every network, in place."""
        for name, network in ({"student": self.student} | supplied).items():
            if name in ("student", "teacher", "generator", "discriminator"):
                compile_network(network, frozen=name == "teacher")

    # ------------------------------------------------------------------ looks inside, and noise

    def probe(self, role: str, kind: str) -> FeatureExtractor:
        """At the module paths that the model's YAML names."""
        node = self.cfg[role]
        setting = f"{role}.{kind}"
        paths = node.get(kind)
        if not paths:
            raise UserError(
                f"{setting} is missing, and method={self.cfg.method.name} compares features: name "
                f"module paths of {node.name} there (docs/extending.md)"
            )
        network = self.student if role == "student" else self.teacher
        assert network is not None
        return FeatureExtractor(
            network,
            [paths] if isinstance(paths, str) else list(paths),
            example=self.example,
            setting=setting,
            of="input" if kind == "embedding" else "output",
        )

    def teacher_bn_stats(self) -> BatchNormStatsHook:
        assert self.teacher is not None
        return BatchNormStatsHook(self.teacher, what=f"the teacher {self.cfg.teacher.name}")

    @cached_property
    def latents(self) -> Latents:
        dim, seed = self.cfg.generator.latent_dim, self.seed("latents")
        return Latents(dim, self.device, seed, distributed.rank(), distributed.world_size())

    @cached_property
    def random(self) -> RandomState:
        return RandomState(self.device, self.seed("method's draws") + distributed.rank())

    @property
    def normalize(self) -> Callable[[Tensor], Tensor]:
        """For what a generator paints; some paint normalised images already."""
        if "generator" in self.wanted and getattr(self.generator, "normalized", False):
            return nn.Identity()
        return self.in_domain

    def augment(self, images: Tensor) -> Tensor:
        """Random crop and flip, [B, 3, H, W] of any dtype."""
        return random_crop_and_flip(images, usual_padding(images.shape[-1]), self.random.rng)

    def seed(self, purpose: str) -> int:
        return derived_seed(self.cfg.seed, purpose)

    @contextmanager
    def drawing(self, role: str) -> Iterator[None]:
        """Inside, torch's random numbers depend on the run's seed and `role` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed(role))
            yield
