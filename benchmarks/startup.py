"""What a run does before its first iteration, step by step, in this fresh process.

    python -m benchmarks.startup experiment=quickstart teacher.checkpoint=FILE

prints a JSON object of seconds. Called by `benchmarks.pipeline`. Nothing is imported before its
import is timed.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def main(overrides: list[str]) -> dict[str, float]:
    """Return the seconds of each step, by what it does."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with timed("import torch"):
        import torch  # noqa: F401
    with timed("import mosaickd"):
        import mosaickd.launch  # noqa: F401

    from omegaconf import OmegaConf

    from benchmarks.harness import compose_config
    from mosaickd import load_data as images
    from mosaickd import teachers
    from mosaickd.components import build_components, build_players
    from mosaickd.engine.batch_sampler import BatchSampler
    from mosaickd.engine.device import set_up
    from mosaickd.engine.trainer import Trainer

    with timed("config"):
        cfg = compose_config(overrides)
    with timed("settings"):
        compute = set_up(cfg.device, OmegaConf.to_object(cfg.train))  # type: ignore[arg-type]
    with timed("images"):
        data = images.load_data(cfg)
    with timed("networks"):
        components = build_components(
            cfg,
            device=compute.device,
            num_classes=len(data.test.classes),
            instances=images.count_train_images(cfg, data),
            steps=1,
        )
        method, teacher = components.method, components.teacher
        assert teacher is not None
        trainer = Trainer(method, build_players(cfg, method, 1), compute.autocast)
    with timed("teacher's accuracy"):
        test_batches = images.build_test_batches(cfg, data, compute.device)
        file = teachers.TeacherFile(Path(cfg.teacher.checkpoint), None)
        teachers.load_and_measure(cfg, teacher, file, data, test_batches, compute)
    with timed("loaders"):
        predict = images.predictor(
            cfg, data, teacher, device=compute.device, autocast=compute.autocast
        )
        loaders = images.build_loaders(cfg, data, method.streams, compute.device, predict)
        sampler = BatchSampler(method.streams, loaders)
    with timed("first iteration"):
        trainer.train_mode()
        trainer.next_step(sampler)
    return seconds


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
