"""Configs as commands compose them, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mosaickd.config import schema as config
from mosaickd.config.schema import CONF, options
from mosaickd.config.validation import validate


@contextmanager
def composing() -> Iterator[None]:
    """Inside, `compose_config`, `composed`, `check` and `cells` work."""
    config.register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        HydraConfig.instance().cfg = None


def compose_config(*overrides: str) -> DictConfig:
    """The config, as a program asks for it: there is no command line to look at."""
    return compose("config", overrides=list(overrides))


def composed(*overrides: str) -> DictConfig:
    """The config, with Hydra's own beside it where validation looks for the command line."""
    cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def own(cfg: DictConfig) -> DictConfig:
    """Without Hydra's part: what a run is given."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def check(*overrides: str) -> DictConfig:
    """The config; it must pass validation, and the run have a folder."""
    cfg = composed(*overrides)
    folder = cfg.hydra.sweep.subdir if cfg.hydra.mode == RunMode.MULTIRUN else cfg.hydra.run.dir
    assert folder
    given = own(cfg)
    OmegaConf.resolve(given)
    validate(given)
    return cfg


def cells(sweep: str, *arguments: str) -> list[list[str]]:
    """The overrides of each job that `python run.py -m sweep=NAME ARGUMENTS` launches."""
    hydra = composed(f"sweep={sweep}").hydra
    assert hydra.mode == RunMode.MULTIRUN, "hydra.mode: MULTIRUN, so that -m may be forgotten"
    params = hydra.sweeper.params or {}
    lines = [f"sweep={sweep}", *(f"{key}={value}" for key, value in params.items()), *arguments]
    overrides = OverridesParser.create().parse_overrides(lines)
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    return [list(cell) for cell in batch]


def choices(folder: Path) -> list[str]:
    """What a group's folder offers: something."""
    found = options(folder)
    assert found, f"{folder} is empty"
    return found
