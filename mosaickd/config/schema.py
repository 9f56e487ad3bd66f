"""The shape of a config: its root, `train`, the aliases of groups, and what its sections ask for.

Nothing here imports torch before a `_target_` is looked up: `python run.py --cfg job` answers at
once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from mosaickd.config.targets import resolve
from mosaickd.constraints import Count
from mosaickd.engine.settings import TrainSettings
from mosaickd.methods.inputs import INPUTS

CONF = Path(__file__).resolve().parents[2] / "conf"
SWEEPS = CONF.parent / "sweeps"

#: Arguments that the launcher adds when it builds a section, beyond what the YAML says.
SUPPLIED = {
    "dataset": set[str](),
    "reader": {"root", "split", "image_size", "max_broken", "progress"},
    "model": {"num_classes"},
    "generator": {"image_size"},
    "discriminator": {"image_size"},
    "method": set(INPUTS),
    "optimizer": {"params"},
    "schedule": {"optimizer", "steps"},
    "tracker": {"run"},
}


# Hydra reads the plain types of these dataclasses; the ranges are mosaickd.config.validation's.


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
    ood_subset_size: Count | None = None
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    device: str = "auto"
    force: bool = False
    teacher_missing: TeacherMissing = TeacherMissing.train
    teachers_dir: str = "checkpoints"
    allow_targets: list[str] = field(default_factory=list)


def register() -> None:
    """Make the schema, `teacher=`, `student=` and `ood=` known to Hydra.

    The three are groups of their own that choose from conf/model and conf/dataset, also from
    those of a folder given with --config-dir. (A bare `model@teacher` in the defaults list would
    let `teacher=x` on the command line replace the whole group by a string.)
    """
    # `${when:FLAG,TEXT}`, in names of folders: TEXT, or nothing.
    OmegaConf.register_new_resolver("when", lambda flag, text: text if flag else "", replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Root)
    for folder in [CONF, *config_dirs(sys.argv)]:
        for group, aliases in {"model": ("teacher", "student"), "dataset": ("ood",)}.items():
            for name in options(folder / group):
                for alias in aliases:
                    node = {"defaults": [f"/{group}/{name}@_here_"]}
                    store.store(group=alias, name=name, node=node)


def options(folder: Path) -> list[str]:
    """Return the choices that a group's folder offers; a leading underscore marks a part."""
    return sorted(p.stem for p in folder.glob("*.yaml") if not p.stem.startswith("_"))


def config_dirs(arguments: list[str]) -> Iterable[Path]:
    """Yield the folders that a command line gives with --config-dir."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before in ("--config-dir", "-cd"):
            yield Path(argument)
        elif argument.startswith("--config-dir="):
            yield Path(argument.partition("=")[2])


# ---------------------------------------------------------------------------- reading a config


def required_inputs(cfg: DictConfig) -> set[str]:
    """Return what the method must be given, read off its constructor's signature."""
    target = target_of(cfg.method, "method")
    return SUPPLIED["method"] & set(inspect.signature(target).parameters)


def training_source(cfg: DictConfig) -> Literal["dataset", "ood"] | None:
    """Return which images the method trains on, if on any, as its class says."""
    return getattr(target_of(cfg.method, "method"), "source", "ood")


def target_of(node: Any, path: str) -> Callable[..., Any]:
    """Return what a section's `_target_` names. path: the section, for the messages."""
    return resolve(node._target_, f"{path}._target_")


def given_overrides() -> list[str]:
    """Return the overrides of the command line, as NAME=VALUE; what is deleted (~ood) is null."""
    task: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [o.lstrip("+~") if "=" in o else f"{o.lstrip('~')}=null" for o in task]


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as nested dicts, lists, numbers and strings."""
    content = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}
