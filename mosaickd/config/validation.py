"""Check a config before anything is built.

Sections with a `_target_` are compared with the constructor's signature: its names, its types and
the ranges in its annotations are the schema (docs/decisions/0003-signatures-are-the-schema.md).
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import typing
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mosaickd.config.schema import (
    SUPPLIED,
    Root,
    given_overrides,
    required_inputs,
    target_of,
    training_source,
)
from mosaickd.config.targets import check_targets, resolve
from mosaickd.config.values import check_value, describe_unknown
from mosaickd.constraints import Count, NonNegative
from mosaickd.errors import UserError

#: Keys beside `_target_` that are not constructor arguments: who reads them, and their types.
ANNOTATIONS: dict[str, Any] = {
    "name": str,  # the run's folder and result
    "checkpoint": str | None,  # mosaickd.teachers: weights of a teacher
    "features": list[str] | str | None,  # methods that compare features: module paths to hook
    "embedding": list[str] | str | None,  # the same, for the input of the classifier
    "recipe": dict,  # conf/method/scratch.yaml: how a classifier is trained on this data set
}
RECIPE = {"epochs": Count, "batch_size": Count, "lr": NonNegative, "weight_decay": NonNegative}

#: What the sections of each kind must build.
KINDS = {
    "dataset": "mosaickd.data.source.Source",
    "method": "mosaickd.methods.base.Method",
    "tracker": "mosaickd.engine.trackers.Tracker",
    "optimizer": "torch.optim.Optimizer",
    "schedule": "torch.optim.lr_scheduler.LRScheduler",
    **dict.fromkeys(("model", "generator", "discriminator"), "torch.nn.Module"),
}
#: Kinds whose target must be a class, not a function: the launcher reads class attributes.
CLASSES_ONLY = {"dataset", "method", "tracker"}


def validate(cfg: DictConfig) -> None:
    """Raise a UserError for the first wrong setting. Build nothing, and read no images."""
    try:
        content = _resolve(cfg)
        check_targets(content, _trusted_packages(cfg))
        _check_dataclass(content, Root)
        _check_target(cfg.method, "method", "method")
        if HydraConfig.initialized():  # first, for an ablation's settings are unknown elsewhere
            _check_command_line(cfg)
        _check_sections(cfg)
        _check_players(cfg)
        _check_combinations(cfg)
    except OmegaConfBaseException as error:  # interpolations, deleted settings
        raise UserError(" ".join(str(error).split())) from error


def _resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return the config's content; not `cell`, whose names of parts are only checked later."""
    return {"cell": ""} | {
        str(key): OmegaConf.to_container(cfg[key], resolve=True, enum_to_str=True)
        if OmegaConf.is_config(cfg[key])
        else cfg[key]
        for key in cfg
        if key != "cell"
    }


def _trusted_packages(cfg: DictConfig) -> Sequence[str]:
    """Return `allow_targets`, which only the command line may set."""
    packages = list(cfg.get("allow_targets", []))
    if not packages or not HydraConfig.initialized():
        return packages
    if not any(override.startswith("allow_targets=") for override in given_overrides()):
        raise UserError(
            f"allow_targets={packages} is set in a YAML file, which can't vouch for itself: "
            f"give it on the command line, allow_targets=[{','.join(packages)}]"
        )
    return packages


# -------------------------------------------------------------------------------- root and train


def _check_dataclass(values: dict[str, Any], schema: type, path: str = "") -> None:
    """Compare the root, or `train`, with its dataclass: names, types and ranges."""
    hints = typing.get_type_hints(schema, include_extras=True)
    for key in values:
        if key not in hints:
            raise UserError(describe_unknown(f"{path}{key}", hints))
    for key, hint in hints.items():
        if key not in values:
            raise UserError(f"{path}{key} is missing: it can be changed, but not deleted")
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            _check_dataclass(values[key], hint, f"{path}{key}.")
        else:
            check_value(values[key], hint, f"{path}{key}")


# -------------------------------------------------------------------------------------- sections


def _check_sections(cfg: DictConfig) -> None:
    sections = {"method": "method", "dataset": "dataset", "student": "model", "teacher": "model"}
    if cfg.ood is not None:
        sections["ood"] = "dataset"
    for name, kind in sections.items():
        check_section(cfg[name], name, kind)
        if cfg[name].get("name") is None:
            raise UserError(f"{name}.name is missing: folders are called by it")
    for part in sorted(required_inputs(cfg) & {"generator", "discriminator"}):
        check_section(cfg[part], part, part)
    check_section(cfg.tracker, "tracker", "tracker")
    for key, value in (cfg.dataset.get("recipe") or {}).items():
        if key not in RECIPE:
            raise UserError(describe_unknown(f"dataset.recipe.{key}", RECIPE))
        check_value(value, RECIPE[key], f"dataset.recipe.{key}")


def check_section(node: Any, path: str, kind: str) -> None:
    """Compare one section with the signature of its `_target_`.

    path: where it stands, for the messages. kind: a key of KINDS, or "reader", or "part".
    """
    target = _check_target(node, path, kind)
    parameters = inspect.signature(target).parameters
    supplied = SUPPLIED.get(kind, set())
    accepted = [
        name
        for name, p in parameters.items()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and name not in supplied
    ]
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = {"_partial_": bool, "_convert_": Any} | ANNOTATIONS | _type_hints(target)
    values: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=False)
    for key in sorted(values.keys() - {"_target_"}):
        value, place = values[key], f"{path}.{key}"
        if key not in accepted and key not in hints.keys() - parameters.keys() and not accepts_any:
            raise UserError(describe_unknown(place, accepted))
        if value == "???":
            raise UserError(f"{place} has no value: give one, {place}=...")
        if isinstance(value, dict) and "_target_" in value:
            check_section(node[key], place, "reader" if key == "reader" else "part")
        else:
            check_value(value, hints.get(key, Any), place)
    for name in accepted:
        required = parameters[name].default is inspect.Parameter.empty and name not in values
        # Whoever calls a partial may add what is missing.
        if required and (kind == "reader" or not values.get("_partial_")):
            raise UserError(f"{path}.{name} is missing: {node._target_} needs it")


