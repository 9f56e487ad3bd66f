"""Kill runs, thousands of times, and see that nothing is lost.

    python -m tests.soak --minutes 30

Every method plays short runs, from drawing its images and training its teacher to the end. They are
killed again and again: at random moments, and between the operations with which files are written.
After each kill no file may be half; in the end everything must be, bit for bit, what a run came to
that nobody killed. Ends with 1 and names the folders where something else was found.
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # run as a program, not by pytest

import numpy as np
import yaml
from conftest import Tiny, let_programs_hear
from forked import Forked, finish
from PIL import Image
from safetensors import safe_open

from mosaickd.data.cache import CACHE_FROM
from mosaickd.engine.checkpoint import load_checkpoint

#: A method, or "cache": kd from a folder of so many pictures that they are kept decoded.
METHODS = ["cache", "scratch", "kd", "balanced", "fitnet", "rkd", "crd", "sskd", "mosaic", "dafl",
           "zskt", "dfq", "deepinv"]  # fmt: skip
DATA_FREE = {"dafl", "zskt", "dfq", "deepinv"}
CADENCE = ["train.eval_every=3", "train.checkpoint_every=1", "train.log_every=2"]
MOST_KILLS = 12  # of one run, before it is let through

#: Files that are not finished by their names, and those of locks.
TEMPORARY = {".tmp", ".making"}

#: What a file is written with. A run is killed right before or right after one of these.
OPERATIONS = ("replace", "link", "fsync", "unlink", "fdatasync")


@dataclass
class Tally:
    """What happened so far."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    inspected: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total(self) -> int:
        return sum(self.kills.values())

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} by {kind}" for kind, count in sorted(self.kills.items()))
        runs = ", ".join(f"{name} {count}" for name, count in sorted(self.runs.items()))
        return (
            f"{self.total} kills ({kinds or 'none'}); {sum(self.runs.values())} runs ended as if "
            f"nobody had killed them ({runs}); {self.inspected} files inspected; "
            f"{len(self.wrong)} times something was wrong"
        )


def command(method: str) -> list[str]:
    """A run of some steps, all of whose files lie below the working folder."""
    tiny = Tiny(Path("glyphs"))
    words = [f"method={method}", "dataset=letters", "student=wrn16_1", "tracker=none",
             "hydra.run.dir=run", "train.batch_size=16", "train.precision=fp32",
             *tiny.source("dataset"), *CADENCE]  # fmt: skip
    if method == "cache":
        own = ["ood=folder", "ood.root=pictures", "ood.image_size=16", "ood.limit=64"]
        words = replaced(words, "method=kd")
        return [*words, "teacher=wrn16_2", RECIPE, *own, "train.epochs=1"]
    if method == "scratch":
        return [*words, "train.epochs=1", "train.batch_size=48"]
    words += ["teacher=wrn16_2", RECIPE, *SMALLER.get(method, [])]
    if method in DATA_FREE:
        return [*words, "train.epochs=2", "train.epoch_steps=2"]
    subset = ["ood_subset=true", "ood_subset_size=32"] if method in ("kd", "mosaic") else []
    return [*words, "ood=strokes", "train.epochs=1", *tiny.source("ood", 64), *subset]


def replaced(words: list[str], word: str) -> list[str]:
    """With another value for its key."""
    key = word.partition("=")[0]
    return [word if w.startswith(f"{key}=") else w for w in words]


RECIPE = "dataset.recipe={epochs: 1, batch_size: 48, lr: 0.05, weight_decay: 5e-4}"
SMALL_GENERATOR = ["generator.latent_dim=16", "generator.width=8"]
SMALLER = {
    "mosaic": [*SMALL_GENERATOR, "discriminator.width=8", "method.student_steps=2"],
    "dafl": SMALL_GENERATOR,
    "zskt": [*SMALL_GENERATOR, "method.student_steps=2"],
    "dfq": [*SMALL_GENERATOR, "method.student_steps=2"],
    "crd": ["method.negatives=32"],
    "deepinv": ["method.inversion_steps=2", "method.student_steps=2"],
}


