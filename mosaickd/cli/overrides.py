"""The command line of run.py: what Hydra would misunderstand, and what doesn't compose, explained.

Says which override is wrong and what it may have meant, in place of Hydra's words.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mosaickd.cli import describe_os_error, main_guard, sweep
from mosaickd.config.schema import CONF, SWEEPS, config_dirs, options
from mosaickd.errors import ComposeError, UserError, nearest

#: Groups, and the folder that each one's choices lie in.
GROUPS = {
    **{folder.name: folder for folder in sorted(CONF.iterdir()) if folder.is_dir()},
    **{name: SWEEPS / name for name in ("sweep", "pair", "ablation")},
    **{"teacher": CONF / "model", "student": CONF / "model", "ood": CONF / "dataset"},
}

#: Launchers that plugins bring: of which package, and the extra that installs it.
PLUGINS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}

#: What joblib and submitit raise when a process with a job was killed, or ended by itself.
LOST = {"TerminatedWorkerError", "BrokenProcessPool", "UncompletedJobError", "FailedJobError"}


@contextmanager
def hydra_guard() -> Iterator[None]:
    """End a command of Hydra's, called inside, as `mosaickd.cli` says; a sweep with its table."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises, and prints nothing itself
    logging.raiseExceptions = False  # a log that can't be written (a full disk) ends no run
    with main_guard(), sweep.summary():
        check_flags(sys.argv[1:])
        sys.argv[1:] = [check_override(argument) for argument in sys.argv[1:]]
        try:
            yield
        except (UserError, BrokenPipeError):
            raise
        except Exception as error:
            raise translate(error, sys.argv[1:]) from error


def check_flags(arguments: list[str]) -> None:
    """Raise ComposeError for options of Hydra's that this project has no use for."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-name", "-cn", nargs="?", const="")
    parser.add_argument("--config-path", "-cp", nargs="?", const="")
    parser.add_argument("--experimental-rerun", nargs="?", const="")
    flags, _ = parser.parse_known_args(arguments)
    if flags.config_name is not None or flags.config_path is not None:
        raise ComposeError(
            "--config-name and --config-path would take the place of conf/config.yaml; "
            "--config-dir DIR with experiment=NAME adds DIR/experiment/NAME.yaml to it"
        )
    if flags.experimental_rerun is not None:
        raise ComposeError(
            "--experimental-rerun runs pickled code; a run's .hydra/overrides.yaml repeats it"
        )


def check_override(argument: str) -> str:
    """Return an argument as Hydra reads it; raise ComposeError where it can't be meant."""
    key, _, value = argument.partition("=")
    if key == "hydra/launcher" and value != "basic" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ComposeError(f"{argument} starts processes of its own: leave it out, or torchrun")
    if key == "sweep" and "," in value:  # Hydra would ignore both files' jobs
        raise ComposeError(f"{argument}: one sweep at a time; run them one after the other")
    if key in GROUPS and value == "null":
        return f"~{key}"
    if key in GROUPS and "null" in value.split(","):
        raise ComposeError(f"{argument}: null is no choice among others; give it alone")
    return argument


# ------------------------------------------------------------------------------------- messages


def translate(error: Exception, arguments: list[str]) -> UserError:
    """Return what to tell of an error that Hydra has raised before a job began, or around jobs."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ComposeError(explain(error, arguments))
    if type(error).__name__ in LOST:
        reason = " ".join(str(error).partition("\n---")[0].split())  # without its traceback
        return UserError(f"a process of the sweep ended early; the same command goes on. {reason}")
    causes = [*_causes(error)]
    for cause in causes:
        if isinstance(cause, OSError):  # also where logging can't open run.log
            return UserError(
                f"{describe_os_error(cause)}. If this is the run's folder, is it writable? "
                "hydra.run.dir=FOLDER chooses another"
            )
    reason = ": ".join(str(cause) or type(cause).__name__ for cause in causes)
    return ComposeError(f"Hydra can't carry out this command ({' '.join(reason.split())})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what it was raised for, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def explain(error: Exception, arguments: list[str]) -> str:
    """Return which override doesn't compose, and what it may have meant."""
    if emptied := re.search(r"node `(\w+)` is not a container", str(error)):
        return (
            f"{emptied[1]} is null, and this method needs one; options: "
            f"{', '.join(choices_of(emptied[1]))}"
        )
    if isinstance(error, OverrideParseException):
        first_line = str(error.message).partition("\n")[0]
        return f"{error.override}: not an override that Hydra can read ({first_line})"
    for argument in arguments:
        if not argument.startswith("-") and "=" in argument:
            key, _, value = argument.lstrip("+~").partition("=")
            key = key.partition("@")[0]
            if reason := _explain_override(argument, key, value, str(error)):
                return f"{argument}: {reason}"
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return " ".join(f"{error}{cause}".split())


def _explain_override(argument: str, key: str, value: str, error: str) -> str | None:
    """Return what is wrong with one override; None where that is none of these."""
    if key == "hydra/launcher":
        return plugin_missing(value)
    if key.startswith("hydra.launcher.") and f"'{key}'" in error:
        return (
            "this launcher has no such setting; hydra/launcher=NAME chooses another: "
            f"{', '.join(PLUGINS)}"
        )
    if key in GROUPS:
        choices = choices_of(key)
        for choice in value.strip("[]'\"").split(","):
            if choice not in ("null", "", *choices):
                hint = nearest(choice, choices)
                return f"{key} has no option {choice!r}{hint}; options: {', '.join(choices)}"
        return None
    if argument.startswith("+") or key.startswith("hydra"):
        return None
    keys = known_keys()
    if not keys or key in keys:
        return None
    alike = [name for name in keys if ("." in name) == ("." in key)]
    hint = nearest(key, [*alike, *(() if "." in key else GROUPS)])
    return (
        f"there is no setting or group {key!r} here{hint}; python run.py --help lists the groups, "
        "--cfg job all settings"
    )


def plugin_missing(launcher: str) -> str | None:
    """Return what to do about a launcher that isn't there; None if it is, or is the user's own."""
    if launcher in PLUGINS:
        package, extra = PLUGINS[launcher]
        if find_spec("hydra_plugins") and find_spec(package):
            return None
        return f'needs the plugin, pip install "mosaickd[{extra}]"'
    if close := nearest(launcher, PLUGINS):
        return f"there is no such launcher{close} They are {', '.join(PLUGINS)}"
    return None


def choices_of(group: str) -> list[str]:
    """Return what a group offers, also from folders given with --config-dir."""
    own = GROUPS[group]
    extra = [option for folder in config_dirs(sys.argv) for option in options(folder / own.name)]
    return sorted({*options(own), *extra})


def known_keys() -> set[str]:
    """Return all settings, dotted, of the config that the command line's valid choices give.

    Empty where they give none.
    """
    overrides = []
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key in GROUPS and key != "sweep" and value in options(GROUPS[key]):
            overrides.append(argument)  # what lies in a --config-dir is not composed here
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException):
        return set()
    return set(_dotted(OmegaConf.to_container(cfg, resolve=False), ""))


def _dotted(content: Any, path: str) -> Iterator[str]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield f"{path}{name}"
            yield from _dotted(value, f"{path}{name}.")
