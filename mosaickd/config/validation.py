"""What is wrong with a config, said before anything is built.

Sections with a `_target_` are bound against the constructor's signature: its names, its types and
the ranges in its annotations are the schema (docs/decisions/0004-settings-ranges-in-signatures.md).
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mosaickd.config.schema import SUPPLIED, Root, given_overrides, images_of, needs, target_of
from mosaickd.config.targets import check_targets, resolve
from mosaickd.constraints import LARGEST, TOO_LARGE, Count, NonNegative, Range
from mosaickd.engine.settings import TrainSettings
from mosaickd.errors import UserError, nearest

#: Keys beside `_target_` that are not constructor arguments: who reads them, and what they are.
ANNOTATIONS: dict[str, Any] = {
    "name": str,  # the run's folder and result
    "checkpoint": str | None,  # mosaickd.teachers: weights of a teacher
    "features": list[str] | str | None,  # methods that compare features: module paths to hook
    "embedding": list[str] | str | None,  # the same, for the input of the classifier
    "recipe": dict,  # conf/method/scratch.yaml: how a classifier is trained on this data set
}
RECIPE = {"epochs": Count, "batch_size": Count, "lr": NonNegative, "weight_decay": NonNegative}

#: What a section builds.
KINDS = {
    "dataset": "mosaickd.data.source.Source",
    "method": "mosaickd.methods.base.Method",
    "tracker": "mosaickd.engine.trackers.Tracker",
    "optimizer": "torch.optim.Optimizer",
    "schedule": "torch.optim.lr_scheduler.LRScheduler",
    **dict.fromkeys(("model", "generator", "discriminator"), "torch.nn.Module"),
}

#: What no function may make: what is asked of these is read off the class.
CLASSES = {"dataset", "method", "tracker"}

#: How many arguments it is called with by position.
POSITIONAL = {"optimizer": 1, "schedule": 2}


def validate(cfg: DictConfig) -> None:
    """Raise a UserError for the first setting that can't be meant."""
    try:
        _validate(cfg)
    except OmegaConfBaseException as error:  # interpolations, settings taken away
        raise UserError(" ".join(str(error).split())) from error


def _validate(cfg: DictConfig) -> None:
    # All but `cell`, a text made of the names of parts that may be missing, which is told below.
    content = {key: cfg[key] for key in cfg if key != "cell"}
    resolved = {
        key: OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else part
        for key, part in content.items()
    }
    check_targets(resolved, cfg.get("allow_targets", []))
    _check_overrides(cfg)
    _check_root(cfg)
    check_node(cfg.method, "method", "method")
    if images_of(cfg) == "ood" and cfg.ood is None:
        raise UserError(
            f"method={cfg.method.name} distils from out-of-domain images and there are none: "
            "choose some with ood=NAME (data-free methods: dfq, dafl, zskt, deepinv)"
        )
    kinds = {"dataset": "dataset", "ood": "dataset", "teacher": "model", "student": "model"}
    for name in ("dataset", "ood", "teacher", "student"):
        if name != "ood" or cfg.ood is not None:
            check_node(cfg[name], name, kinds[name])
    for name in ("method", *kinds):
        if cfg[name] is not None and cfg[name].get("name") is None:
            raise UserError(f"{name}.name is missing: folders are called by it")
    for key, value in (cfg.dataset.get("recipe") or {}).items():
        if key not in RECIPE:
            raise UserError(unknown(f"dataset.recipe.{key}", RECIPE))
        if problem := violation(value, RECIPE[key]):
            raise UserError(f"dataset.recipe.{key} {problem}, got {value!r}")
    for part in needs(cfg) & {"generator", "discriminator"}:
        check_node(cfg[part], part, part)
    if "latents" in needs(cfg) and (
        problem := violation((cfg.generator or {}).get("latent_dim"), Count)
    ):
        raise UserError(f"generator.latent_dim {problem}: method={cfg.method.name} draws the noise")
    if cfg.student.get("checkpoint") is not None:
        raise UserError(
            "student.checkpoint has no effect: a student starts from random weights. "
            "teacher.checkpoint=FILE gives the teacher its weights"
        )
    _check_players(cfg)
    check_node(cfg.tracker, "tracker", "tracker")


