"""Kill runs, thousands of times, and check that nothing is lost.

    python -m tests.soak --minutes 30

Every method makes short runs, from drawing its images and training its teacher to the end. They are
killed again and again: at random moments, and between the operations with which files are written.
After each kill no file may be half written; in the end everything must be, bit for bit, what a run
without kills computed. Ends with 1 and names the folders where something else was found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # run as a program, not by pytest

import numpy as np
import yaml
from conftest import Tiny, restore_signals
from forked import Forked, finish
from PIL import Image
from safetensors.torch import load_file

from mosaickd.data.cache import CACHE_FROM
from mosaickd.engine.checkpoint import load_checkpoint

SUBSET = ["ood_subset=true", "ood_subset_size=32"]
DATA_FREE = ["train.epochs=2", "train.epoch_steps=2"]
#: Settings of each method that make its run short. "cache": kd from a folder of so many pictures
#: that they are cached decoded.
METHODS: dict[str, list[str]] = {
    **{name: [] for name in ("balanced", "fitnet", "rkd", "sskd")},
    "scratch": ["train.batch_size=48"],
    "kd": SUBSET,
    "cache": ["ood=folder", "ood.root=pictures", "ood.image_size=16", "ood.limit=64",
              "~ood.reader.train_images", "~ood.reader.test_images"],
    "crd": ["method.negatives=32"],
    "mosaic": ["method.student_steps=2", *SUBSET],
    "dafl": DATA_FREE,
    "zskt": ["method.student_steps=2", *DATA_FREE],
    "dfq": ["method.student_steps=2", *DATA_FREE],
    "deepinv": ["method.inversion_steps=2", "method.student_steps=2", *DATA_FREE],
}  # fmt: skip
MAX_KILLS = 12  # of one run, before it may end
KINDS = {"random moment": 9, "file operation": 9, "SIGTERM": 1, "SIGHUP": 1}  # and their weights

#: What a file is written with. A run is killed right before or right after one of these.
OPERATIONS = ("replace", "link", "fsync", "unlink", "fdatasync")

#: Files that need not be whole: temporary ones by their names, and those of locks.
PARTIAL = {".tmp", ".making"}

#: What depends on a clock, of the lines of metrics.jsonl; and what doesn't, of result.json.
MEASURED = {"time", "speed/seconds_per_step", "speed/images_per_second", "memory/peak_mb"}
COMPUTED = ("status", "accuracy", "teacher_accuracy", "steps", "config_hash", "error",
            "data_fingerprint", "teacher_fingerprint")  # fmt: skip


def command(folder: Path, method: str) -> list[str]:
    """Return the arguments of a run of some steps, all of whose files lie in `folder`."""
    name = "kd" if method == "cache" else method
    return Tiny(Path("glyphs")).experiment(
        folder, f"method={name}", "hydra.run.dir=run", "dataset.recipe.epochs=1",
        "train.eval_every=3", "train.checkpoint_every=1", "train.log_every=2", *METHODS[method],
    )  # fmt: skip


def draw_pictures(folder: Path) -> None:
    """Write so many that a run decodes them once, into a cache."""
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (CACHE_FROM, 4, 4, 3), dtype=np.uint8)
    for number, pixels in enumerate(colours):
        Image.fromarray(pixels).save(folder / f"{number:05}.png")


# ---------------------------------------------------------------------------------------- killing


def die_at_an_operation() -> None:
    """In the run's process: be killed at the file operation whose number is in $DIE_AT."""
    number = int(os.environ["DIE_AT"])
    after = number % 2

    def deadly(operation: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal number
            number -= 1
            if number <= 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = operation(*arguments, **keywords)
            if number <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in OPERATIONS:
        setattr(os, name, deadly(getattr(os, name)))


def run_and_kill(forked: Forked, arguments: list[str], rng: random.Random, usual: float) -> str:
    """Start a run and kill it. Return how, or "" where it has ended by itself.

    usual: seconds that it takes when nobody kills it.
    """
    (kind,) = rng.choices([*KINDS], [*KINDS.values()])
    if kind == "file operation":
        env = {"DIE_AT": str(rng.randint(1, 60))}
        run = forked.start(*arguments, env=env, before=die_at_an_operation)
    else:
        run = forked.start(*arguments)
        run.process.join(rng.uniform(0, usual))
        number = getattr(signal, kind, signal.SIGKILL)
        twice = number != signal.SIGKILL and rng.random() < 0.5
        for _ in range(1 + twice):
            if run.poll() is None:
                os.kill(run.pid, number)
    outcome = run.wait()
    if outcome.code == 0:
        return ""
    expected = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, 143, 129}
    assert outcome.code in expected, f"exit code {outcome.code}:\n{outcome.text}"
    assert "Traceback" not in outcome.text, outcome.text
    return kind


# ------------------------------------------------------------------------------------- inspecting


def check_files(folder: Path) -> int:
    """Read every file that must be whole. Return how many those were."""
    count = 0
    for path in sorted(folder.rglob("*")):
        ours = path.parent.name != "pictures" and path.name != ".owner"
        partial = not PARTIAL.isdisjoint({path.suffix, path.parent.suffix})
        if path.is_file() and ours and not partial:
            try:
                read(path)
            except Exception as error:
                raise AssertionError(f"{path} is not whole: {error!r}") from error
            count += 1
    return count