# ---------------------------------------------------------------------------------------- killing


def die_at_an_operation() -> None:
    """In the run's process: be killed at the file operation whose number is in $DIE_AT."""
    left = int(os.environ["DIE_AT"])
    after = left % 2

    def deadly(operation: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            left -= 1
            if left <= 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = operation(*arguments, **keywords)
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in OPERATIONS:
        setattr(os, name, deadly(getattr(os, name)))


def strike(forked: Forked, words: list[str], chance: random.Random, usual: float) -> str:
    """Start the command and do something to it. -> by what it was ended; "" if it ended itself."""
    kind = chance.choice(["SIGKILL at a random moment"] * 9 + ["SIGKILL at a file operation"] * 9
                         + ["SIGTERM", "SIGHUP"])  # fmt: skip
    if kind == "SIGKILL at a file operation":
        run = forked.start(
            *words, env={"DIE_AT": str(chance.randint(1, 60))}, before=die_at_an_operation
        )
    else:
        run = forked.start(*words)
        run.process.join(chance.uniform(0, usual))
        number = getattr(signal, kind.split()[0])
        if run.process.is_alive():
            os.kill(run.pid, number)
            if number != signal.SIGKILL and chance.random() < 0.5:  # asked twice
                os.kill(run.pid, number)
    outcome = run.wait()
    if outcome.code == 0:
        return ""
    expected = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, 143, 129}
    assert outcome.code in expected, f"exit code {outcome.code}:\n{outcome.text}"
    assert "Traceback" not in outcome.text, outcome.text
    return kind


# ------------------------------------------------------------------------------------- inspecting


def inspect(home: Path) -> int:
    """Read every file that must be whole. -> how many those were."""
    count = 0
    for path in sorted(home.rglob("*")):
        given = path.suffix == ".png" and path.parent.name == "pictures"
        if path.is_dir() or given or path.suffix in TEMPORARY or path.name == ".owner":
            continue
        try:
            read(path)
        except Exception as error:
            raise AssertionError(f"{path} is not whole: {error!r}") from error
        count += 1
    return count


