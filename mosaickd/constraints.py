"""Ranges of settings, stated where the settings are: in a constructor's annotations.

    def __init__(self, *, temperature: Positive = 1.0, student_steps: Count = 5): ...

`mosaickd.config.validation` reads them from the signature and checks a config before anything is built, so
that a wrong weight is found in the first second and not after the teacher has been trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

#: Whole numbers as torch and numpy know them.
LARGEST = 2**63
TOO_LARGE = "must be below 2**63"


@dataclass(frozen=True)
class Range:
    """low <= value <= high, or low < value where `above`; None is no bound."""

    low: float | None = None
    high: float | None = None
    above: bool = False

    def violation(self, value: Any) -> str | None:
        """What `value` should have been, or None when it is within the range."""
        if isinstance(value, int) and abs(value) >= LARGEST:
            return TOO_LARGE
        if not math.isfinite(value):
            return "must be a finite number"
        if self.low is not None and (value <= self.low if self.above else value < self.low):
            return f"must be {'>' if self.above else '>='} {self.low:g}"
        if self.high is not None and value > self.high:
            return f"must be <= {self.high:g}"
        return None


NonNegative = Annotated[float, Range(low=0)]
Positive = Annotated[float, Range(low=0, above=True)]
Fraction = Annotated[float, Range(low=0, high=1)]
LogBase = Annotated[float, Range(low=1, above=True)]
Count = Annotated[int, Range(low=1)]