def read(path: Path) -> None:
    match path.suffix:
        case ".jsonl":
            *lines, end = path.read_text().split("\n")
            for line in lines:
                json.loads(line)
            assert not end, "a line without an end"
        case ".json":
            json.loads(path.read_text())
        case ".yaml":
            assert yaml.safe_load(path.read_text())
        case ".safetensors":
            assert load_file(path)
        case ".pt":
            load_checkpoint(path)
        case ".png":
            Image.open(path).load()
        case ".npz":
            with np.load(path) as file:
                assert all(len(file[name]) for name in file.files)
        case ".npy":  # the labels of a decoded cache; its pixels lie beside them
            shape = json.loads(path.with_name("set.json").read_text())["shape"]
            assert len(np.load(path)) == shape[0]
            assert path.with_name("images").stat().st_size == np.prod(shape)


def outputs_of(folder: Path) -> dict[str, Any]:
    """Return what a run has computed, by file, without what a clock has measured."""
    outputs: dict[str, Any] = {}
    for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.png")]:
        outputs[str(path.relative_to(folder))] = path.read_bytes()
    for path in folder.rglob("metrics.jsonl"):
        lines = map(json.loads, path.read_text().splitlines())
        outputs[str(path.relative_to(folder))] = [
            {k: v for k, v in line.items() if k not in MEASURED} for line in lines
        ]
    result = json.loads((folder / "run" / "result.json").read_text())
    return outputs | {f"result.json {key}": result[key] for key in COMPUTED}


# --------------------------------------------------------------------------------------- the story


class Soak:
    """Runs of all methods in folders below `root`, each compared with a reference of its method."""

    def __init__(self, root: Path, methods: list[str], seed: int) -> None:
        self.root, self.methods, self.seed = root, methods, seed
        self.references: dict[str, tuple[dict[str, Any], float]] = {}  # outputs, seconds
        self.kills: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.files = 0
        self.failures: list[str] = []
        self.lock = threading.Lock()

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} by {kind}" for kind, count in sorted(self.kills.items()))
        runs = ", ".join(f"{name} {count}" for name, count in sorted(self.finished.items()))
        return (
            f"{self.kills.total()} kills ({kinds or 'none'}); {self.finished.total()} runs ended "
            f"as if nobody had killed them ({runs}); {self.files} files inspected; "
            f"{len(self.failures)} failures"
        )

    def new_folder(self, name: str, method: str) -> Forked:
        work, logs = self.root / name / "work", self.root / name / "logs"
        work.mkdir(parents=True)
        logs.mkdir()
        if method == "cache":
            pictures = self.root / "pictures"
            if not pictures.exists():
                draw_pictures(pictures)
            shutil.copytree(pictures, work / "pictures", copy_function=os.link)
        return Forked(work, logs)

    def make_references(self) -> None:
        for method in self.methods:
            forked = self.new_folder(f"reference-{method}", method)
            start = time.monotonic()
            finish(forked.start(*command(forked.folder, method)))
            self.references[method] = outputs_of(forked.folder), time.monotonic() - start

    def is_over(self) -> bool:
        enough = self.max_kills is not None and self.kills.total() >= self.max_kills
        return enough or time.monotonic() > self.deadline

    def kill_until_finished(self, number: int) -> None:
        """Kill one run of one method until it comes through, and compare it with the reference."""
        rng = random.Random(f"{self.seed} {number}")
        method = self.methods[number % len(self.methods)]
        forked = self.new_folder(f"run{number}-{method}", method)
        arguments = command(forked.folder, method)
        expected, usual = self.references[method]
        try:
            for _ in range(MAX_KILLS):
                if self.is_over() or not (kind := run_and_kill(forked, arguments, rng, usual)):
                    break
                files = check_files(forked.folder)
                with self.lock:
                    self.files += files
                    self.kills[kind] += 1
            finish(forked.start(*arguments))
            check_files(forked.folder)
            temporary = list(forked.folder.rglob("*.tmp"))
            assert not temporary, f"left behind: {temporary}"
            outputs = outputs_of(forked.folder)
            names = outputs.keys() | expected.keys()
            different = sorted(n for n in names if outputs.get(n) != expected.get(n))
            assert not different, f"not what the reference computed: {', '.join(different)}"
        except Exception as error:
            with self.lock:
                self.failures.append(f"{forked.folder} ({method}): {error}")
            return
        with self.lock:
            self.finished[method] += 1
        shutil.rmtree(forked.folder.parent)

    def run(self, minutes: float, max_kills: int | None, workers: int) -> None:
        """Kill runs until the time is up or, if `max_kills` is given, there were as many."""
        self.make_references()
        self.deadline, self.max_kills = time.monotonic() + 60 * minutes, max_kills

        def work(first: int) -> None:
            number = first
            while not self.is_over():
                self.kill_until_finished(number)
                number += workers

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kills", type=int, help="stop after so many")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    options = parser.parse_args()
    restore_signals()
    root = Path(tempfile.mkdtemp(prefix="mosaickd-soak-"))
    print(f"seed {options.seed}, in {root}", flush=True)
    soak = Soak(root, options.methods, options.seed)
    soak.run(options.minutes, options.kills, options.workers)
    print(soak)
    for failure in soak.failures:
        print(f"failure: {failure}")
    if not soak.failures:
        shutil.rmtree(root)
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