def _check_root(cfg: DictConfig) -> None:
    """What builds nothing: its names, and ranges."""
    known = [setting.name for setting in dataclasses.fields(Root)]
    for key in cfg:
        if key not in known:
            raise UserError(unknown(str(key), known))
    if missing := sorted(set(known) - {str(key) for key in cfg}):
        raise UserError(f"{missing[0]} is missing: it can be changed, and not be taken away")
    if not 0 <= cfg.seed < 2**62:
        raise UserError(f"seed must be between 0 and 2**62, got {cfg.seed}")
    for setting in dataclasses.fields(TrainSettings):
        value = cfg.train[setting.name]
        bounds = setting.metadata.get("range")
        if value is not None and bounds and (problem := bounds.violation(value)):
            raise UserError(f"train.{setting.name} {problem}, got {value}")
    if cfg.train.steps is None and cfg.train.epochs is None:
        raise UserError("train.steps and train.epochs are both null: say how long to train")
    if cfg.ood_subset_size is not None and cfg.ood_subset_size < 1:
        raise UserError(f"ood_subset_size must be at least 1, got {cfg.ood_subset_size}")


def _check_players(cfg: DictConfig) -> None:
    players = cfg.players or {}
    if not OmegaConf.is_dict(players) and players:
        raise UserError(f"players must have a section for each player, got {players!r}")
    for player in cfg.train.sync_batch_norm:
        if player not in players:
            raise UserError(
                f"train.sync_batch_norm names {player!r}, and method={cfg.method.name} has the "
                f"players {', '.join(players)}"
            )
    for player, node in players.items():
        if not OmegaConf.is_dict(node):
            raise UserError(f"players.{player} must have an optimizer and a schedule, got {node!r}")
        for part in node:
            if part not in ("optimizer", "schedule"):
                raise UserError(unknown(f"players.{player}.{part}", ["optimizer", "schedule"]))
            check_node(node[part], f"players.{player}.{part}", part)


def check_node(node: Any, path: str, kind: str) -> None:
    """Bind one section against its `_target_`. path: where it stands, for the messages."""
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        raise UserError(f"{path} must be a section with a _target_, got {node!r}")
    target = target_of(node, path)
    try:
        signature = inspect.signature(target)
    except ValueError as error:  # of some functions written in C
        raise UserError(f"{path}._target_: {node._target_} doesn't say what it takes") from error
    hints = _hints(target)
    supplied = SUPPLIED.get(kind, set())
    expected = KINDS.get(kind)
    if expected and not _is_kind(target, expected, or_makes_one=kind not in CLASSES):
        raise UserError(f"{path}._target_: {node._target_} is no {kind}: no {expected}")
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    lacking = supplied - set(signature.parameters) - {"max_broken"}  # it may do without
    if kind == "reader" and lacking:
        raise UserError(
            f"{path}._target_: {node._target_} is no reader: it does not take {sorted(lacking)}"
        )
    places = [p.kind for p in signature.parameters.values() if p.kind < p.KEYWORD_ONLY]
    if len(places) < POSITIONAL.get(kind, 0) and inspect.Parameter.VAR_POSITIONAL not in places:
        raise UserError(f"{path}._target_: {node._target_} is no {kind}")
    accepted = [
        name
        for name, p in signature.parameters.items()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and name not in supplied
    ]
    given = {k for k in node if k not in ("_target_", "_partial_", "_convert_")}
    annotations = {k: v for k, v in ANNOTATIONS.items() if k not in accepted}
    values: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=False)
    if not isinstance(values.get("_partial_", False), bool):
        raise UserError(f"{path}._partial_ must be true or false, got {values['_partial_']!r}")
    for key in sorted(given):
        if key not in accepted and key not in annotations and not accepts_any:
            raise UserError(unknown(f"{path}.{key}", accepted))
        value = values[key]
        if value == "???":
            raise UserError(f"{path}.{key} has no value: give one, {path}.{key}=...")
        if isinstance(value, dict) and "_target_" in value:
            check_node(node[key], f"{path}.{key}", "reader" if key == "reader" else "part")
        elif problem := violation(value, annotations.get(key, hints.get(key, Any))):
            raise UserError(f"{path}.{key} {problem}, got {value!r}")
    for name in accepted:
        if signature.parameters[name].default is inspect.Parameter.empty and name not in given:
            if node.get("_partial_") and kind != "reader":  # who calls it may add what is missing
                continue
            raise UserError(f"{path}.{name} is missing: {node._target_} needs it")


