"""MosaicKD: four players (Fang et al., NeurIPS 2021; Algorithm 1).

The generator mosaics local patterns of OOD images into synthetic images; the patch discriminator
keeps patches authentic, the teacher keeps the whole legitimate, and the student's errors say
where to look next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mosaickd.constraints import Count, NonNegative, Positive
from mosaickd.losses import class_balance, kl_divergence, label_alignment, patch_gan_loss
from mosaickd.methods.base import (
    Batch,
    GeneratorMethod,
    Loss,
    SourceName,
    Stream,
    Turn,
    distillation_batches,
    frozen,
)


@dataclass(kw_only=True, eq=False)
class MosaicKD(GeneratorMethod):
    """One discriminator turn, one generator turn, then `student_steps` student turns.

    `adv`, `align`, `local` and `balance` weigh the generator's four losses (`local` also the
    discriminator's); a term of weight 0 is not computed at all. Every trained network stays in
    training mode throughout, so batch-norm statistics also move in other players' turns: the
    student's in the generator's turn, the generator's in the student's. The paper's runs did so.
    `teacher_at_once`: see `distillation_batches`.
    """

    display_name: ClassVar[str] = "MosaicKD"

    discriminator: nn.Module
    gather: Callable[[Tensor], Tensor] = lambda own: own
    adv: NonNegative = 1.0
    align: NonNegative = 1.0
    local: NonNegative = 1.0
    balance: NonNegative = 10.0
    temperature: Positive = 1.0
    student_steps: Count = 5
    teacher_at_once: bool | None = None
    ood_in_student_batch: bool = True
    ood_statistics: SourceName = "ood"

    def __post_init__(self) -> None:
        if not (self.adv or self.align or self.local or self.balance):
            raise ValueError(
                "method.adv, align, local and balance are all 0: nothing guides the generator"
            )
        if not (self.local or self.ood_in_student_batch):
            raise ValueError(
                "method.local is 0 and method.ood_in_student_batch is false: the ood images would "
                "have no effect"
            )
        self.players = {"generator": self.generator, "student": self.student}
        self.streams = {}
        if self.local:
            self.players["discriminator"] = self.discriminator
            # What the discriminator learns as real carries the in-domain statistics, as the fakes
            # do, and no augmentation: padding of a random crop is not an authentic pattern.
            self.streams["real"] = Stream("ood", augment=False, normalization="dataset")
        if self.ood_in_student_batch:
            # Appendix, section 2: OOD images join the student's batch. The reference normalises
            # these with their own data set's statistics; `ood_statistics` is that choice.
            self.streams["student"] = Stream(
                "ood", augment=True, normalization=self.ood_statistics, draws=self.student_steps
            )

    def turns(self, batch: Batch) -> Iterator[Turn]:
        fakes = self.generate()

        # ---- Patch discrimination (Eq. 2): fakes and reals in separate batch-norm batches.
        if self.local:
            (real,) = batch["real"]
            on_fakes = patch_gan_loss(self.discriminator(fakes.detach()), authentic=False)
            on_reals = patch_gan_loss(self.discriminator(real.pixels), authentic=True)
            yield Turn(
                "discriminator",
                {"fake": Loss(on_fakes, self.local / 2), "real": Loss(on_reals, self.local / 2)},
            )

        # ---- Generation (Eqs. 3, 4, 7 and the appendix), on the same fakes.
        with frozen(self.student, self.discriminator):
            losses = self.generator_losses(fakes)
        yield Turn("generator", losses)

        # ---- Distillation (Eq. 8): fresh fakes, and OOD images beside them.
        pairs = distillation_batches(
            self.teacher,
            lambda step: self.student_batch(batch, step),
            self.student_steps,
            self.teacher_at_once,
        )
        for images, teacher in pairs:
            student = self.student(images)
            yield Turn("student", {"kd": Loss(kl_divergence(student, teacher, self.temperature))})

    def student_batch(self, batch: Batch, step: int) -> Tensor:
        """Return fresh fakes [B, 3, H, W], and OOD images beside them: [2B, 3, H, W]."""
        fakes = self.generate()
        if "student" not in self.streams:
            return fakes
        return torch.cat([fakes, batch["student"][step].pixels])

    def generator_losses(self, fakes: Tensor) -> dict[str, Loss]:
        """Return the losses of `fakes` [B, 3, H, W], which the other three players judge."""
        losses = {}
        if self.local:
            local = patch_gan_loss(self.discriminator(fakes), authentic=True)
            losses["local"] = Loss(local, self.local)
        if self.align or self.balance or self.adv:
            teacher = self.teacher(fakes)
        if self.align:
            losses["align"] = Loss(label_alignment(teacher), self.align)
        if self.adv:
            losses["adv"] = Loss(-kl_divergence(self.student(fakes), teacher), self.adv)
        if self.balance:
            losses["balance"] = Loss(class_balance(teacher, gather=self.gather), self.balance)
        return losses
