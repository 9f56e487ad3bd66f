"""The config's shape: group aliases, the schema of what builds nothing, and validation.

Nothing here imports torch until `validate` runs: `python run.py --cfg job` answers at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mosaickd import trust
from mosaickd.bounds import LARGEST, TOO_LARGE, Count, NonNegative, Range
from mosaickd.engine.settings import TrainSettings
from mosaickd.errors import UserError, nearest
from mosaickd.targets import check_targets, resolve

CONF = Path(__file__).resolve().parent.parent / "conf"
SWEEPS = CONF.parent / "sweeps"

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

#: What the launcher adds when it builds a node, beyond what the YAML says.
SUPPLIED = {
    "dataset": set[str](),
    "reader": {"root", "split", "image_size", "max_broken"},
    "model": {"num_classes"},
    "generator": {"image_size"},
    "discriminator": {"image_size"},
    "method": {
        *("student", "teacher", "generator", "discriminator"),
        *("student_features", "teacher_features", "student_embedding", "teacher_embedding"),
        *("teacher_statistics", "normalize", "latents", "augment", "rng"),
        *("gather", "batch_size", "num_classes", "image_size", "instances", "steps"),
    },
    "optimizer": {"params"},
    "schedule": {"optimizer", "steps"},
    "tracker": {"run"},
}

#: Settings of `train` that say how a run is watched, not what it computes.
WATCHING = {"eval_every", "checkpoint_every", "log_every", "check_every", "eval_batch_size"}

#: Settings of `train` that say how a run computes, and change no more than roundings.
COMPUTING = {"precision", "channels_last", "compile", "cuda_graph", "deterministic"}


class TeacherMissing(StrEnum):
    """What to do when no trained teacher is found: train one first, or stop."""

    train = "train"
    error = "error"


@dataclass
class Root:
    """The root of a run's config. Groups hold what conf/<group>/*.yaml says."""

    dataset: Any = None
    ood: Any = None
    teacher: Any = None
    student: Any = None
    method: Any = None
    generator: Any = None
    discriminator: Any = None
    players: Any = None
    train: TrainSettings = field(default_factory=TrainSettings)
    tracker: Any = None
    cell: str = ""
    ood_subset: bool = False
    ood_subset_size: int | None = None
    seed: int = 0
    device: str = "auto"
    force: bool = False
    teacher_missing: TeacherMissing = TeacherMissing.train
    teachers_dir: str = "checkpoints"
    allow_targets: list[str] = field(default_factory=list)


def register() -> None:
    """Make `schema`, `teacher=`, `student=` and `ood=` known to Hydra.

    The three are groups of their own that choose from conf/model and conf/dataset, also from
    those of a folder given with --config-dir. (A bare `model@teacher` in the defaults list would
    let `teacher=x` on the command line replace the whole group by a string.)
    """
    # `${when:FLAG,TEXT}`, in names of folders: TEXT, or nothing.
    OmegaConf.register_new_resolver("when", lambda flag, text: text if flag else "", replace=True)
    trust.install()
    store = ConfigStore.instance()
    store.store(name="schema", node=Root)
    for folder in [CONF, *config_dirs(sys.argv)]:
        for group, aliases in {"model": ("teacher", "student"), "dataset": ("ood",)}.items():
            for name in options(folder / group):
                for alias in aliases:
                    node = {"defaults": [f"/{group}/{name}@_here_"]}
                    store.store(group=alias, name=name, node=node)


def options(folder: Path) -> list[str]:
    """The choices that a group's folder offers; files with a leading underscore are parts."""
    return sorted(p.stem for p in folder.glob("*.yaml") if not p.stem.startswith("_"))


def config_dirs(arguments: list[str]) -> Iterable[Path]:
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before in ("--config-dir", "-cd"):
            yield Path(argument)
        elif argument.startswith("--config-dir="):
            yield Path(argument.partition("=")[2])


# ---------------------------------------------------------------------------------- validation


def validate(cfg: DictConfig) -> None:
    """Raise a UserError for the first setting that can't be meant, before anything is built.

    Sections with a `_target_` are bound against the constructor's signature: its names, its
    types and the ranges in its annotations are the schema.
    """
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