def violation(value: Any, hint: Any) -> str | None:
    """What is wrong with `value` for an annotation, in words that follow a setting's name."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        problem = violation(value, arguments[0])
        for bounds in arguments[1:]:
            if problem is None and isinstance(bounds, Range):
                problem = bounds.violation(value)
        return problem
    if origin in (typing.Union, types.UnionType):
        # Foreign classes (Tensor) can't be written in YAML: they excuse nothing where a type
        # that can be is an option too.
        known = [a for a in arguments if a in _PLAIN or typing.get_origin(a)] or arguments
        problems = [violation(value, option) for option in known]
        return None if None in problems else next(p for p in problems if p)
    if origin is typing.Literal:
        return None if value in arguments else f"must be one of {', '.join(map(str, arguments))}"
    if origin in (list, tuple, typing.Sequence) or origin in _SEQUENCES:
        if not isinstance(value, list):
            return "must be a list"
        return next((p for item in value if (p := violation(item, arguments[0]))), None)
    if origin is Callable:  # a part that the section builds
        return "must be a section with a _target_"
    if hint is type(None):
        return None if value is None else "must be null"
    if hint in (int, float) and isinstance(value, int) and abs(value) >= LARGEST:
        return TOO_LARGE
    if hint is dict:
        return None if isinstance(value, dict) else "must be a section"
    if hint is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        return None if ok else "must be a number"
    if hint is int:
        ok = isinstance(value, int) and not isinstance(value, bool)
        return None if ok else "must be a whole number"
    if hint is bool:
        return None if isinstance(value, bool) else "must be true or false"
    if hint is str:
        return None if isinstance(value, str) else "must be a text"
    return None


_PLAIN = (float, int, bool, str, type(None))
_SEQUENCES = {typing.get_origin(typing.Sequence[int]), typing.get_origin(Iterable[int])}


def _is_kind(thing: Any, expected: str, or_makes_one: bool) -> bool:
    kind = resolve(expected, "")
    assert inspect.isclass(kind)
    return issubclass(thing, kind) if inspect.isclass(thing) else or_makes_one


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return what a target's arguments are annotated with, by name.

    A dataclass is asked itself: its `__init__` would look up the annotations of inherited fields
    in the wrong module.
    """
    annotated: Any = target
    if inspect.isclass(target) and not dataclasses.is_dataclass(target):
        annotated = target.__init__
    try:
        return typing.get_type_hints(annotated, include_extras=True)
    except Exception:  # annotations of foreign code that don't resolve: names still bind
        return {}


def _check_overrides(cfg: DictConfig) -> None:
    """Refuse what the command line says and the run would ignore."""
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    given = given_overrides()
    keys = {override.partition("=")[0].partition("@")[0] for override in given}
    if hydra.mode == RunMode.MULTIRUN:
        keys.discard("ood.root")  # of a sweep, some cells may need it and others not
    if hydra.runtime.choices.get("ablation") and "discriminator" not in needs(cfg):
        raise UserError(
            f"ablation= changes the game of MosaicKD, and method={cfg.method.name} plays another: "
            "leave one of them out"
        )
    if hydra.runtime.choices.get("pair") and (both := keys & {"teacher", "student"}):
        raise UserError(
            f"pair= chooses teacher and student, so {both.pop()}= can't be given beside it: "
            "two cells would share a folder. Give one or the other"
        )
    used = needs(cfg) | {"dataset", "student", images_of(cfg)}
    for part in ("teacher", "ood"):
        said = {k for k in keys if k == part or k.startswith((f"{part}.", f"{part}_subset"))}
        if part not in used and said and f"{part}=null" not in given:
            raise UserError(
                f"{said.pop()} has no effect with method={cfg.method.name}, which uses no {part} "
                "images: leave it out"
                if part == "ood"
                else f"{said.pop()} has no effect with method={cfg.method.name}, which has no "
                "teacher: leave it out"
            )
    if cfg.ood_subset_size is not None and "ood_subset_size" in keys and not cfg.ood_subset:
        raise UserError(
            "ood_subset_size has no effect without ood_subset=true: give both, or leave it out"
        )


def unknown(path: str, accepted: Iterable[str]) -> str:
    """An error message for a key that nobody reads, with the nearest names that someone does."""
    key = path.rpartition(".")[2]
    accepted = sorted(accepted)
    return f"{path} is unknown{nearest(key, accepted)}; accepted here: {', '.join(accepted)}"
