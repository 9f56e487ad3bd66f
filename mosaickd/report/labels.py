"""What things are called in tables, for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mosaickd.errors import printable

#: Each method's words for a newcomer; other methods go by their name.
WORDS = {
    "scratch": "trained from scratch on labelled {dataset}",
    "kd": "plain distillation on {ood}",
    "dafl": "data-free (DAFL)",
    "zskt": "data-free (ZSKT)",
    "deepinv": "data-free (DeepInversion)",
    "dfq": "data-free (DFQ)",
    "balanced": "distillation on {ood}, all classes alike",
    "fitnet": "distillation on {ood}, also of features (FitNet)",
    "rkd": "distillation on {ood}, also of relations (RKD)",
    "crd": "distillation on {ood}, also by contrast (CRD)",
    "sskd": "distillation on {ood}, self-supervised (SSKD)",
    "mosaic": "MosaicKD: images mosaicked from {ood}",
}

#: Rows of the paper's table, and lines of plots.
NAMES = {
    "teacher": "Teacher",
    "student": "Student",
    "scratch": "Student",
    "kd": "KD",
    "dafl": "DAFL",
    "zskt": "ZSKT",
    "deepinv": "DeepInv",
    "dfq": "DFQ",
    "balanced": "Balanced",
    "fitnet": "FitNet",
    "rkd": "RKD",
    "crd": "CRD",
    "sskd": "SSKD",
    "mosaic": "MosaicKD",
}

#: Which evaluation a table compares.
EVALUATIONS = {"last": "the last evaluation", "best": "the best evaluation, picked on test images"}


def short(method: str) -> str:
    """A method's name in a table's row."""
    return NAMES.get(method, method)


def images(ood: str | None, subset: bool) -> str | None:
    """The images a student saw: imagenet32, or imagenet32 (OOD subset)."""
    return f"{ood} (OOD subset)" if ood and subset else ood


def describe(result: Mapping[str, Any]) -> str:
    """What a run did, in a few words."""
    ood = images(result["ood"], bool(result.get("ood_subset")))
    words = WORDS.get(result["method"], "{method} on {ood}")
    if ood is None and "{ood}" in words:
        words = "{method}"
    return words.format(method=result["method"], dataset=result["dataset"], ood=ood)


def shown(path: Path) -> str:
    """A path to be printed: a folder's name, too, may hold anything."""
    return printable(str(path), 1000)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def plain(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def signed(value: float | None) -> str:
    """+0.50 or −0.50; what rounds to zero has no sign."""
    if value is None:
        return ""
    return f"{value:+.2f}".replace("-", "−") if round(value, 2) else "0.00"


def times(number: int, word: str) -> str:
    """1 seed, 2 seeds"""
    return f"{number} {word}{'' if number == 1 else 's'}"
