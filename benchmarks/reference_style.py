"""The reference's way of computing an iteration, for comparison on the same machine.

float32, NCHW, a teacher whose weights collect gradients, every backward pass into all networks
that took part, and one kernel a tensor in the optimizers. The mathematics is ours: only the way
of computing differs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mosaickd.errors import UserError
from mosaickd.losses import class_balance, kl_divergence, label_alignment, patches_judged
from mosaickd.methods.base import Batch
from mosaickd.methods.kd import KD
from mosaickd.methods.mosaic import MosaicKD


def reference_iteration(method: object) -> Callable[[Batch], None]:
    """-> a function that plays one iteration of `method` (a MosaicKD or KD) the reference's way.

    The method's networks are used as they are and changed in place: their memory layout becomes
    NCHW, and the teacher's weights require gradients.
    """
    if not isinstance(method, KD | MosaicKD):
        raise UserError(f"--reference-style knows mosaic and kd, not {type(method).__name__}")
    networks = [method.teacher, *method.players.values()]
    for network in networks:
        network.to(memory_format=torch.contiguous_format).requires_grad_(True)
        network.train()
    method.teacher.eval()
    student = torch.optim.SGD(
        method.student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, foreach=False
    )
    if isinstance(method, KD):
        return _kd(method, student)
    return _mosaic(method, student)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _distil(
    method: KD | MosaicKD, optimizer: torch.optim.Optimizer, images: Tensor, teacher: Tensor
) -> None:
    _step(optimizer, kl_divergence(method.student(images), teacher, method.temperature))


def _kd(method: KD, optimizer: torch.optim.Optimizer) -> Callable[[Batch], None]:
    def iterate(batch: Batch) -> None:
        images = batch["ood"][0].pixels
        with torch.no_grad():
            teacher = method.teacher(images)
        _distil(method, optimizer, images, teacher)

    return iterate


def _mosaic(game: MosaicKD, optimizer: torch.optim.Optimizer) -> Callable[[Batch], None]:
    def adam(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=1e-3, betas=(0.5, 0.999), foreach=False)

    generator, discriminator = adam(game.generator), adam(game.discriminator)

    def iterate(batch: Batch) -> None:
        fakes = game.generate()
        real = batch["real"][0].pixels
        on_fakes = patches_judged(game.discriminator(fakes.detach()), authentic=False)
        on_reals = patches_judged(game.discriminator(real), authentic=True)
        _step(discriminator, game.local * (on_fakes + on_reals) / 2)

        teacher, student = game.teacher(fakes), game.student(fakes)
        loss = -game.adv * kl_divergence(student, teacher)
        loss = loss + game.align * label_alignment(teacher)
        loss = loss + game.local * patches_judged(game.discriminator(fakes), authentic=True)
        _step(generator, loss + game.balance * class_balance(teacher))

        for draw in batch["student"]:
            with torch.no_grad():
                images = torch.cat([game.generate(), draw.pixels])
                teacher = game.teacher(images)
            _distil(game, optimizer, images, teacher)

    return iterate
