"""What a command line may say, and how a command ends: one clear message and an exit code.

0 done; 1 a mistake or a failure; 2 a config that doesn't compose; 129, 130 and 143 a closed
terminal, Ctrl-C and SIGTERM. Library code raises; only here (and in `task`) a process is ended.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mosaickd.config.schema import CONF, SWEEPS, config_dirs, options
from mosaickd.engine.interruption import Interrupted
from mosaickd.errors import UserError, nearest, shortened

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

#: Options of Hydra's that this project has no use for, and what to do instead.
REFUSED = {
    ("--config-name", "-cn", "--config-path", "-cp"): (
        "--config-name and --config-path would take the place of conf/config.yaml; "
        "--config-dir DIR with experiment=NAME adds DIR/experiment/NAME.yaml to it"
    ),
    ("--experimental-rerun",): (
        "--experimental-rerun runs pickled code; a run's .hydra/overrides.yaml repeats it"
    ),
}


def run_command(main: Callable[[], Any]) -> None:
    """Call `main`, a hydra.main function, once the command line has been checked."""
    from mosaickd.sweep import check_sweep, close_sweep  # which imports rich and Hydra's sweeper

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands errors on; they are printed here
    logging.raiseExceptions = False  # a log that can't be written (a full disk) ends no run
    with main_guard():
        sys.argv[1:] = check_arguments(sys.argv[1:])
        try:
            main()
            check_sweep()
        finally:
            with ignore_broken_pipe():
                close_sweep()


def check_arguments(arguments: list[str]) -> list[str]:
    """Return the arguments as Hydra takes them; end with 2 where they can't be meant."""
    flags = {argument.partition("=")[0] for argument in arguments if argument.startswith("-")}
    for names, message in REFUSED.items():
        if flags & set(names):
            fail(message, 2)
    if flags & {"--cfg", "-c"} and flags & {"--multirun", "-m"}:
        fail("--cfg shows the config of one run: leave out -m", 2)
    checked = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if (
            key == "hydra/launcher"
            and value != "basic"
            and os.environ.get("WORLD_SIZE", "1") != "1"
        ):
            fail(f"{argument} starts processes of its own: leave it out, or torchrun", 2)
        if key == "sweep" and "," in value:  # Hydra would ignore both lists
            fail(f"{argument}: one sweep at a time; run them one after the other", 2)
        if (
            key == "hydra.sweeper.max_batch_size"
            and re.fullmatch(r"-?\d+", value)
            and int(value) < 1
        ):
            fail(f"{key} must be at least 1, got {value}", 1)
        if key in GROUPS and value == "null":
            argument = f"~{key}"  # how Hydra wants it said
        elif key in GROUPS and "null" in value.split(","):
            fail(f"{argument}: null is no choice among others; give it alone", 2)
        checked.append(argument)
    return checked


# ----------------------------------------------------------------------------- how a command ends


@contextmanager
def main_guard() -> Iterator[None]:
    """End the process as this module's title says, whatever the command inside raises."""
    open_streams()
    try:
        yield
        sys.stdout.flush()
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        sys.exit(1) if error.reported else fail(str(error), 1)
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error, sys.argv[1:]), 2)
    except BrokenPipeError:  # `--help | head`: nobody reads the rest
        silence_stdout()
    except OSError as error:
        fail(describe_os_error(error), 1)
    except Exception as error:
        if type(error).__name__ in LOST:
            reason = " ".join(str(error).partition("\n---")[0].split())  # no traceback
            fail(f"a process of the sweep ended early; the same command goes on. {reason}", 1)
        if isinstance(error.__cause__, OSError):  # how logging wraps that run.log can't be opened
            fail(describe_os_error(error.__cause__), 1)
        if comes_from_run(error) or not comes_from_hydra(error):
            raise
        errors = [*causes(error)]
        for cause in errors:
            if isinstance(cause, ImportError):  # logging loads classes, and torch with them
                fail(f"a package can't be loaded: {' '.join(str(cause).split())}", 1)
        text = ": ".join(f"{type(e).__name__} {e}".strip() for e in errors)
        fail(f"Hydra can't carry out this command ({' '.join(text.split())})", 2)


