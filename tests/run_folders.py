"""Run folders as the launcher leaves them, made up in no time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

CLASSES = ["A", "B", "C", "D"]
SIZE, PADDING, COLUMNS, ZOOM, GAP = 4, 2, 5, 4, 8
SHOWN = 10


def write(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write a run's result.json and config. last=, best=: its accuracy."""
    last, best = changes.pop("last", 70.0), changes.pop("best", 71.25)
    result = {
        "status": "finished", "method": "mosaic", "dataset": "cifar100", "ood": "cifar10",
        "teacher": "wrn40_2", "student": "wrn16_1", "seed": 0,
        "accuracy": {"last": last, "best": best, "best_step": 40, "top5_last": 91.0},
        "teacher_accuracy": 75.83, "steps": 50, "seconds": 12.3, "seconds_per_step": 0.2,
        "device": "a CPU, fp32", "versions": {}, "config_hash": "0" * 12, "error": None,
        "variant": None, "ood_subset": False,
    } | changes  # fmt: skip
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("method:\n  name: mosaic\n  adv: 1.0\n")
    (folder / ".hydra" / "overrides.yaml").write_text("- experiment=quickstart\n- 'name=a b'\n")
    (folder / "result.json").write_text(json.dumps(result))
    return result


def samples(folder: Path, steps: Sequence[int]) -> None:
    """Write sample grids: synthetic images whose red is the step, beside blue ones that stay."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    width = COLUMNS * (SIZE + PADDING) + PADDING
    height = SHOWN // COLUMNS * (SIZE + PADDING) + PADDING
    for step in steps:
        pixels = np.full((height, 2 * width + GAP, 3), 255, np.uint8)
        for left, colour in ((0, (step % 256, 0, 0)), (width + GAP, (0, 0, 200))):
            for i in range(SHOWN):
                y = PADDING + i // COLUMNS * (SIZE + PADDING)
                x = left + PADDING + i % COLUMNS * (SIZE + PADDING)
                pixels[y : y + SIZE, x : x + SIZE] = colour
        classes = [i % 4 for i in range(SHOWN)]
        grids = [{"what": what, "left": left, "size": SIZE, "classes": classes}
                 for what, left in (("synthetic", 0), ("images", width + GAP))]  # fmt: skip
        layout = {"step": step, "zoom": ZOOM, "padding": PADDING, "columns": COLUMNS,
                  "grids": grids}  # fmt: skip
        text = PngInfo()
        text.add_text("mosaickd", json.dumps(layout))
        image = Image.fromarray(pixels.repeat(ZOOM, 0).repeat(ZOOM, 1))
        image.save(folder / "samples" / f"step{step:07d}.png", pnginfo=text)


def logged(step: int, **more: Any) -> dict[str, Any]:
    """Return a line of metrics.jsonl after some iterations."""
    return {
        "step": step, "time": 1_790_000_000.0 + step,
        "loss/generator/local": 1.0 / step, "loss/generator/adv": -0.5,
        "loss/student/kd": 2.0 / step,
        "weighted/generator/local": 1.0 / step, "weighted/generator/adv": -5.0,
        "weighted/student/kd": 2.0 / step,
        "lr/generator": 0.001, "lr/student": 0.1,
        "speed/seconds_per_step": 0.5, "speed/images_per_second": 128.0,
        "memory/peak_mb": 900.0,
    } | more  # fmt: skip


def evaluated(step: int, accuracy: float, **more: Any) -> dict[str, Any]:
    """Return a line after an evaluation: the more steps, the more classes are seen."""
    return {
        "step": step, "time": 1_790_000_000.5 + step, "accuracy/top1": accuracy,
        "accuracy/top5": 100.0, "accuracy/best": accuracy,
        "fakes/classes": [step, 10, 0, 0], "fakes/classes_seen": 2, "fakes/confidence": 0.9,
    } | more  # fmt: skip


def append(folder: Path, *lines: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def whole_run(folder: Path, steps: Sequence[int] = (10, 20, 30), **changes: Any) -> Path:
    """Write a run of letters that was evaluated at `steps`, with all that a run writes."""
    known = {"dataset": "letters", "ood": "strokes", "total_steps": steps[-1], "memory_mb": 900,
             "processes": 1, "code": {"commit": "abc123", "dirty": True},
             "versions": {"python": "3.11.7", "torch": "2.14.1"},
             "steps": steps[-1], "last": 40.0, "best": 40.0}  # fmt: skip
    if changes.get("status") == "running":
        known |= {"last": None, "best": None, "steps": 0, "total_steps": 2 * steps[-1]}
    write(folder, **(known | changes))
    for step in steps:
        append(folder, logged(step), evaluated(step, 10.0 + step))
    samples(folder, steps)
    rows = [{"class": name, "images": 5, "right": i} for i, name in enumerate(CLASSES)]
    (folder / "per_class.json").write_text(json.dumps({"step": steps[-1], "classes": rows}))
    (folder / "config.json").write_text("{}")
    (folder / "run.log").write_text("begun\nthe last words of the log\n")
    return folder


def owned(folder: Path, *, process: int, host: str, ago: float = 0.0) -> None:
    """Write a mark that a process holds the folder."""
    path = folder / ".owner"
    token = "0123456789abcdef" * 2
    path.write_text(
        f"filelock/2\npid={process}\nhost={host}\nmode=lease\ntoken={token}\nduration=60.0\n"
    )
    os.utime(path, (time.time() - ago, time.time() - ago))
