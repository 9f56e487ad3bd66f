"""What is timed: iterations of a config on random images, and the memory that they take."""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.benchmark import timer

from benchmarks.roofline import OperatorCounter
from mosaickd.components import build, build_components, build_players
from mosaickd.config.schema import training_source
from mosaickd.data.source import ImageSet, Source
from mosaickd.engine.batch_sampler import BatchSampler
from mosaickd.engine.device import set_up
from mosaickd.engine.graph import CapturedStep
from mosaickd.engine.trainer import Trainer
from mosaickd.load_data import RunData, build_loaders
from mosaickd.methods.base import SourceName

STEPS = 10_000  # length of the run that an iteration is thought to belong to
MODES = {  # name -> train.compile, train.cuda_graph
    "eager": (False, False),
    "compiled": (True, False),
    "graph": (False, True),
    "compiled_graph": (True, True),
}


def random_images(count: int, size: int, classes: int) -> ImageSet:
    """Return noise: what is in an image changes nothing about the time."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), generator=rng, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % classes, [str(i) for i in range(classes)])


def random_data(
    cfg: DictConfig, images: int, classes: int, device: torch.device, test_images: int = 1
) -> RunData:
    """Return noise on the device in place of the images that `load_data` would read."""
    source = training_source(cfg)
    sources: dict[SourceName, Source] = {"dataset": build(cfg.dataset)}
    if source == "ood":
        sources["ood"] = build(cfg.ood)
    size = int(cfg.dataset.image_size)
    return RunData(
        sources,
        test=random_images(test_images, size, classes),
        train_source=source,
        train=random_images(images, size, classes).to(device) if source else None,
    )


def random_labels(images: ImageSet, *unused: object) -> Tensor:
    """Return what stands for a teacher's predictions in a balanced stream. -> [N]"""
    return images.labels


class Workload:
    """The parts of one config on random images, built as a run's are, in one of our modes."""

    def __init__(self, cfg: DictConfig, mode: str, data: RunData) -> None:
        cfg = cfg.copy()
        cfg.train.compile, cfg.train.cuda_graph = MODES[mode]
        settings: Any = OmegaConf.to_object(cfg.train)
        self.device, self.precision, autocast = set_up(cfg.device, settings)
        self.components = build_components(
            cfg,
            device=self.device,
            num_classes=len(data.test.classes),
            instances=len(data.train or ()),
            steps=STEPS,
        )
        self.method = self.components.method
        self.trainer = Trainer(self.method, build_players(cfg, self.method, STEPS), autocast)
        self.trainer.train_mode()
        loaders = build_loaders(cfg, data, self.method.streams, self.device, random_labels)
        self.sampler = BatchSampler(self.method.streams, loaders)
        self.captured = bool(cfg.train.cuda_graph)
        self.step: Callable[[], Any] = (
            CapturedStep(self.trainer, self.sampler, self.components.generators)
            if self.captured
            else partial(self.trainer.next_step, self.sampler)
        )

    def warm_up(self, iterations: int) -> None:
        """Take iterations; a captured one needs three to get ready, its capture and a replay."""
        for _ in range(max(iterations, 5 if self.captured else 1)):
            self.step()

    def step_by_turns(self, after_turn: Callable[[str], None]) -> None:
        """Take an eager iteration, with a call after its images and after each turn."""
        batch = self.sampler.make_batch(self.sampler.sample_indices())
        if batch:
            after_turn("images")
        self.trainer.train_step(batch, after_turn)

    def seconds_by_turn(self, iterations: int) -> dict[str, float]:
        """Return median seconds of the images and of each player's turns; {} of a captured one.

        Apart from whole iterations: on CUDA each look at the clock waits for the device.
        """
        medians: dict[str, list[float]] = defaultdict(list)
        for _ in range(0 if self.captured else iterations):
            seconds: dict[str, float] = defaultdict(float)
            last = timer()

            def after_turn(name: str, seconds: dict[str, float] = seconds) -> None:
                nonlocal last
                now = timer()
                seconds[name] += now - last
                last = now

            self.step_by_turns(after_turn)
            for name, value in seconds.items():
                medians[name].append(value)
        return {name: statistics.median(values) for name, values in medians.items()}

    def count_operators(self) -> OperatorCounter:
        """Return what an eager iteration consists of."""
        with OperatorCounter() as counter:
            self.step_by_turns(counter.after_turn)
        return counter


# ---------------------------------------------------------------------------------------- memory


def release_memory(device: torch.device) -> None:
    """Give back what earlier workloads held."""
    gc.collect()  # a method's parts refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # glibc keeps what was freed; not every libc does
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """The most memory held since this was made, above what was held before, in MB.

    Of tensors on CUDA; on a CPU of the process, as Linux says, and None elsewhere.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        release_memory(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # lets the process's high-water mark begin anew
                Path("/proc/self/clear_refs").write_text("5")
        self.before = self._peak()

    def read(self) -> float | None:
        """Return the peak above what was held before."""
        peak = self._peak()
        return None if peak is None or self.before is None else peak - self.before

    def _peak(self) -> float | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            return None
        match = re.search(r"VmHWM:\s+(\d+)", status)
        return int(match[1]) * 1024 / 1e6 if match else None