def read(path: Path) -> None:
    if path.name == "metrics.jsonl":
        *lines, last = path.read_text().split("\n")
        for line in lines:
            json.loads(line)
        assert not last, "a line without an end"
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            assert [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
    elif path.suffix == ".pt":
        load_checkpoint(path)
    elif path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".npz":
        with np.load(path) as file:
            assert all(len(file[name]) for name in file.files)
    elif path.suffix == ".npy":  # a cache: images as numpy writes them, then their labels
        images = np.load(path, mmap_mode="r")
        assert path.stat().st_size >= images.offset + images.nbytes + 8 * len(images)
    elif path.suffix == ".yaml":
        assert yaml.safe_load(path.read_text())


def products(home: Path) -> dict[str, Any]:
    """What a run came to, without what a clock has measured."""
    measured = {"time", "speed/seconds_per_step", "speed/images_per_second", "memory/peak_mb"}
    found: dict[str, Any] = {}
    for path in sorted(home.rglob("*.safetensors")) + sorted(home.rglob("*.png")):
        found[str(path.relative_to(home))] = path.read_bytes()
    for path in sorted(home.rglob("metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[str(path.relative_to(home))] = [
            {k: v for k, v in line.items() if k not in measured} for line in lines
        ]
    result = json.loads((home / "run" / "result.json").read_text())
    for key in ("status", "accuracy", "teacher_accuracy", "steps", "config_hash", "error",
                "data_fingerprint", "teacher_fingerprint"):  # fmt: skip
        found[f"result.json {key}"] = result[key]
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]


# --------------------------------------------------------------------------------------- the story


class Soak:
    """Runs of all methods in folders below `root`; each method's reference is outputs once."""

    def __init__(self, root: Path, methods: list[str], seed: int) -> None:
        self.root = root
        self.methods = methods
        self.seed = seed
        self.tally = Tally()
        self.references: dict[str, tuple[dict[str, Any], float]] = {}

    def place(self, name: str, method: str) -> Forked:
        """A folder to run in."""
        work, logs = self.root / name / "work", self.root / name / "logs"
        work.mkdir(parents=True)
        logs.mkdir()
        if method == "cache":
            shutil.copytree(self.pictures, work / "pictures", copy_function=os.link)
        return Forked(work, logs)

    @cached_property
    def pictures(self) -> Path:
        """So many that a run decodes them once, into a cache."""
        folder = self.root / "pictures"
        folder.mkdir()
        colours = np.random.default_rng(0).integers(0, 256, (CACHE_FROM, 4, 4, 3), dtype=np.uint8)
        for number, pixels in enumerate(colours):
            Image.fromarray(pixels).save(folder / f"{number:05}.png")
        return folder

    def prepare(self) -> None:
        """What each method's run comes to, and how long it takes, if nobody kills it."""
        for method in self.methods:
            forked = self.place(f"reference-{method}", method)
            began = time.monotonic()
            finish(forked.start(*command(method)))
            self.references[method] = products(forked.folder), time.monotonic() - began

    def run(self, number: int, until: float, kills: int | None) -> None:
        """One run of one method, killed until it comes through."""
        chance = random.Random(f"{self.seed} {number}")
        method = self.methods[number % len(self.methods)]
        forked = self.place(f"run{number}-{method}", method)
        words = command(method)
        reference, usual = self.references[method]
        try:
            for _ in range(MOST_KILLS):
                enough = kills is not None and self.tally.total >= kills
                if enough or time.monotonic() > until:
                    break
                kind = strike(forked, words, chance, usual)
                inspected = inspect(forked.folder)
                with self.tally.lock:
                    self.tally.inspected += inspected
                    if kind:
                        self.tally.kills[kind] += 1
                if not kind:
                    break
            finish(forked.start(*words))
            inspect(forked.folder)
            left = list(forked.folder.rglob("*.tmp"))
            assert not left, f"left behind: {left}"
            different = differences(products(forked.folder), reference)
            assert not different, f"not what the reference came to: {', '.join(different)}"
        except Exception as error:
            with self.tally.lock:
                self.tally.wrong.append(f"{forked.folder} ({method}): {error}")
            return
        with self.tally.lock:
            self.tally.runs[method] += 1
        shutil.rmtree(forked.folder.parent)

    def play(self, minutes: float, kills: int | None, lanes: int) -> Tally:
        """Until the time is up or, where `kills` is given, so many were made."""
        self.prepare()
        until = time.monotonic() + 60 * minutes

        def numbers() -> Iterator[int]:
            number = 0
            while time.monotonic() < until and (kills is None or self.tally.total < kills):
                yield number
                number += 1

        ahead = numbers()
        lock = threading.Lock()

        def lane() -> None:
            while True:
                with lock:
                    number = next(ahead, None)
                if number is None:
                    return
                self.run(number, until, kills)

        with ThreadPoolExecutor(lanes) as pool:
            for done in [pool.submit(lane) for _ in range(lanes)]:
                done.result()
        return self.tally


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kills", type=int, help="stop after so many")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1, help="runs at a time")
    options = parser.parse_args()
    let_programs_hear()
    root = Path(tempfile.mkdtemp(prefix="mosaickd-soak-"))
    print(f"seed {options.seed}, in {root}", flush=True)
    soak = Soak(root, options.methods, options.seed)
    tally = soak.play(options.minutes, options.kills, options.lanes)
    print(tally)
    for line in tally.wrong:
        print(f"wrong: {line}")
    if not tally.wrong:
        shutil.rmtree(root)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
