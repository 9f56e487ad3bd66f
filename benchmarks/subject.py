"""What is timed: iterations of a config, in one of our modes or the reference's way."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from benchmarks.reference_loader import ReferenceLoaders
from benchmarks.reference_style import reference_iteration
from benchmarks.roofline import Tally
from mosaickd.components import build_components, build_players, derived_seed
from mosaickd.data.loader import BalancedLoader, ResidentLoader
from mosaickd.data.source import ImageSet
from mosaickd.engine.batch_sampler import BatchSampler
from mosaickd.engine.device import autocast_for, choose_device
from mosaickd.engine.graph import CapturedStep
from mosaickd.engine.trainer import Trainer
from mosaickd.methods.base import Stream

STEPS = 10_000  # of the run that an iteration is thought to belong to
MODES = {  # name -> train.compile, train.cuda_graph
    "eager": (False, False),
    "compiled": (True, False),
    "graph": (False, True),
    "compiled_graph": (True, True),
}


def random_images(cfg: DictConfig, count: int, classes: int, device: torch.device) -> ImageSet:
    """Noise in place of a data set: what is in an image changes nothing about the time."""
    size = cfg.dataset.image_size
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), generator=rng, dtype=torch.uint8)
    labels = torch.arange(count) % classes
    return ImageSet(images, labels, [str(label) for label in range(classes)]).to(device)


def resident_loader(
    cfg: DictConfig, name: str, stream: Stream, images: ImageSet, device: torch.device
) -> ResidentLoader:
    """A stream's loader, as the launcher builds it."""
    statistics = cfg[stream.normalization]
    kind = BalancedLoader if stream.balanced else ResidentLoader
    return kind(
        images,
        batch_size=cfg.train.batch_size,
        mean=list(statistics.mean),
        std=list(statistics.std),
        augment=stream.augment,
        seed=derived_seed(cfg.seed, f"stream {name}"),
        device=device,
        channels_last=cfg.train.channels_last,
    )


def now(device: torch.device) -> float:
    """The clock, in seconds, once the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Subject:
    """Something that plays iterations, on the clock."""

    mode: str
    precision: str
    device: torch.device
    play: Callable[[], Any]  # one iteration

    def settle(self) -> None:
        """Torch's global settings are as this way of computing has them."""
        raise NotImplementedError

    def warm_up(self, iterations: int) -> None:
        self.settle()
        for _ in range(iterations):
            self.play()

    def now(self) -> float:
        return now(self.device)

    def time(self, in_a_row: int) -> float:
        """Seconds of one iteration, of several that follow each other without waiting."""
        self.settle()
        start = self.now()
        for _ in range(in_a_row):
            self.play()
        return (self.now() - start) / in_a_row

    def tally(self) -> Tally:
        """What an eager iteration consists of."""
        raise NotImplementedError


