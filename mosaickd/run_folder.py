"""What lies in a run's folder from before, and what stays there."""

from __future__ import annotations

import logging
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mosaickd.engine import checkpoint
from mosaickd.errors import UserError
from mosaickd.files import read_json, remove_temporaries, write_atomically, write_json
from mosaickd.identity import differences

log = logging.getLogger(__name__)

#: Where a run's config lies as Hydra knows it.
HYDRA = ".hydra"

#: What a run writes; in the order in which `force=true` removes it, as it may be killed there.
PRODUCTS = (
    *("result.json", "student.safetensors", "checkpoints/last.pt", "checkpoints/previous.pt"),
    *("checkpoints/damaged.pt", "checkpoints/best.safetensors", "samples", "metrics.jsonl"),
    *("per_class.json", "config.json", "broken.txt", "teacher", "wandb", "wandb.json"),
)


def enter(cfg: DictConfig, folder: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """Make a folder ready for a run of the identity `chosen`. -> what an earlier session of this
    run came to, if there was one: a finished run is to be left as it is."""
    if (folder / HYDRA / "config.yaml").exists():  # a run's: nothing is removed from other folders
        remove_temporaries(folder)
        if cfg.force:
            clear(folder)
    else:  # but what a kill left of the first files that a run writes there
        for first in (folder / "config.json", folder / HYDRA / "config.yaml"):
            remove_temporaries(first.parent, of=first.name)
    before = {} if cfg.force else read_object(folder / "result.json")
    begun = checkpoint.exist(folder / "checkpoints" / "last.pt")
    if begun or before.get("status") == "finished":
        if changes := differences(read_object(folder / "config.json"), chosen):
            raise UserError(
                f"{folder} holds a run with other settings ({'; '.join(changes[:5])}). "
                "Choose another folder with hydra.run.dir=FOLDER (of a sweep: "
                "hydra.sweep.dir=FOLDER), or discard that run with force=true"
            )
        if before.get("status") == "finished":
            return before
    else:
        before = {}  # nothing to go on from: only its error is left
    write_json(folder / "config.json", chosen)
    keep_config(cfg, folder / HYDRA)
    return before


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    content = read_json(path)
    if not isinstance(content, dict | None):
        raise UserError(f"{path} holds no JSON object: delete it, or run with force=true")
    return content or {}


def keep_config(cfg: DictConfig, folder: Path) -> None:
    """What Hydra would have written, but only once the run is accepted in its folder."""
    files: dict[str, Any] = {"config.yaml": cfg}
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        files |= {"overrides.yaml": hydra.overrides.task, "hydra.yaml": {"hydra": hydra}}
    for name, content in files.items():
        text = OmegaConf.to_yaml(content).encode()
        write_atomically(folder / name, partial(_write, text))


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def clear(folder: Path) -> None:
    """Remove what an earlier run has left."""
    for name in PRODUCTS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def keep_result(folder: Path, result: dict[str, Any]) -> None:
    """Write result.json. Where that fails after another error, that one is the one to tell."""
    failing = sys.exception() is not None
    try:
        write_json(folder / "result.json", result)
    except OSError as error:
        if not failing:
            raise
        log.error("%s could not be written: %s", folder / "result.json", error.strerror or error)