def needs(cfg: DictConfig) -> set[str]:
    """The parts that the method plays with, read off its constructor's signature."""
    target = _target(cfg.method, "method")
    return SUPPLIED["method"] & set(inspect.signature(target).parameters)


def images_of(cfg: DictConfig) -> Literal["dataset", "ood"] | None:
    """Which image source the method trains on, if on any: its class says so."""
    return getattr(_target(cfg.method, "method"), "source", "ood")


def check_node(node: Any, path: str, kind: str) -> None:
    """Bind one section against its `_target_`. path: where it stands, for the messages."""
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        raise UserError(f"{path} must be a section with a _target_, got {node!r}")
    target = _target(node, path)
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


def _target(node: Any, path: str) -> Callable[..., Any]:
    return resolve(node._target_, f"{path}._target_")


def _is_kind(thing: Any, expected: str, or_makes_one: bool) -> bool:
    kind = resolve(expected, "")
    assert inspect.isclass(kind)
    return issubclass(thing, kind) if inspect.isclass(thing) else or_makes_one


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # annotations of foreign code that don't resolve: names still bind
        return {}


def _check_overrides(cfg: DictConfig) -> None:
    """Refuse what the command line says and the run would ignore."""
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    given = _given()
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


def _given() -> list[str]:
    """The overrides of the command line, as NAME=VALUE; what is taken away (~ood) is null."""
    task: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [o.lstrip("+~") if "=" in o else f"{o.lstrip('~')}=null" for o in task]


def unknown(path: str, accepted: Iterable[str]) -> str:
    """An error message for a key that nobody reads, with the nearest names that someone does."""
    key = path.rpartition(".")[2]
    accepted = sorted(accepted)
    return f"{path} is unknown{nearest(key, accepted)}; accepted here: {', '.join(accepted)}"


# ------------------------------------------------------------------------------ a run's identity


def identity(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide what a run computes: two runs that agree here are the same run."""
    keys = {"dataset", "student", "method", "players", "train", "seed"}
    keys |= needs(cfg) & {"teacher", "generator", "discriminator"}
    if (source := images_of(cfg)) is not None:
        keys.add(source)
    if source == "ood" and cfg.ood_subset:
        keys |= {"ood_subset", "ood_subset_size"}
    content = plain(cfg)
    chosen = {key: content[key] for key in sorted(keys)}
    for images in chosen.keys() & {"dataset", "ood"}:
        # What these decide stands elsewhere; or, of broken images, in the images alone.
        for hint in ("recipe", "train_size", "max_broken"):
            chosen[images].pop(hint, None)
        if not chosen[images]["reader"].get("follow_links"):  # older runs had no such setting
            chosen[images]["reader"].pop("follow_links", None)
    chosen["train"] = {k: v for k, v in chosen["train"].items() if k not in WATCHING}
    return chosen


#: Overrides that choose a row and column of a table, or how a run is computed and watched; every
#: other one makes it another experiment than the recipe of its method.
PLAIN_OVERRIDES = re.compile(
    r"(method|dataset|ood|teacher|student|pair|sweep|tracker|seed|device|force|ood_subset"
    r"|teacher_missing|teachers_dir|allow_targets)=|tracker\.|hydra[./]|"
    r"(dataset|ood)\.(root|max_broken)=|"
    r"(dataset|ood)\.reader\.download=|teacher\.checkpoint=|train=default$|method\.teacher_at_once=|"
    r"(experiment|ablation|train\.steps|(dataset|ood)\.(classes|limit)|ood_subset_size)=null$|"
    rf"train\.({'|'.join(sorted(WATCHING | COMPUTING))})="
)


def variant() -> str | None:
    """How the run's command departs from its method's recipe; None where it doesn't."""
    if not HydraConfig.initialized():
        return None
    return ", ".join(sorted(o for o in _given() if not PLAIN_OVERRIDES.match(o))) or None


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as nested dicts, lists, numbers and texts."""
    content = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def config_hash(chosen: dict[str, Any]) -> str:
    """12 hex digits of the identity."""
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Settings that differ between two identities, as `path: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {old} -> {new}"]
