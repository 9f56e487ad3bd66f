"""Types of settings with the range they must lie in, for constructors' annotations.

def __init__(self, *, temperature: Positive = 1.0, student_steps: Count = 5): ...

`mosaickd.config.validation` checks a config against them before anything is built.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
LogBase = Annotated[float, Field(gt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**63)]  # torch's integers have 64 bits
