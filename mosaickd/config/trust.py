"""What a YAML may say of Hydra itself, checked between composing and Hydra's acting on it.

Hydra builds its callbacks, configures logging and starts launchers before a run's own config is
looked at, and all of these call what a YAML names. So the loader that composes is ours, for a
command as for each cell of a sweep, whatever process it runs in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.plugins.config_source import ConfigLoadError
from omegaconf import DictConfig, OmegaConf

from mosaickd.config.targets import check_targets, targets_in
from mosaickd.errors import UserError

CALLBACKS = {
    *("mosaickd.cli.SweepSummary", "mosaickd.parallel.SideBySide"),
    "mosaickd.cells.Cells",
}
LOGGING = {
    *("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter"),
    "mosaickd.engine.progress.ConsoleHandler",
}
#: What a sweep file is for.
SWEPT = ("hydra.sweeper.params.", "hydra.sweeper.max_batch_size")
STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
LOG_FILE = re.compile(r"\$\{hydra\.runtime\.output_dir\}/(\$\{hydra\.job\.name\}|[\w-]+)\.log")


class Loader(ConfigLoaderImpl):
    """Composes as Hydra does; what it returns has passed `check`."""

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *args: Any, **more: Any
    ) -> DictConfig:
        cfg = super().load_configuration(config_name, overrides, *args, **more)
        check(cfg, overrides)
        return cfg


def install() -> None:
    """Make Hydra compose with `Loader`."""
    hydra._internal.hydra.ConfigLoaderImpl = Loader  # type: ignore[misc]


def check(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raise a UserError where a YAML says what only the command line may, or names foreign code.

    overrides: the command line's; of a sweep's cell, also what its sweep file lists.
    """
    said = _content(cfg, "hydra.overrides", resolve=False)
    if sorted([*said["hydra"], *said["task"]]) != sorted(overrides):
        raise UserError("hydra.overrides repeats the command line: a YAML can't add to it")
    typed = {_key(override) for override in overrides}
    allowed = OmegaConf.select(cfg, "allow_targets") or []
    if allowed and "allow_targets" not in typed:
        raise UserError(
            f"allow_targets={list(allowed)} stands in a YAML, which can't vouch for itself: say it "
            f"on the command line, allow_targets=[{','.join(allowed)}]"
        )
    for key in OmegaConf.select(cfg, "hydra.sweeper.params") or []:
        if _key(str(key)).startswith(("hydra", "allow_targets")):
            raise UserError(f"hydra.sweeper.params can't list {key}: say it on the command line")
    batch = OmegaConf.select(cfg, "hydra.sweeper.max_batch_size")
    if isinstance(batch, int) and batch < 1:
        raise UserError(f"hydra.sweeper.max_batch_size must be at least 1, got {batch}")
    for path, name in targets_in(_content(cfg, "hydra.callbacks"), "hydra.callbacks"):
        if name not in CALLBACKS:
            _check_allowed(path, name, "none of this project's callbacks", allowed)
    for section in ("hydra.job_logging", "hydra.hydra_logging"):
        _check_logging(cfg, section, allowed)
    if "hydra_plugins" not in allowed:
        _check_launching(cfg, typed)


def _check_logging(cfg: DictConfig, section: str, allowed: Sequence[str]) -> None:
    """Python's logging calls what stands under `class` and `()`, and imports what ext:// names."""
    for path, value in _leaves(_content(cfg, section, resolve=False), section):
        key, text = path.rpartition(".")[2], str(value)
        if ".." in path:  # a handler's attributes stand under `.`
            raise UserError(f"{path} can't be set from a config")
        if key in ("class", "()") or (text.startswith("ext://") and text not in STREAMS):
            if text not in LOGGING:
                _check_allowed(path, text.removeprefix("ext://"), "no plain handler", allowed)
        elif key == "filename":
            if not LOG_FILE.fullmatch(text):
                raise UserError(
                    f"{path} must be a .log in the run's folder, "
                    f"${{hydra.runtime.output_dir}}/NAME.log, got {text!r}"
                )
        elif key == "stream":
            if value is not None and text not in STREAMS:
                raise UserError(f"{path} must be one of {', '.join(sorted(STREAMS))}, got {text!r}")
        elif "${" in text:
            raise UserError(f"{path} must not refer to another setting, got {text!r}")


def _check_launching(cfg: DictConfig, typed: set[str]) -> None:
    """What starts processes, and their environment: what the plugin says itself, or was typed."""
    given: dict[str, Any] = {}
    for section in ("launcher", "sweeper"):
        own = dict(_leaves(_plugin(section, cfg), f"hydra.{section}"))
        said = _leaves(_content(cfg, f"hydra.{section}", resolve=False), f"hydra.{section}")
        given |= {path: value for path, value in said if (path, value) not in own.items()}
    environment = _content(cfg, "hydra.job.env_set") or {}
    given |= {f"hydra.job.env_set.{k}": v for k, v in environment.items() if os.environ.get(k) != v}
    for path in given:
        places = {path.rsplit(".", n)[0] for n in range(path.count("."))}
        if not path.startswith(SWEPT) and not places & typed:
            raise UserError(
                f"{path} decides how processes are started, and stands in a YAML: say it on the "
                "command line, or trust this one with allow_targets=[hydra_plugins]"
            )
    for path, _ in targets_in(_content(cfg, "hydra.sweeper.params"), "hydra.sweeper.params"):
        raise UserError(f"{path}: a sweep lists overrides, and builds nothing")
    for path, value in _leaves(_content(cfg, "hydra.launcher"), "hydra.launcher"):
        if isinstance(value, str) and not value.isprintable():  # Slurm's scripts have lines
            raise UserError(f"{path} must be one line, got {value!r}")


def _plugin(section: str, cfg: DictConfig) -> Any:
    """A launcher's or sweeper's settings as its plugin registers them; none of an unknown one."""
    chosen = cfg.hydra.runtime.choices.get(f"hydra/{section}")
    try:
        node = ConfigStore.instance().load(f"hydra/{section}/{chosen}.yaml").node
    except ConfigLoadError:
        return {}
    return OmegaConf.to_container(node)


def _check_allowed(path: str, name: str, what: str, allowed: Sequence[str]) -> None:
    package = name.partition(".")[0]
    if package not in allowed:
        raise UserError(
            f"{path}: {name} is {what}; if you trust the package: "
            f"allow_targets=[{','.join([*allowed, package])}]"
        )
    check_targets({path: {"_target_": name}}, allowed)  # the package's own, or what it imports?


def _content(cfg: DictConfig, path: str, resolve: bool = True) -> Any:
    node = OmegaConf.select(cfg, path)
    return OmegaConf.to_container(node, resolve=resolve) if OmegaConf.is_config(node) else node


def _leaves(content: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict | list):
        parts = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in parts:
            yield from _leaves(value, f"{path}.{key}")
    else:
        yield path, content


def _key(override: str) -> str:
    """`++hydra.run.dir=x` -> hydra.run.dir"""
    return override.strip().lstrip("+~").partition("=")[0].partition("@")[0].strip()
