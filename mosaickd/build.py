"""From sections of the config to objects, and the configs that a run derives from its own."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig
from torch import nn

from mosaickd.config.schema import to_plain
from mosaickd.config.validation import ANNOTATIONS
from mosaickd.engine.player import Player
from mosaickd.errors import UserError
from mosaickd.methods.base import Method

log = logging.getLogger(__name__)

#: What constructors raise for settings that their annotations could not refuse.
UNFIT = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError),
    *(RuntimeError, MemoryError, InstantiationException),
)


def build(node: DictConfig, **supplied: Any) -> Any:
    """What a section describes, with what the launcher adds to it.

    Hydra fills in the section's own nested parts; the call itself is ours, so that an error in
    it arrives as it was raised, and that what is supplied is handed over untouched.
    """
    accepted = parameters_of(node)
    own = {k: v for k, v in to_plain(node).items() if k in accepted or k not in ANNOTATIONS}
    try:
        factory = instantiate(own | {"_partial_": True}, _convert_="all")
        return factory(**supplied)
    except UserError:
        raise
    except UNFIT as error:
        log.debug("%s can't be built", node._target_, exc_info=True)
        if isinstance(error, ValueError) and node._target_.startswith("mosaickd."):
            raise UserError(str(error)) from error
        where = node._get_full_key(None)
        raise UserError(f"{where}: {node._target_} can't be built so ({said(error)})") from error


def said(error: Exception) -> str:
    """What an error of foreign code says, on one line."""
    if isinstance(error, UserError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


def try_players(cfg: DictConfig) -> None:
    """Optimizers and schedules check their settings themselves: build each for one weight."""
    for player, node in (cfg.players or {}).items():
        part = "optimizer"
        try:
            optimizer = instantiate(node.optimizer, _convert_="all")([nn.Parameter(torch.zeros(1))])
            part = "schedule"
            instantiate(node.schedule, _convert_="all")(optimizer, 1)
        except UNFIT as error:
            raise UserError(f"players.{player}.{part}: {said(error)}") from error


def build_players(cfg: DictConfig, method: Method, steps: int) -> dict[str, Player]:
    """The method's trained modules with the optimizers and schedules of the config."""
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
        except UNFIT as error:  # a module without weights, more weights than memory
            raise UserError(f"players.{name}: {said(error)}") from error
    return players


def derived_seed(seed: int, purpose: str) -> int:
    """Independent random numbers for each purpose, all decided by the run's seed."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


#: Settings of `train` that belong to a method, not to how things are computed and watched.
RECIPE = ("epochs", "epoch_steps", "batch_size", "eval_every", "clip", "sync_batch_norm")


def scratch_config(cfg: DictConfig, model: DictConfig, steps: int | None = None) -> DictConfig:
    """The run that trains `model` on this run's data set by that data set's own recipe."""
    scratch = compose("config", overrides=["method=scratch"])
    scratch.dataset = cfg.dataset
    scratch.student = model.copy()
    if "checkpoint" in scratch.student:
        scratch.student.checkpoint = None
    scratch.tracker = cfg.tracker
    scratch.device = cfg.device
    for setting in cfg.train:  # how it computes and is watched; how long is the recipe's
        if setting not in RECIPE:
            scratch.train[setting] = cfg.train[setting]
    scratch.train.steps = steps
    return scratch


def teacher_path(cfg: DictConfig, role: str = "teacher") -> Path:
    """Where the teacher of this run's data set and architecture lives."""
    folder = Path(cfg.teachers_dir) / build(cfg.dataset).label
    return folder / f"{cfg[role].name}.safetensors"


def parameters_of(node: DictConfig) -> Mapping[str, inspect.Parameter]:
    """Of the constructor that a section names."""
    return inspect.signature(get_object(node._target_)).parameters
