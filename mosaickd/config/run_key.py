"""Which runs are the same run: those whose settings compute the same. And which of them are
their method's own recipe."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mosaickd.config.schema import CONF, given_overrides, images_of, needs, options, plain

#: Settings of `train` that say how a run is watched, not what it computes.
WATCHING = {"eval_every", "checkpoint_every", "log_every", "check_every", "eval_batch_size"}

#: Settings of `train` that say how a run computes, and change no more than roundings.
COMPUTING = {"precision", "channels_last", "compile", "cuda_graph", "deterministic"}


def run_key(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide what a run computes: two runs that agree here are the same run."""
    keys = {"dataset", "student", "method", "players", "train", "seed"}
    keys |= needs(cfg) & {"teacher", "generator", "discriminator"}
    if (source := images_of(cfg)) is not None:
        keys.add(source)
    if source == "ood" and cfg.ood_subset:
        keys |= {"ood_subset", "ood_subset_size"}
    content = plain(cfg)
    chosen = {key: content[key] for key in sorted(keys)}
    for images in chosen.keys() & {"dataset", "ood"}:
        # What these decide stands elsewhere; or, of broken images, in the images alone.
        for hint in ("recipe", "train_size", "max_broken"):
            chosen[images].pop(hint, None)
        if not chosen[images]["reader"].get("follow_links"):  # older runs had no such setting
            chosen[images]["reader"].pop("follow_links", None)
    chosen["train"] = {k: v for k, v in chosen["train"].items() if k not in WATCHING}
    return chosen


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


#: Groups whose choices are told apart by their names, and where ours lie.
CHOSEN = {"method": "method", "dataset": "dataset", "ood": "dataset", "teacher": "model",
          "student": "model"}  # fmt: skip


def variant(cfg: DictConfig) -> str | None:
    """How the run's command departs from its method's recipe; None where it doesn't."""
    if not HydraConfig.initialized():
        return None
    given = {override.partition("=")[0]: override for override in given_overrides()}  # the last
    departing = [o for o in given.values() if not PLAIN_OVERRIDES.match(o) or _poses(cfg, o)]
    return ", ".join(sorted(departing)) or None


def _poses(cfg: DictConfig, override: str) -> bool:
    """Whether it chooses a file of the user's own that bears the name of one of ours."""
    group, _, choice = override.partition("=")
    if group not in CHOSEN or choice == "null":
        return False
    ours = options(CONF / CHOSEN[group])
    return choice not in ours and (cfg[group] or {}).get("name") in ours


def config_hash(chosen: dict[str, Any]) -> str:
    """12 hex digits of the identity."""
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]
