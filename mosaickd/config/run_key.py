"""Which runs are the same run, and which follow their method's own recipe."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mosaickd.config.schema import (
    CONF,
    given_overrides,
    options,
    required_inputs,
    to_plain,
    training_source,
)

#: Settings of `train` that say how a run is watched, not what it computes.
WATCHING = {"eval_every", "checkpoint_every", "log_every", "check_every", "eval_batch_size"}

#: Settings of `train` that say how a run computes, and change no more than roundings.
COMPUTING = {"precision", "channels_last", "compile", "cuda_graph", "deterministic"}

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

#: Groups that name a run, and the folders in conf/ of their choices.
NAMING_GROUPS = {"method": "method", "dataset": "dataset", "ood": "dataset", "teacher": "model",
                 "student": "model"}  # fmt: skip


def run_key(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that decide what a run computes: where they agree, it is the same run."""
    keys = {"dataset", "student", "method", "players", "train", "seed"}
    keys |= required_inputs(cfg) & {"teacher", "generator", "discriminator"}
    if (source := training_source(cfg)) is not None:
        keys.add(source)
    if source == "ood" and cfg.ood_subset:
        keys |= {"ood_subset", "ood_subset_size"}
    content = to_plain(cfg)
    key = {name: content[name] for name in sorted(keys)}
    for images in key.keys() & {"dataset", "ood"}:
        # Other settings carry out the recipe and the size; broken images show in the images alone.
        for name in ("recipe", "train_size", "max_broken"):
            key[images].pop(name, None)
        if not key[images]["reader"].get("follow_links"):  # hashes in result.json lack it
            key[images]["reader"].pop("follow_links", None)
    key["train"] = {k: v for k, v in key["train"].items() if k not in WATCHING}
    return key


def config_hash(key: dict[str, Any]) -> str:
    """Return 12 hex digits of a run's key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def variant(cfg: DictConfig) -> str | None:
    """Return how the command departs from its method's recipe; None where it doesn't."""
    if not HydraConfig.initialized():
        return None
    overrides = {override.partition("=")[0]: override for override in given_overrides()}  # the last
    departing = [
        override
        for override in overrides.values()
        if not PLAIN_OVERRIDES.match(override) or _borrows_name(cfg, override)
    ]
    return ", ".join(sorted(departing)) or None


def _borrows_name(cfg: DictConfig, override: str) -> bool:
    """Return whether it chooses a file of the user's own that bears the name of one of ours."""
    group, _, choice = override.partition("=")
    if group not in NAMING_GROUPS or choice == "null":
        return False
    ours = options(CONF / NAMING_GROUPS[group])
    return choice not in ours and (cfg[group] or {}).get("name") in ours
