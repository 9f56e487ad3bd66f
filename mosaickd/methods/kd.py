"""Vanilla knowledge distillation on unlabelled images ("Blind KD" on OOD data).

Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mosaickd.methods.base import Distillation


@dataclass(kw_only=True, eq=False)
class KD(Distillation):
    """The loss `kd` alone.

    The reference gives OOD images the in-domain augmentation and statistics. `ood=` may name the
    teacher's own data set: that is the paper's "KD on original data".
    """

    display_name: ClassVar[str] = "KD"
