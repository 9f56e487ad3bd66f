"""What a run does before its first iteration, step by step, in this fresh process.

    python -m benchmarks.startup experiment=quickstart teacher.checkpoint=FILE

prints a JSON object of seconds. Called by `benchmarks.pipeline`. Nothing is imported before its
import is timed.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(overrides: list[str]) -> dict[str, float]:
    stages: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        stages[name] = time.perf_counter() - start
        return result

    def import_torch() -> None:
        import torch  # noqa: F401

    def import_framework() -> None:
        import mosaickd.launch  # noqa: F401

    timed("import torch", import_torch)
    timed("import mosaickd", import_framework)

    from benchmarks.harness import compose_config
    from mosaickd import teachers
    from mosaickd.components import Components, build_components, build_players
    from mosaickd.engine.batch_sampler import BatchSampler
    from mosaickd.engine.device import set_up
    from mosaickd.engine.trainer import Trainer
    from mosaickd.load_data import (
        build_loaders,
        build_test_batches,
        count_train_images,
        load_data,
        predictor,
    )

    cfg = timed("config", lambda: compose_config(overrides))
    compute = timed("settings", lambda: set_up(cfg.device, cfg.train))
    device = compute.device
    data = timed("images", lambda: load_data(cfg))

    def networks() -> tuple[Components, Trainer]:
        components = build_components(
            cfg,
            device=device,
            num_classes=len(data.test.classes),
            instances=count_train_images(cfg, data),
            steps=1,
        )
        players = build_players(cfg, components.method, 1)
        return components, Trainer(components.method, players, compute.autocast)

    components, trainer = timed("networks", networks)
    teacher, method = components.teacher, components.method
    file = teachers.TeacherFile(Path(cfg.teacher.checkpoint), None)
    test_batches = build_test_batches(cfg, data, device)
    timed(
        "teacher's accuracy",
        lambda: teachers.load_and_measure(cfg, teacher, file, data, test_batches, compute),
    )
    predict = predictor(cfg, data, teacher, device=device, autocast=compute.autocast)
    sampler = timed(
        "loaders",
        lambda: BatchSampler(
            method.streams, build_loaders(cfg, data, method.streams, device, predict)
        ),
    )
    trainer.train_mode()
    timed("first iteration", lambda: trainer.next_step(sampler))
    return stages


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
