"""The reference's way of computing an iteration, for comparison on the same machine.

float32, NCHW, a teacher whose weights collect gradients, every backward pass into all networks
that took part, torch's own choice of optimizer kernels (one a tensor on a CPU). The mathematics is
ours: only the way of computing differs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mosaickd.errors import UserError
from mosaickd.losses import class_balance, kl_divergence, label_alignment, patch_gan_loss
from mosaickd.methods.kd import KD
from mosaickd.methods.mosaic import MosaicKD

#: What asks for the next images of a stream, normalised and on the device, [B, 3, H, W].
Next = Callable[[str], Tensor]


def reference_iteration(method: object) -> Callable[[Next], None]:
    """-> a function that plays one iteration of `method` (a MosaicKD or KD) the reference's way.

    The method's networks are used as they are and changed in place: their memory layout becomes
    NCHW, and the teacher's weights require gradients.
    """
    if not isinstance(method, KD | MosaicKD):
        raise UserError(f"--reference-style knows mosaic and kd, not {type(method).__name__}")
    if isinstance(method, MosaicKD) and set(method.streams) != {"real", "student"}:
        raise UserError("--reference-style plays the whole game: leave out method.local=0 and "
                        "method.ood_in_student_batch=false")  # fmt: skip
    networks = [method.teacher, *method.players.values()]
    for network in networks:
        network.to(memory_format=torch.contiguous_format).requires_grad_(True)
        network.train()
    method.teacher.eval()
    student = torch.optim.SGD(method.student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    if isinstance(method, KD):
        return _kd(method, student)
    return _mosaic(method, student)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10_000)


def _distil(
    method: KD | MosaicKD, optimizer: torch.optim.Optimizer, images: Tensor, teacher: Tensor
) -> None:
    _step(optimizer, kl_divergence(method.student(images), teacher, method.temperature))


def _kd(method: KD, optimizer: torch.optim.Optimizer) -> Callable[[Next], None]:
    schedule = _cosine(optimizer)

    def iterate(following: Next) -> None:
        images = following("ood")
        with torch.no_grad():
            teacher = method.teacher(images)
        _distil(method, optimizer, images, teacher)
        schedule.step()

    return iterate


def _mosaic(method: MosaicKD, optimizer: torch.optim.Optimizer) -> Callable[[Next], None]:
    def adam(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=1e-3, betas=(0.5, 0.999))

    generator, discriminator = adam(method.generator), adam(method.discriminator)
    schedules = [_cosine(each) for each in (optimizer, discriminator, generator)]

    def iterate(following: Next) -> None:
        real = following("real")
        fakes = method.generate()
        on_fakes = patch_gan_loss(method.discriminator(fakes.detach()), authentic=False)
        on_reals = patch_gan_loss(method.discriminator(real), authentic=True)
        _step(discriminator, method.local * (on_fakes + on_reals) / 2)

        teacher, student = method.teacher(fakes), method.student(fakes)
        loss = -method.adv * kl_divergence(student, teacher)
        loss = loss + method.align * label_alignment(teacher)
        loss = loss + method.local * patch_gan_loss(method.discriminator(fakes), authentic=True)
        _step(generator, loss + method.balance * class_balance(teacher))

        for _ in range(method.student_steps):
            with torch.no_grad():
                images = torch.cat([method.generate(), following("student")])
                teacher = method.teacher(images)
            _distil(method, optimizer, images, teacher)
        for schedule in schedules:
            schedule.step()

    return iterate
