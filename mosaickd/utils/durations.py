"""Seconds in words."""

from __future__ import annotations

import math

#: From a unit, how many seconds it has, and of which smaller one the rest is told.
UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def duration(seconds: float) -> str:
    """12 s, 3 min 12 s, 2 h 5 min, 3 d 4 h: the two largest units. `-` of what is no duration."""
    if not math.isfinite(seconds) or seconds < 0:
        return "-"
    whole = round(seconds)
    for size, name, smaller, its_name in UNITS:
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {its_name}" if rest else "")
    return f"{whole} s"


def pace(seconds_per_step: float | None) -> str:
    """8.1 steps/s, or 2.30 s/step where a step takes a second or more; `-` where unknown."""
    if seconds_per_step is None or not 0 < seconds_per_step < math.inf:
        return "-"
    if seconds_per_step >= 1:
        return f"{seconds_per_step:.2f} s/step"
    return f"{1 / seconds_per_step:.1f} steps/s"
