"""Distillation on class-balanced OOD images.

Nayak et al., "Effectiveness of Arbitrary Transfer Sets for Data-free Knowledge Distillation",
WACV 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mosaickd.methods.base import Distillation


@dataclass(kw_only=True, eq=False)
class Balanced(Distillation):
    """Vanilla KD, on batches in which all classes that the teacher sees come equally often.

    Each OOD image belongs to the class that the teacher takes it for; a class is drawn first,
    then one of its images: those of rare classes are drawn more often.
    """

    display_name: ClassVar[str] = "Balanced"
    balanced: ClassVar[bool] = True
