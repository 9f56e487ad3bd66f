"""What a run is made of: networks, noise, feature extractors, the method and its players.

Plain functions that return what they build. Initial weights depend on the run's seed and on each
network's role alone.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from mosaickd.config.schema import required_inputs, to_plain
from mosaickd.config.validation import ANNOTATIONS
from mosaickd.data.loader import Normalize, random_crop_and_flip, usual_padding
from mosaickd.engine import distributed
from mosaickd.engine.device import compile_network
from mosaickd.engine.player import Player
from mosaickd.errors import UserError
from mosaickd.methods.base import Latents, Method, RandomState
from mosaickd.models.features import BatchNormStatsHook, FeatureExtractor, in_eval_mode

log = logging.getLogger(__name__)

#: What constructors raise for settings that their annotations could not refuse.
CONSTRUCTOR_ERRORS = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError),
    *(RuntimeError, MemoryError, InstantiationException),
)


@dataclass
class Components:
    """The parts of one run on its device.

    normalize: of in-domain images. shared_rng: random generators that all ranks draw from alike;
    per_rank_rng: those that each rank has for itself. Both are part of a checkpoint.
    """

    student: nn.Module
    teacher: nn.Module | None
    method: Method
    normalize: Normalize
    latents: Latents | None = None
    shared_rng: dict[str, RandomState] = field(default_factory=dict)
    per_rank_rng: dict[str, RandomState] = field(default_factory=dict)

    @property
    def generators(self) -> list[torch.Generator]:
        """Return all random generators, for whoever captures an iteration."""
        return [state.rng for state in [*self.shared_rng.values(), *self.per_rank_rng.values()]]


def build_components(
    cfg: DictConfig, *, device: torch.device, num_classes: int, instances: int, steps: int
) -> Components:
    """Build the networks, and the method with what its constructor asks for.

    instances: how many OOD images there are; steps: iterations of the run. Raises UserError where
    a network does not map an image of `dataset.image_size` to `num_classes` logits.
    """
    inputs = required_inputs(cfg)
    image_size = int(cfg.dataset.image_size)
    example = torch.zeros(1, 3, image_size, image_size, device=device)
    normalize = Normalize(cfg.dataset.mean, cfg.dataset.std).to(device)

    teacher = None
    if "teacher" in inputs:
        teacher = build_classifier(cfg, "teacher", num_classes, example)
        teacher.requires_grad_(False).eval()
    student = build_classifier(cfg, "student", num_classes, example)

    latents = None
    if "latents" in inputs:
        latents = Latents(
            cfg.generator.latent_dim, device, derived_seed(cfg.seed, "latents"),
            distributed.rank(), distributed.world_size(),
        )  # fmt: skip
    own = RandomState(device, derived_seed(cfg.seed, "method's draws") + distributed.rank())

    supplied: dict[str, Any] = {
        "student": student,
        "teacher": teacher,
        "latents": latents,
        "normalize": normalize,
        "augment": partial(random_crop_and_flip, padding=usual_padding(image_size), rng=own.rng),
        "rng": own.rng,
        "gather": distributed.gather,
        "batch_size": int(cfg.train.batch_size) // distributed.world_size(),
        "num_classes": num_classes,
        "image_size": image_size,
        "instances": instances,
        "steps": steps,
    }
    for role in inputs & {"generator", "discriminator"}:
        supplied[role] = build_network(cfg, role, device, image_size=image_size)
    if getattr(supplied.get("generator"), "normalized", False):  # it paints normalised images
        supplied["normalize"] = nn.Identity()
    # Hooks come before compiling: a compiled network does not look for new ones.
    for role, network in {"student": student, "teacher": teacher}.items():
        for kind in ("features", "embedding"):
            if network is not None and f"{role}_{kind}" in inputs:
                supplied[f"{role}_{kind}"] = feature_extractor(cfg, role, kind, network, example)
    if teacher is not None and "teacher_bn_stats" in inputs:
        name = f"the teacher {cfg.teacher.name}"
        supplied["teacher_bn_stats"] = BatchNormStatsHook(teacher, what=name)

    if cfg.train.compile:
        for role in ("student", "teacher", "generator", "discriminator"):
            if isinstance(network := supplied.get(role), nn.Module):
                compile_network(network, frozen=role == "teacher")

    with seeded(cfg, "method"):
        method: Method = build(cfg.method, **{name: supplied[name] for name in inputs})
    for module in method.players.values():
        module.to(device)  # what the method has built itself

    return Components(
        student=student,
        teacher=teacher,
        method=method,
        normalize=normalize,
        latents=latents,
        shared_rng={} if latents is None else {"latents": latents},
        per_rank_rng={"rng": own} if inputs & {"rng", "augment"} else {},
    )


# ---------------------------------------------------------------------------------- networks


def build_network(cfg: DictConfig, role: str, device: torch.device, **supplied: Any) -> nn.Module:
    """Build the network of a section; of `supplied` it gets what its constructor takes."""
    accepted = parameters_of(cfg[role])
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    arguments = {k: v for k, v in supplied.items() if takes_any or k in accepted}
    with seeded(cfg, role):
        network: nn.Module = build(cfg[role], **arguments)
    if role in cfg.train.sync_batch_norm and distributed.world_size() > 1:
        if device.type != "cuda":
            raise UserError(
                f"train.sync_batch_norm names the {role}, and batch norms are synchronised on CUDA "
                "only: set train.sync_batch_norm=[]"
            )
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if cfg.train.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network.to(device)


def build_classifier(cfg: DictConfig, role: str, num_classes: int, example: Tensor) -> nn.Module:
    """Build a student or teacher, checked to map `example` [1, 3, H, W] to [1, num_classes]."""
    node = cfg[role]
    accepted = parameters_of(node)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())  # torchvision, timm
    named = "num_classes" in accepted or (takes_any and "num_classes" not in node)
    supplied = {"num_classes": num_classes} if named else {}
    model = build_network(cfg, role, example.device, **supplied)
    try:
        with in_eval_mode(model):
            shape = tuple(model(example).shape)
    except CONSTRUCTOR_ERRORS as error:
        size = example.shape[-1]
        raise UserError(
            f"{role}: {node.name} can't take an image of {size}x{size} pixels ({describe(error)})"
        ) from error
    if shape != (1, num_classes):
        raise UserError(
            f"{role}: {node.name} maps one image to an output of shape {list(shape)}, but "
            f"{cfg.dataset.name} has {num_classes} classes here"
        )
    return model


def feature_extractor(
    cfg: DictConfig, role: str, kind: str, network: nn.Module, example: Tensor
) -> FeatureExtractor:
    """Return the extractor at the module paths that the model's YAML names.

    kind: "features" (what modules give out) or "embedding" (what the classifier takes in).
    """
    node = cfg[role]
    setting = f"{role}.{kind}"
    paths = node.get(kind)
    if not paths:
        raise UserError(
            f"{setting} is missing, and method={cfg.method.name} compares features: name module "
            f"paths of {node.name} there (docs/extending.md)"
        )
    return FeatureExtractor(
        network,
        [paths] if isinstance(paths, str) else list(paths),
        example=example,
        setting=setting,
        of="input" if kind == "embedding" else "output",
    )


# ----------------------------------------------------------------------------------- players


def build_players(cfg: DictConfig, method: Method, steps: int) -> dict[str, Player]:
    """Return the method's trained modules with the optimizers and schedules of the config."""
    players = {}
    for name, module in method.players.items():
        if name not in (cfg.players or {}):
            raise UserError(f"players.{name} is missing: method={cfg.method.name} has one")
        try:
            players[name] = Player(
                module,
                instantiate(cfg.players[name].optimizer, _convert_="all"),
                instantiate(cfg.players[name].schedule, _convert_="all"),
                steps=method.iterations(name, steps),
                clip=cfg.train.clip,
                capturable=cfg.train.cuda_graph,
            )
        except CONSTRUCTOR_ERRORS as error:  # a module without weights, more weights than memory
            raise UserError(f"players.{name}: {describe(error)}") from error
    return players


