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
    from mosaickd.build import build_players
    from mosaickd.components import Parts
    from mosaickd.engine.batch_sampler import BatchSampler
    from mosaickd.engine.interruption import Interruption
    from mosaickd.engine.trainer import Trainer
    from mosaickd.fit import Fit
    from mosaickd.load_data import Gallery

    cfg = timed("config", lambda: compose_config(overrides))
    nowhere = Path("nowhere")  # nothing is written
    fit = timed("settings", lambda: Fit(cfg, nowhere, Interruption(), None, {}, dict))
    gallery = timed(
        "images",
        lambda: Gallery(cfg, device=fit.device, autocast=fit.autocast, check=lambda: None),
    )
    fit.gallery = gallery

    def networks() -> Trainer:
        fit.parts = Parts(
            cfg,
            device=fit.device,
            num_classes=len(gallery.test.classes),
            instances=gallery.count_of("ood"),
            steps=1,
        )
        fit.student, fit.teacher, fit.method = (
            fit.parts.student,
            fit.parts.teacher,
            fit.parts.method,
        )
        return Trainer(fit.method, build_players(cfg, fit.method, 1), fit.autocast)

    game = timed("networks", networks)
    timed("teacher's accuracy", lambda: fit.prepare_teacher(None))
    streams = fit.method.streams
    sampler = timed(
        "loaders", lambda: BatchSampler(streams, gallery.loaders(streams, fit.teacher, fit.seed))
    )
    trainer.train_mode()
    timed("first iteration", lambda: trainer.next_step(sampler))
    return stages


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