class Ours(Subject):
    """The parts of one config on random images, built as the launcher builds them."""

    def __init__(self, cfg: DictConfig, mode: str, images: ImageSet) -> None:
        self.mode = mode
        self.device = choose_device(cfg.device)
        self.cfg = cfg = cfg.copy()
        cfg.train.compile, cfg.train.cuda_graph = MODES[mode]
        self.precision, autocast = autocast_for(self.device, cfg.train.precision)
        self.settle()
        self.components = build_components(
            cfg,
            device=self.device,
            num_classes=len(images.classes),
            instances=len(images),
            steps=STEPS,
        )
        method = self.method = self.components.method
        self.trainer = Trainer(method, build_players(cfg, method, steps=STEPS), autocast)
        self.trainer.train_mode()
        self.sampler = BatchSampler(
            method.streams,
            {
                name: resident_loader(cfg, name, stream, images, self.device)
                for name, stream in method.streams.items()
            },
        )
        self.captured = cfg.train.cuda_graph
        if self.captured:
            self.play = CapturedStep(self.trainer, self.sampler, self.components.generators)
        else:
            self.play = lambda: self.trainer.next_step(self.sampler)

    def settle(self) -> None:
        """Set torch's switches as `mosaickd.engine.device.set_up` does."""
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
        if self.device.type == "cuda":  # streams and graphs take the current device
            torch.cuda.set_device(self.device)

    def by_turn(self, iterations: int) -> dict[str, float]:
        """Seconds of each player's turns, and of the images; of a captured iteration nothing.

        Apart from whole iterations: on CUDA each look at the clock waits.
        """
        if self.captured:
            return {}
        self.settle()
        turns: dict[str, list[float]] = {}
        for _ in range(iterations):
            spent: dict[str, float] = {}
            last = self.now()

            def after_turn(name: str, spent: dict[str, float] = spent) -> None:
                nonlocal last
                seen = self.now()
                spent[name] = spent.get(name, 0.0) + seen - last
                last = seen

            self.iterate(after_turn)
            for name, seconds in spent.items():
                turns.setdefault(name, []).append(seconds)
        return {name: statistics.median(seconds) for name, seconds in turns.items()}

    def iterate(self, after_turn: Callable[[str], None]) -> None:
        """One iteration, with a call after its images and after each turn."""
        batch = self.sampler.make_batch(self.sampler.sample_indices())
        if batch:
            after_turn("images")
        self.trainer.train_step(batch, after_turn)

    def tally(self) -> Tally:
        self.settle()
        with Tally() as tally:
            self.iterate(tally.after_turn)
        return tally


class Reference(Subject):
    """The same iteration as the authors' code computes it (`reference_style.py`).

    workers: of each loader; None: no loaders, the same images at every iteration.
    """

    mode = "reference"

    def __init__(self, cfg: DictConfig, images: ImageSet, workers: int | None) -> None:
        self.device = choose_device(cfg.device)
        self.cfg = cfg = cfg.copy()
        cfg.train.channels_last = cfg.train.compile = cfg.train.cuda_graph = False
        self.precision = "fp32"
        if self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) >= (8, 0):
            self.precision = "tf32"  # torch's default for convolutions, which the authors keep
        self.settle()
        components = build_components(
            cfg,
            device=self.device,
            num_classes=len(images.classes),
            instances=len(images),
            steps=STEPS,
        )
        self.method = components.method
        self.loaders = ReferenceLoaders(cfg, self.method.streams, images, self.device, workers)
        iterate = reference_iteration(self.method)
        self.play = lambda: iterate(self.loaders)

    def settle(self) -> None:
        """Torch's defaults: the authors' code leaves them alone."""
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = True

    def tally(self) -> Tally:
        self.settle()
        with Tally() as tally:
            self.play()
        tally.after_turn("iteration")
        return tally

    def close(self) -> None:
        self.loaders.close()


# ------------------------------------------------------------------------------------ memory


def release(device: torch.device) -> None:
    """What earlier subjects held is the next one's."""
    gc.collect()  # a game's parts refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # glibc keeps what was freed; not every libc does
        ctypes.CDLL(None).malloc_trim(0)


class Memory:
    """The most memory held since this was made: of tensors on CUDA, of the process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        release(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / 1e6
        else:
            self.before = _status("VmRSS")
            # On Linux a process may reset its own high-water mark. Elsewhere the peak is that of
            # the whole process so far.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> dict[str, float]:
        """-> MB: the peak, and what was held before."""
        if self.device.type == "cuda":
            return {
                "memory_mb": torch.cuda.max_memory_allocated(self.device) / 1e6,
                "memory_before_mb": self.before,
                "reserved_mb": torch.cuda.max_memory_reserved(self.device) / 1e6,
            }
        return {"memory_mb": _status("VmHWM"), "memory_before_mb": self.before}


def _status(key: str) -> float:
    """MB, from Linux's account of this process; elsewhere only its peak is known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        values = dict(line.split(":", 1) for line in lines)
        return int(values[key].split()[0]) * 1024 / 1e6
    except (OSError, KeyError, ValueError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