def _check_target(node: Any, path: str, kind: str) -> Callable[..., Any]:
    """Return what a section builds. Raise where it builds nothing, or another kind of thing."""
    if OmegaConf.is_dict(node) and kind == "method" and "method" in node:
        raise UserError("the first line of the method's YAML must be `# @package _global_`")
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        raise UserError(f"{path} must be a section with a _target_, got {node!r}")
    target, place = target_of(node, path), f"{path}._target_: {node._target_}"
    try:
        parameters = inspect.signature(target).parameters
    except ValueError as error:  # of some functions written in C
        raise UserError(f"{place} has no signature to check") from error
    if kind == "reader" and (
        lacking := SUPPLIED["reader"] - {"max_broken", "progress"} - parameters.keys()
    ):
        raise UserError(f"{place} is no reader: it does not take {sorted(lacking)}")
    if kind in KINDS:
        expected: Any = resolve(KINDS[kind], path)
        fits = issubclass(target, expected) if inspect.isclass(target) else kind not in CLASSES_ONLY
        if not fits:
            raise UserError(f"{place} is no {kind}: no {KINDS[kind]}")
    return target


def _type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return what the target's arguments are annotated with, by name.

    A dataclass is asked itself: its `__init__` would look up the annotations of inherited fields
    in the wrong module.
    """
    annotated: Any = target
    if inspect.isclass(target) and not dataclasses.is_dataclass(target):
        annotated = target.__init__
    try:
        hints = typing.get_type_hints(annotated, include_extras=True)
    except Exception:  # annotations of foreign code that don't resolve: names are still checked
        return {}
    return {name: hint for name, hint in hints.items() if name != "return"}


def _check_players(cfg: DictConfig) -> None:
    players = cfg.players or {}
    if not OmegaConf.is_dict(players) and players:
        raise UserError(f"players must have a section for each player, got {players!r}")
    for player, node in players.items():
        if not OmegaConf.is_dict(node):
            raise UserError(f"players.{player} must have an optimizer and a schedule, got {node!r}")
        for part in node:
            place = f"players.{player}.{part}"
            if part not in ("optimizer", "schedule"):
                raise UserError(describe_unknown(place, ["optimizer", "schedule"]))
            check_section(node[part], place, part)
    for player in cfg.train.sync_batch_norm:
        if player not in players:
            raise UserError(
                f"train.sync_batch_norm names {player!r}, and method={cfg.method.name} has the "
                f"players {', '.join(players)}"
            )


# ----------------------------------------------------------------------- settings beside each other


def _check_combinations(cfg: DictConfig) -> None:
    method = f"method={cfg.method.name}"
    inputs = required_inputs(cfg)
    if cfg.train.steps is None and cfg.train.epochs is None:
        raise UserError("train.steps and train.epochs are both null: say how long to train")
    if training_source(cfg) == "ood" and cfg.ood is None:
        raise UserError(
            f"{method} distils from out-of-domain images and there are none: "
            "choose some with ood=NAME (data-free methods: dfq, dafl, zskt, deepinv)"
        )
    if "latents" in inputs:
        check_value((cfg.generator or {}).get("latent_dim"), Count, "generator.latent_dim")
    if cfg.student.get("checkpoint") is not None:
        raise UserError(
            "student.checkpoint has no effect: a student starts from random weights. "
            "teacher.checkpoint=FILE gives the teacher its weights"
        )
    weights = cfg.teacher.get("checkpoint")
    if (
        "teacher" in inputs
        and weights is not None
        and not os.path.isfile(os.path.expanduser(weights))
    ):
        raise UserError(
            f"teacher.checkpoint: there is no file {weights}. teacher.checkpoint=null takes the "
            f"teacher from {cfg.teachers_dir}, where it is trained if it is missing"
        )


def _check_command_line(cfg: DictConfig) -> None:
    """Refuse overrides that the run would ignore."""
    choices, method = HydraConfig.get().runtime.choices, f"method={cfg.method.get('name')}"
    overrides = given_overrides()
    keys = {override.partition("=")[0].partition("@")[0] for override in overrides}
    inputs = required_inputs(cfg)
    if choices.get("ablation") and "discriminator" not in inputs:
        raise UserError(
            f"ablation= changes the game of MosaicKD, and {method} plays another: "
            "leave one of them out"
        )
    if choices.get("pair") and (both := sorted(keys & {"teacher", "student"})):
        raise UserError(
            f"pair= chooses teacher and student, so {both[0]}= can't be given beside it: "
            "two jobs would share a folder. Give one or the other"
        )
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        keys.discard("ood.root")  # some jobs of a sweep may need it and others not
    used = inputs | {str(training_source(cfg))}
    for part, reason in {"teacher": "has no teacher", "ood": "uses no ood images"}.items():
        ignored = [k for k in keys if k == part or k.startswith((f"{part}.", f"{part}_subset"))]
        if part not in used and ignored and f"{part}=null" not in overrides:
            raise UserError(
                f"{min(ignored)} has no effect with {method}, which {reason}: leave it out"
            )
    if cfg.ood_subset_size is not None and "ood_subset_size" in keys and not cfg.ood_subset:
        raise UserError(
            "ood_subset_size has no effect without ood_subset=true: give both, or leave it out"
        )
