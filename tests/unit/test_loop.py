"""The loop between iterations: a signal is obeyed at once where that loses nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tables import BATCH, CLASSES, CPU, INSTANCES, MEAN, SIZE, STD, Table
from torch import Tensor

from mosaickd.data.loader import ResidentLoader
from mosaickd.data.source import ImageSet
from mosaickd.engine.batch_sampler import BatchSampler
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.engine.loop import TrainingLoop
from mosaickd.engine.progress import Progress
from mosaickd.engine.samples import SampleReport, sample_counts
from mosaickd.engine.settings import TrainSettings
from mosaickd.engine.trackers import NoTracker
from mosaickd.run_dir import RunDir

CODE = {"code": {"commit": None, "dirty": None}}


def endless() -> Iterator[tuple[Tensor, Tensor]]:
    """Test images of which the second batch takes for ever: the signal comes with the first."""
    yield torch.zeros(2, 3, SIZE, SIZE), torch.zeros(2, dtype=torch.int64)
    os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail("the evaluation goes on")


def short() -> list[tuple[Tensor, Tensor]]:
    return [(torch.zeros(2, 3, SIZE, SIZE), torch.zeros(2, dtype=torch.int64))]


def draw_endlessly(path: Path, step: int) -> SampleReport:
    os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail("the drawing goes on")


def draw_nothing(path: Path, step: int) -> SampleReport:
    return SampleReport(False, {})


def new_loop(folder: Path, interruption: Interruption, batches: Any, draw: Any) -> TrainingLoop:
    """kd for two steps, evaluated after the first."""
    at = Table("kd")
    images = ImageSet(
        torch.zeros(INSTANCES, 3, SIZE, SIZE, dtype=torch.uint8),
        torch.arange(INSTANCES) % CLASSES, list("abcd"),
    )  # fmt: skip
    loader = ResidentLoader(
        images, batch_size=BATCH, mean=MEAN, std=STD, augment=True, seed=0, device=CPU
    )
    sampler = BatchSampler(at.method.streams, dict.fromkeys(at.method.streams, loader))
    settings: Any = {
        "trainer": at.trainer, "sampler": sampler, "student": at.student, "classes": list("abcd"),
        "iterate": partial(at.trainer.next_step, sampler), "test_batches": batches,
        "run": RunDir(folder), "settings": TrainSettings(batch_size=BATCH), "steps": 2,
        "eval_every": 1, "tracker": NoTracker(run=None), "progress": Progress("kd: x", 2),  # type: ignore[arg-type]
        "interruption": interruption, "sample_logger": draw, "shared_rng": {}, "per_rank_rng": {},
        "provenance": CODE,
    }  # fmt: skip
    return TrainingLoop(**settings)


@pytest.mark.parametrize(
    ("batches", "draw"),
    [(endless, draw_nothing), (short, draw_endlessly)],
    ids=["evaluation", "samples"],
)
def test_sigterm_stops_an_evaluation_at_once_and_it_comes_again(
    tmp_path: Path, batches: Any, draw: Any
) -> None:
    with Interruption().handling() as interruption:
        loop = new_loop(tmp_path, interruption, batches(), draw)
        with pytest.raises(Interrupted, match="SIGTERM"), loop.progress:
            loop.fit()
    assert (loop.state.step, loop.state.evaluated) == (1, -1)
    resumed = new_loop(tmp_path, Interruption(), short(), draw_nothing)
    with resumed.progress:
        resumed.fit()
    lines = RunDir(tmp_path).read_metrics()
    assert [line["step"] for line in lines if "accuracy/top1" in line] == [1, 2]


def test_a_sigterm_in_an_iteration_waits_for_its_end(tmp_path: Path) -> None:
    with Interruption().handling() as interruption:
        loop = new_loop(tmp_path, interruption, short(), draw_nothing)
        iterate = loop.iterate

        def iterate_with_signal() -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return iterate()

        loop.iterate = iterate_with_signal
        with pytest.raises(Interrupted), loop.progress:
            loop.fit()
    assert loop.state.step == 1
    assert loop.run.checkpoint.exists()


@pytest.mark.parametrize("classes", [10, 100, 1000, 21_000])
def test_samples_cost_no_more_with_larger_images_or_more_classes(classes: int) -> None:
    at_32 = sample_counts(32, classes)
    assert at_32[0] == 100
    assert at_32[1] <= 1000
    for size in (64, 128, 224, 512):
        shown, counted = sample_counts(size, classes)
        assert 16 <= shown <= counted
        assert shown == 16 or shown * size**2 <= 100 * 32**2, "pixels"
        assert counted == 16 or counted * size**2 <= at_32[1] * 32**2
