"""What a user sees when a command can't be carried out: one clear message and an exit code.

0 done; 1 a mistake or a failure; 2 a config that doesn't compose; 130 and 143 Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mosaickd import analysis
from mosaickd.cells import Cells
from mosaickd.config.schema import CONF, SWEEPS, config_dirs, options
from mosaickd.engine.interruption import Interrupted
from mosaickd.errors import UserError, nearest, shortened
from mosaickd.programs import ignore_broken_pipe, open_streams, silence_stdout

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

#: What joblib and submitit raise when a process with a cell was killed, or ended by itself.
LOST = {"TerminatedWorkerError", "BrokenProcessPool", "UncompletedJobError", "FailedJobError"}


def run_command(main: Callable[[], Any]) -> None:
    """Call `main`, a hydra.main function, once the command line has been looked at."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands errors on; they are told here
    logging.raiseExceptions = False  # a log that can't be written (a full disk) ends no run
    open_streams()
    check_flags()
    for position, argument in enumerate(sys.argv[1:], 1):
        key, _, value = argument.partition("=")
        plugin = key == "hydra/launcher" and value != "basic"
        if plugin and os.environ.get("WORLD_SIZE", "1") != "1":
            _fail(f"{argument} starts processes of its own: leave it out, or torchrun", 2)
        if key == "sweep" and "," in value:  # Hydra would ignore both lists
            _fail(f"{argument}: one sweep at a time; run them one after the other", 2)
        if key in GROUPS and value == "null":
            sys.argv[position] = f"~{key}"  # how Hydra wants it said
        elif key in GROUPS and "null" in value.split(","):
            _fail(f"{argument}: null is no choice among others; give it alone", 2)
    main_guard(main)


def main_guard(main: Callable[[], Any]) -> None:
    """Call `main` and end the process as this module's title says."""
    try:
        try:
            main()
            Cells.check_some()
        finally:
            with ignore_broken_pipe():
                Cells.close()
                SweepSummary.show()
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        sys.exit(1) if error.told else _fail(str(error), 1)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(explain(error, sys.argv[1:]), 2)
    except RuntimeError as error:
        if type(error).__name__ not in LOST:
            raise
        said = " ".join(str(error).partition("\n---")[0].split())  # no traceback
        _fail(f"a process of the sweep ended early; the same command goes on. {said}", 1)
    except BrokenPipeError:  # `--help | head`
        silence_stdout()
    except OSError as error:
        _fail_to_write(error)
    except Exception as error:
        if isinstance(error.__cause__, OSError):  # how logging wraps that run.log can't be opened
            _fail_to_write(error.__cause__)
        if _in_a_run(error):
            raise
        causes = [*_causes(error)]
        for cause in causes:
            if isinstance(cause, ImportError):  # logging loads classes, and torch with them
                _fail(f"a package can't be loaded: {' '.join(str(cause).split())}", 1)
        said = ": ".join(f"{type(e).__name__} {e}".strip() for e in causes)
        _fail(f"Hydra can't carry out this command ({' '.join(said.split())})", 2)


def check_flags() -> None:
    """Refuse options of Hydra's that this project has no use for, or that contradict each other."""
    parser = get_args_parser()
    parser.error = lambda message: _fail(message, 2)  # type: ignore[method-assign]
    flags = parser.parse_args()
    if flags.cfg and flags.multirun:
        _fail("--cfg shows the config of one run: leave out -m", 2)
    if flags.config_name is not None or flags.config_path is not None:
        _fail(
            "--config-name and --config-path would take the place of conf/config.yaml; "
            "--config-dir DIR with experiment=NAME adds DIR/experiment/NAME.yaml to it",
            2,
        )
    if flags.experimental_rerun is not None:
        _fail("--experimental-rerun runs pickled code; a run's .hydra/overrides.yaml repeats it", 2)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised for, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _in_a_run(error: BaseException) -> bool:
    """Whether an error comes out of a run, not out of Hydra's preparations for one."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "mosaickd.launch" for frame, _ in frames)


class SweepSummary(Callback):
    """Remembers which sweep runs, so that its table can be printed however it ends.

    (Hydra's `on_multirun_end` is not called when a cell has failed.)
    """

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if os.environ.get("RANK", "0") == "0":  # of several processes that play together
            SweepSummary.folder = Path(config.hydra.sweep.dir)

    @classmethod
    def show(cls) -> None:
        if cls.folder:
            analysis.show_sweep(cls.folder)


def explain(error: Exception, arguments: list[str]) -> str:
    """Say which override doesn't compose and what it may have meant, in place of Hydra's words."""
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
            keys = list(_known_keys())
            if keys and key not in keys:
                alike = [name for name in keys if ("." in name) == ("." in key)]
                hint = nearest(key, [*alike, *(() if "." in key else GROUPS)])
                return f"{argument}: there is no setting or group {key!r} here{hint}" + (
                    "; python run.py --help lists the groups, --cfg job all settings"
                )
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return " ".join(f"{error}{cause}".split())


def plugin_missing(launcher: str) -> str | None:
    """What to do about a launcher that isn't there; None where it is, or is the user's own."""
    if launcher in PLUGINS:
        package, extra = PLUGINS[launcher]
        if find_spec("hydra_plugins") and find_spec(package):
            return None
        return f'needs the plugin, pip install "mosaickd[{extra}]"'
    if close := nearest(launcher, PLUGINS):
        return f"there is no such launcher{close} They are {', '.join(PLUGINS)}"
    return None


def choices_of(group: str) -> list[str]:
    """What a group offers, also from folders given with --config-dir."""
    own = GROUPS[group]
    extra = [option for folder in config_dirs(sys.argv) for option in options(folder / own.name)]
    return sorted({*options(own), *extra})


def _known_keys() -> Iterator[str]:
    """All settings of the config that the command line's valid group choices give, dotted."""
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


def _fail_to_write(error: OSError) -> NoReturn:
    if not error.filename:
        _fail(f"{error.strerror or error}: what was to be printed, or a file without a name", 1)
    where = f": {error.filename}"
    _fail(
        f"{error.strerror or error}{where}. If this is the run's folder, is it writable? "
        "hydra.run.dir=FOLDER chooses another",
        1,
    )


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {shortened(message)}", file=sys.stderr)
    sys.exit(code)
