"""What lies in a run's folder from before, and what stays there."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open

from mosaickd.cells import SWEEP
from mosaickd.config.run_key import differences
from mosaickd.engine import checkpoint
from mosaickd.errors import UserError
from mosaickd.files import read_json, remove_temporaries, write_atomically, write_json

log = logging.getLogger(__name__)

#: Where a run's config lies as Hydra knows it.
HYDRA = ".hydra"

#: Who began a run: a later cell of the same sweep, or the same job that was queued again, is told
#: apart from somebody's new command.
LAUNCH_ID = f"{HYDRA}/begun_by.json"

#: What a run writes; in the order in which `force=true` removes it, as it may be killed there. (Not
#: the teacher that a short run trains for itself: who trains one anew removes that.)
PRODUCTS = (
    *("result.json", "student.safetensors", "checkpoints/last.pt", "checkpoints/previous.pt"),
    *("checkpoints/damaged.pt", "checkpoints/best.safetensors", "samples", "metrics.jsonl"),
    *("per_class.json", "config.json", "broken.txt", "wandb", "wandb.json"),
)

#: Where a run's files lie: what a kill left of them is removed there.
PLACES = ("", "checkpoints", "samples", HYDRA)


class Entered(NamedTuple):
    """before: what an earlier session of this run came to, if there was one; a finished run is to
    be left as it is. discards: another run lies there, which `discard` is to remove once this one
    is known to be able to begin."""

    before: dict[str, Any]
    discards: bool = False


def enter(cfg: DictConfig, folder: Path, chosen: dict[str, Any]) -> Entered:
    """Make a folder ready for a run of the identity `chosen`."""
    if (folder / HYDRA / "config.yaml").exists():  # a run's: nothing is removed from other folders
        for place in PLACES:
            remove_temporaries(folder / place)
        ours = launched_by_this_command(folder)
        if cfg.force and not ours:
            check_nothing_needed(cfg, folder)
            return Entered({}, discards=True)
    else:  # but what a kill left of the first files that a run writes there
        ours = False
        for first in ("config.json", LAUNCH_ID, f"{HYDRA}/config.yaml"):
            path = folder / first
            remove_temporaries(path.parent, of=path.name)
    before = read_object(folder / "result.json")
    begun = checkpoint.exist(folder / "checkpoints" / "last.pt")
    if begun or before.get("status") == "finished":
        if changes := differences(read_object(folder / "config.json"), chosen):
            raise UserError(two_cells(folder, changes) if ours else (
                f"{folder} holds a run with other settings ({'; '.join(changes[:5])}). "
                "Choose another folder with hydra.run.dir=FOLDER (of a sweep: "
                "hydra.sweep.dir=FOLDER), or discard that run with force=true"
            ))  # fmt: skip
        if before.get("status") == "finished":
            if has_weights(folder):
                return Entered(before)
            lost = f"{folder} is finished, but its student.safetensors can't be read"
            if not begun:
                log.warning("%s, and there is no checkpoint: force=true trains it anew", lost)
                return Entered(before)
            log.warning("%s: it is written again from the last checkpoint", lost)
            before["status"] = "interrupted"
    else:
        before = {}  # nothing to go on from: only its error is left
        write_json(folder / LAUNCH_ID, this_command())
    keep_settings(cfg, folder, chosen)
    return Entered(before)


def discard(cfg: DictConfig, folder: Path, chosen: dict[str, Any]) -> None:
    """Remove what an earlier run has left, and begin there."""
    clear(folder)
    write_json(folder / LAUNCH_ID, this_command())
    keep_settings(cfg, folder, chosen)


def clear(folder: Path) -> None:
    """Remove a run's products."""
    for name in PRODUCTS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def check_nothing_needed(cfg: DictConfig, folder: Path) -> None:
    """Raise a UserError where what `force=true` would remove is what the new run is made of."""
    products = [Path(os.path.realpath(folder / name)) for name in PRODUCTS]
    for name in ("teacher.checkpoint", "dataset.root", "ood.root"):
        said = OmegaConf.select(cfg, name)
        if not isinstance(said, str):
            continue
        given = Path(os.path.realpath(Path(said).expanduser()))
        if any(given == product or product in given.parents for product in products):
            raise UserError(
                f"{name}={said} is a product of the run in {folder}, which force=true would "
                "remove: move it away, or choose another folder with hydra.run.dir=FOLDER"
            )


def has_weights(folder: Path) -> bool:
    """Whether the run's student is there, and can be read."""
    try:
        with safe_open(folder / "student.safetensors", "pt"):
            return True
    except (OSError, SafetensorError):
        return False


# ------------------------------------------------------------------------------ who began a run


def this_command() -> dict[str, str | None]:
    """A sweep's cells have one name (`mosaickd.cells`), and so has a job that is queued again."""
    return {"sweep": os.environ.get(SWEEP), "job": os.environ.get("SLURM_JOB_ID")}


def launched_by_this_command(folder: Path) -> bool:
    """Whether a cell of the same sweep, or this job before it was queued again, began the run."""
    now = this_command()
    try:
        before = read_object(folder / LAUNCH_ID)
    except UserError:  # damaged: nobody's
        return False
    again = os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    same = {name for name in now if now[name] and now[name] == before.get(name)}
    return "sweep" in same or ("job" in same and again)


def two_cells(folder: Path, changes: list[str]) -> str:
    """What to do about cells that would take each other's place."""
    setting = changes[0].partition(":")[0]
    name = f"{setting.rpartition('.')[2]}${{{setting}}}"
    return (
        f"{folder} holds another cell of this sweep ({'; '.join(changes[:5])}): the setting is no "
        "part of the folder's name. Make it one: "
        f"'hydra.sweep.subdir=${{hydra.runtime.choices.method}}/${{cell}}/{name}/seed${{seed}}'"
    )


# ---------------------------------------------------------------------------------- small things


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    content = read_json(path)
    if not isinstance(content, dict | None):
        raise UserError(f"{path} holds no JSON object: delete it, or run with force=true")
    return content or {}


def keep_settings(cfg: DictConfig, folder: Path, chosen: dict[str, Any]) -> None:
    """The run's identity, and what Hydra would have written; but only once the run is accepted in
    its folder."""
    write_json(folder / "config.json", chosen)
    files: dict[str, Any] = {"config.yaml": cfg}
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        files |= {"overrides.yaml": hydra.overrides.task, "hydra.yaml": {"hydra": hydra}}
    for name, content in files.items():
        text = OmegaConf.to_yaml(content).encode()
        write_atomically(folder / HYDRA / name, partial(_write, text))


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def keep_result(folder: Path, result: dict[str, Any]) -> None:
    """Write result.json. Where that fails after another error, that one is the one to tell."""
    failing = sys.exception() is not None
    try:
        write_json(folder / "result.json", result)
    except OSError as error:
        if not failing:
            raise
        log.error("%s could not be written: %s", folder / "result.json", error.strerror or error)
