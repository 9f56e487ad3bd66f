"""The config's shape: group aliases, the schema of what builds nothing, and what its sections name.

Torch is imported once a `_target_` is looked at, not before: `python run.py --cfg job` answers at
once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mosaickd.config import trust
from mosaickd.config.targets import resolve
from mosaickd.engine.settings import TrainSettings
from mosaickd.methods.inputs import INPUTS

CONF = Path(__file__).resolve().parents[2] / "conf"
SWEEPS = CONF.parent / "sweeps"

#: What the launcher adds when it builds a node, beyond what the YAML says.
SUPPLIED = {
    "dataset": set[str](),
    "reader": {"root", "split", "image_size", "max_broken"},
    "model": {"num_classes"},
    "generator": {"image_size"},
    "discriminator": {"image_size"},
    "method": set(INPUTS),
    "optimizer": {"params"},
    "schedule": {"optimizer", "steps"},
    "tracker": {"run"},
}


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


# ----------------------------------------------------------------------------- what a config says


def needs(cfg: DictConfig) -> set[str]:
    """The parts that the method plays with, read off its constructor's signature."""
    target = target_of(cfg.method, "method")
    return SUPPLIED["method"] & set(inspect.signature(target).parameters)


def images_of(cfg: DictConfig) -> Literal["dataset", "ood"] | None:
    """Which image source the method trains on, if on any: its class says so."""
    return getattr(target_of(cfg.method, "method"), "source", "ood")


def target_of(node: Any, path: str) -> Callable[..., Any]:
    """What a section's `_target_` names. path: where it stands, for the messages."""
    return resolve(node._target_, f"{path}._target_")


def given_overrides() -> list[str]:
    """The overrides of the command line, as NAME=VALUE; what is taken away (~ood) is null."""
    task: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [o.lstrip("+~") if "=" in o else f"{o.lstrip('~')}=null" for o in task]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as nested dicts, lists, numbers and texts."""
    content = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}
