"""The reference's way of computing an iteration, for comparison on the same machine.

float32, NCHW, a teacher whose weights collect gradients, every backward pass into all networks
that took part, torch's own choice of optimizer kernels (one a tensor on a CPU); images made one by
one, by worker processes. The mathematics is ours: only the way of computing differs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.harness import seconds_per_call
from benchmarks.roofline import OperatorCounter
from benchmarks.workload import Workload
from mosaickd.data.loader import usual_padding
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError
from mosaickd.load_data import RunData
from mosaickd.losses import class_balance, kl_divergence, label_alignment, patch_gan_loss
from mosaickd.methods.base import Method, Stream
from mosaickd.methods.kd import KD
from mosaickd.methods.mosaic import MosaicKD

WORKERS = 4

#: Returns the next images of a stream, normalised and on the device, [B, 3, H, W].
NextImages = Callable[[str], Tensor]


class ReferenceWorkload:
    """The same iteration as a `Workload`'s, as the authors' code computes it.

    workers: of each loader; None: no loaders, the same images at every iteration.
    """

    def __init__(self, cfg: DictConfig, data: RunData, workers: int | None) -> None:
        cfg = cfg.copy()
        cfg.train.channels_last = False
        ours = Workload(cfg, "eager", data)
        self.precision = "fp32"
        if ours.device.type == "cuda" and torch.cuda.get_device_capability(ours.device) >= (8, 0):
            self.precision = "tf32"  # torch's default for convolutions, which the authors keep
        self.images = ReferenceLoaders(cfg, ours.method, data, ours.device, workers)
        self.iterate = reference_iteration(ours.method)

    def seconds_per_step(self, count: int) -> float:
        """Take `count` iterations in a row; return the mean seconds of one."""
        with torch_defaults(), self.images.running():
            return seconds_per_call(lambda: self.iterate(self.images), count)

    def count_operators(self) -> OperatorCounter:
        """Return what an iteration consists of."""
        with torch_defaults(), self.images.running(), OperatorCounter() as counter:
            self.iterate(self.images)
        counter.after_turn("iteration")
        return counter


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Have the switches as torch sets them inside: the authors' code leaves them alone."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32 = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before


# ---------------------------------------------------------------------------------- an iteration


def reference_iteration(method: Method) -> Callable[[NextImages], None]:
    """Return a function that takes one iteration of `method` (MosaicKD or KD) the reference's way.

    The method's networks are used as they are and changed in place: their memory layout becomes
    NCHW, and the teacher's weights require gradients.
    """
    if not isinstance(method, KD | MosaicKD):
        raise UserError(f"--reference-style knows mosaic and kd, not {type(method).__name__}")
    if isinstance(method, MosaicKD) and set(method.streams) != {"real", "student"}:
        raise UserError("--reference-style plays the whole game: leave out method.local=0 and "
                        "method.ood_in_student_batch=false")  # fmt: skip
    for network in [method.teacher, *method.players.values()]:
        network.to(memory_format=torch.contiguous_format).requires_grad_(True)
        network.train()
    method.teacher.eval()
    student = torch.optim.SGD(method.student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return _kd(method, student) if isinstance(method, KD) else _mosaic(method, student)


def _kd(method: KD, optimizer: torch.optim.Optimizer) -> Callable[[NextImages], None]:
    schedule = _cosine(optimizer)

    def iterate(next_images: NextImages) -> None:
        _distil(method, optimizer, next_images("ood"))
        schedule.step()

    return iterate


def _mosaic(method: MosaicKD, optimizer: torch.optim.Optimizer) -> Callable[[NextImages], None]:
    def adam(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=1e-3, betas=(0.5, 0.999))

    generator, discriminator = adam(method.generator), adam(method.discriminator)
    schedules = [_cosine(each) for each in (optimizer, discriminator, generator)]

    def iterate(next_images: NextImages) -> None:
        real = next_images("real")
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
                images = torch.cat([method.generate(), next_images("student")])
            _distil(method, optimizer, images)
        for schedule in schedules:
            schedule.step()

    return iterate


def _distil(method: KD | MosaicKD, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    with torch.no_grad():
        teacher = method.teacher(images)
    _step(optimizer, kl_divergence(method.student(images), teacher, method.temperature))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10_000)


# ------------------------------------------------------------------------------------ its images


class DecodedImages(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR keeps them, [N, H, W, 3]: a PIL image is made of one, and
    transformed, at each access."""

    def __init__(self, images: ImageSet, transform: transforms.Compose) -> None:
        self.images = images.images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class ReferenceLoaders:
    """The next images of each stream of a method, and how long the caller waited for them.

    As in the authors' code: torchvision's transforms, one DataLoader a stream with four workers, a
    batch at a time copied to the device from memory that is not pinned. In MosaicKD the
    discriminator's images are not augmented and carry the normalization of the teacher's domain;
    the student's are cropped and flipped and carry their own. An iteration takes one batch of the
    former and five of the latter.

    workers: processes of each loader; None: one batch a stream stays on the device.
    """

    def __init__(
        self,
        cfg: DictConfig,
        method: Method,
        data: RunData,
        device: torch.device,
        workers: int | None = WORKERS,
    ) -> None:
        # Four it is, also where there are fewer cores: that is what the authors' code asks for.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        self.device = device
        self.seconds_waited = 0.0
        self.resident: dict[str, Tensor] = {}
        self.loaders: dict[str, DataLoader[tuple[Tensor, int]]] = {}
        self.iterators: dict[str, Iterator[tuple[Tensor, Tensor]]] = {}
        for name, stream in method.streams.items():
            assert data.train is not None
            # The authors keep a short last batch; here it would make a shorter iteration.
            loader = DataLoader(
                DecodedImages(data.train, _transform(stream, data)),
                cfg.train.batch_size,
                shuffle=True,
                num_workers=workers or 0,
                drop_last=True,
            )
            if workers is None:
                self.resident[name] = next(iter(loader))[0].to(device)
            else:
                self.loaders[name], self.iterators[name] = loader, iter(loader)

    def __call__(self, name: str) -> Tensor:
        """Return the stream's next images on the device, normalised, [B, 3, H, W]."""
        if name in self.resident:
            return self.resident[name]
        start = time.perf_counter()
        batch = next(self.iterators[name], None)
        if batch is None:  # another epoch begins, with new workers
            self.iterators[name] = iter(self.loaders[name])
            batch = next(self.iterators[name])
        self.seconds_waited += time.perf_counter() - start
        return batch[0].to(self.device)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the workers run inside, and stop them after: they would slow down what is timed."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the worker processes."""
        self._signal(signal.SIGCONT)
        self.iterators.clear()  # what ends them is the end of the iterator that started them
        self.loaders.clear()

    def _signal(self, number: signal.Signals) -> None:
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, number)


def _transform(stream: Stream, data: RunData) -> transforms.Compose:
    source = data.sources[stream.normalization]
    steps = [transforms.ToTensor(), transforms.Normalize(source.mean, source.std)]
    if stream.augment:
        size = source.image_size
        crop = transforms.RandomCrop(size, padding=usual_padding(size))
        steps = [crop, transforms.RandomHorizontalFlip(), *steps]
    return transforms.Compose(steps)