def check_players(cfg: DictConfig) -> None:
    """Raise UserError for settings that an optimizer or schedule refuses, in the first second."""
    for player, node in (cfg.players or {}).items():
        part = "optimizer"
        try:
            optimizer = instantiate(node.optimizer, _convert_="all")([nn.Parameter(torch.zeros(1))])
            part = "schedule"
            instantiate(node.schedule, _convert_="all")(optimizer, 1)
        except CONSTRUCTOR_ERRORS as error:
            raise UserError(f"players.{player}.{part}: {describe(error)}") from error


# ------------------------------------------------------------------- from a section to an object


def build(node: DictConfig, **supplied: Any) -> Any:
    """Build what a section describes, with what the launcher adds to it.

    Hydra fills in the section's own nested parts; the call itself is ours, so that its errors
    arrive as they were raised and `supplied` is handed over untouched.
    """
    accepted = parameters_of(node)
    own = {k: v for k, v in to_plain(node).items() if k in accepted or k not in ANNOTATIONS}
    try:
        factory = instantiate(own | {"_partial_": True}, _convert_="all")
        return factory(**supplied)
    except UserError:
        raise
    except CONSTRUCTOR_ERRORS as error:
        log.debug("%s can't be built", node._target_, exc_info=True)
        if isinstance(error, ValueError) and node._target_.startswith("mosaickd."):
            raise UserError(str(error)) from error
        place = node._get_full_key(None)
        raise UserError(f"{place}: {node._target_} can't be built ({describe(error)})") from error


def parameters_of(node: DictConfig) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the constructor that a section names."""
    return inspect.signature(get_object(node._target_)).parameters


def describe(error: Exception) -> str:
    """Return what an error of foreign code says, on one line."""
    if isinstance(error, UserError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


# --------------------------------------------------------------------------------- random numbers


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed for one purpose: independent of the others', decided by the run's seed."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


@contextmanager
def seeded(cfg: DictConfig, role: str) -> Iterator[None]:
    """Let torch's random numbers inside depend on the run's seed and `role` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(cfg.seed, role))
        yield