def fail(message: str, code: int) -> NoReturn:
    """Print an error and end the process."""
    print(f"error: {shortened(message)}", file=sys.stderr)
    sys.exit(code)


def describe_os_error(error: OSError) -> str:
    """Return FILE, and what is wrong with it."""
    if not error.filename:
        return error.strerror or " ".join(str(error).split()) or type(error).__name__
    return (
        f"{error.strerror or error}: {error.filename}. If this is the run's folder, is it "
        "writable? hydra.run.dir=FOLDER chooses another"
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what it was raised for, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def comes_from_run(error: BaseException) -> bool:
    """Return whether an error comes out of a run, not out of Hydra's preparations for one."""
    return "mosaickd.launch" in modules_of(error)


def comes_from_hydra(error: BaseException) -> bool:
    """Return whether Hydra was under way."""
    return any(module.startswith("hydra.") for module in modules_of(error))


def modules_of(error: BaseException) -> set[str]:
    """Return the modules that an error's traceback goes through."""
    frames = traceback.walk_tb(error.__traceback__)
    return {str(frame.f_globals.get("__name__")) for frame, _ in frames}


# --------------------------------------------------------------------------------- standard output


def open_streams() -> None:
    """Replace standard streams that are closed; let all of them show any character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # what was printed before can't be
                stream.reconfigure(errors="replace")


def silence_stdout() -> None:
    """Send what is still printed to nowhere: nobody reads it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Print inside what a run came to: that nobody reads it is no fault of the run."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        silence_stdout()


# -------------------------------------------------------------------------- what doesn't compose


def explain(error: Exception, arguments: list[str]) -> str:
    """Return which override doesn't compose and what it may have meant, not in Hydra's words."""
    if emptied := re.search(r"node `(\w+)` is not a container", str(error)):
        return (
            f"{emptied[1]} is null, and this method needs one; options: "
            f"{', '.join(choices_of(emptied[1]))}"
        )
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not an override that Hydra can read ({error.message})"
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            continue
        key, _, value = argument.lstrip("+~").partition("=")
        key = key.partition("@")[0]
        if key == "hydra/launcher" and (missing := plugin_missing(value)):
            return f"{argument}: {missing}"
        if key.startswith("hydra.launcher.") and f"'{key}'" in str(error):
            return (
                f"{argument}: this launcher has no such setting; hydra/launcher=NAME chooses "
                f"another: {', '.join(PLUGINS)}"
            )
        if key in GROUPS:
            choices = choices_of(key)
            for choice in value.strip("[]'\"").split(","):
                if choice not in ("null", "", *choices):
                    hint = nearest(choice, choices)
                    return (
                        f"{argument}: {key} has no option {choice!r}{hint}; "
                        f"options: {', '.join(choices)}"
                    )
        elif not argument.startswith("+") and not key.startswith("hydra"):
            keys = list(known_keys())
            if keys and key not in keys:
                alike = [name for name in keys if ("." in name) == ("." in key)]
                hint = nearest(key, [*alike, *(() if "." in key else GROUPS)])
                return f"{argument}: there is no setting or group {key!r} here{hint}" + (
                    "; python run.py --help lists the groups, --cfg job all settings"
                )
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return " ".join(f"{error}{cause}".split())


def plugin_missing(launcher: str) -> str | None:
    """Return what to do about a missing launcher; None where it is there, or the user's own."""
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


def known_keys() -> Iterator[str]:
    """Yield all settings, dotted, of the config that the command line's valid choices give."""
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
        return

    def walk(node: Any, path: str) -> Iterator[str]:
        for name in node:
            yield f"{path}{name}"
            child = None if OmegaConf.is_missing(node, name) else node._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none():
                yield from walk(child, f"{path}{name}.")

    yield from walk(cfg, "")
