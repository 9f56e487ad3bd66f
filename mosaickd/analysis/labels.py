"""What things are called in tables and on pages, for people."""

from __future__ import annotations

from mosaickd.methods import display_name
from mosaickd.run_dir import Result

#: Which evaluation a table compares.
EVALUATIONS = {"last": "the last evaluation", "best": "the best evaluation, picked on test images"}
#: Rows of the paper's table that are models, not methods.
MODELS = {"teacher": "Teacher", "student": "Student", "scratch": "Student"}


def short(method: str) -> str:
    """Return a method's name as a row of a table has it."""
    return MODELS.get(method) or display_name(method)


def images(ood: str | None, subset: bool) -> str | None:
    """Return which images a student saw: imagenet32, or imagenet32 (OOD subset)."""
    return f"{ood} (OOD subset)" if ood and subset else ood


def describe(result: Result) -> str:
    """Return in a few words what a run did: MosaicKD on strokes."""
    if result.ood:
        return f"{display_name(result.method)} on {images(result.ood, result.ood_subset)}"
    if result.teacher:
        return f"{display_name(result.method)}, data-free"
    return f"from labelled {result.dataset}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def signed(value: float | None) -> str:
    """Return +0.50 or −0.50; what rounds to zero has no sign."""
    if value is None:
        return ""
    return f"{value:+.2f}".replace("-", "−") if round(value, 2) else "0.00"


def plural(count: int, word: str) -> str:
    """Return 1 seed, 2 seeds, 2 classes."""
    ending = "es" if word.endswith("s") else "s"
    return f"{count} {word}{'' if count == 1 else ending}"
