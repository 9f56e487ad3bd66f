"""Compare the settings of a composed config with the numbers of a paper's recipe."""

from __future__ import annotations

from typing import Any

from composing import check, composing
from omegaconf import OmegaConf

SGD = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
ADAM = {"_target_": "torch.optim.Adam", "lr": 1e-3}
GAN_ADAM = ADAM | {"betas": [0.5, 0.999]}
COSINE = "mosaickd.engine.schedules.cosine"

#: KD's schedule, also of the methods that the table compares with it.
VANILLA: dict[str, Any] = {
    "players.student.optimizer": SGD,
    "players.student.schedule": {"_target_": COSINE},
    "train.epochs": 200,
    "train.batch_size": 128,
    "train.epoch_steps": None,  # an epoch is one pass over the images
    "train.steps": None,
    "train.clip": None,
    "method.temperature": 5,
    "method.ood_statistics": "dataset",
}


def departures(recipe: dict[str, Any], *overrides: str) -> dict[str, Any]:
    """Return the settings that are not the recipe's, of a config that passes validation.

    recipe: values by dotted path; of a section, all that it states.
    """
    with composing():
        cfg = check(*overrides)
        stated = {path: OmegaConf.select(cfg, path, throw_on_missing=True) for path in recipe}
        stated = {path: plain(value) for path, value in stated.items()}
    return {path: value for path, value in stated.items() if value != recipe[path]}


def plain(value: Any) -> Any:
    """Return a setting as Python objects, without `_partial_`, which every optimizer has."""
    if OmegaConf.is_config(value):
        return plain(OmegaConf.to_container(value, resolve=True))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key != "_partial_"}
    return value
