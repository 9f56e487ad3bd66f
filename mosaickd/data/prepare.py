"""Shrink a tree of photographs, once, so that runs read small images.

    python -m mosaickd.data.prepare /data/imagenet data/ImageNet_32x32
    python -m mosaickd.data.prepare /data/places365 data/Places365_32x32 --workers 16

The same command again goes on where one was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from multiprocessing import connection
from multiprocessing.synchronize import Event
from pathlib import Path

from PIL import Image, ImageOps, features

from mosaickd.data.broken import escaped
from mosaickd.data.finding import Tree
from mosaickd.data.pictures import SUFFIXES, in_rgb, read_file
from mosaickd.errors import UserError
from mosaickd.files import read_json, write_atomically, write_json
from mosaickd.locks import run_lock

FILTERS = {"box": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}
FORMATS = ("png", "webp")
FITS = ("stretch", "crop")
RECORD = "prepare.json"
BROKEN = "broken.txt"
PARTIAL = ".partial"  # where files are written before they get their names
CHUNK = 32  # images a worker takes at once
POLL = 0.2  # seconds between looks at whether to stop
SHOWN = 5  # broken files named on the terminal

#: A source file and its target, below SOURCE and TARGET.
Job = tuple[str, str]


@dataclass(frozen=True)
class Recipe:
    """How images are made. fit: stretch the whole image, or crop its centre, to size x size."""

    size: int = 32
    filter: str = "box"
    fit: str = "stretch"
    format: str = "png"


@dataclass
class Outcome:
    """made now, present from before, broken: (file, reason)."""

    made: int = 0
    present: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    stopped: bool = False

    @property
    def done(self) -> int:
        return self.made + self.present + len(self.broken)

    def add(self, other: Outcome) -> None:
        self.made += other.made
        self.present += other.present
        self.broken += other.broken


def prepare(
    source: Path, target: Path, recipe: Recipe, workers: int, follow_links: bool = False
) -> Outcome:
    """Make small copies in target of all images below source, in the same sub-folders.

    Finished ones are left alone; broken files, and links out of source unless follow_links, are
    listed in target/broken.txt. Ctrl-C stops it.
    Raises UserError for folders that can't be meant and where target can't be written.
    """
    source, target = source.resolve(), target.resolve()
    if not source.is_dir():
        raise UserError(f"no folder {source}; SOURCE is the folder with the photographs")
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f"TARGET ({target}) and SOURCE ({source}) must not lie in one another; "
                        "choose another TARGET")  # fmt: skip
    if recipe.format == "webp" and not features.check("webp"):
        raise UserError("this Pillow can't write WebP; use --format png")
    start = len(os.path.join(source, ""))
    found = Tree(source, follow_links, "--follow-links follows it").image_files(source)
    names = [path[start:] for path in found.files if path not in found.refused]
    refused = [(path[start:], reason) for path, reason in found.refused.items()]
    if not found.files:
        raise UserError(f"no images below {source} (looked for {', '.join(sorted(SUFFIXES))})")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with run_lock(target, otherwise="choose another TARGET"):
            _check_record(source, target, recipe)
            shutil.rmtree(target / PARTIAL, ignore_errors=True)  # of a killed run
            (target / PARTIAL).mkdir()
            outcome = _run(source, names, target, recipe, workers)
            outcome.broken += refused
            shutil.rmtree(target / PARTIAL, ignore_errors=True)
            _list_broken(target, outcome)
    except OSError as error:
        path = error.filename2 or error.filename or target
        raise UserError(
            f"cannot write {path}: {error.strerror}; the same command goes on when that is mended"
        ) from error
    return outcome


def _check_record(source: Path, target: Path, recipe: Recipe) -> None:
    """A folder holds the images of one source and one recipe; otherwise UserError."""
    path = target / RECORD
    now = {"source": str(source), **asdict(recipe)}
    before = read_json(path)
    if before is None:
        if any(not entry.name.startswith(".") for entry in target.iterdir()):
            raise UserError(f"{target} holds something else already; choose an empty or a new "
                            "folder as TARGET")  # fmt: skip
        write_json(path, now)
    elif before != now:
        if not isinstance(before, dict) or before.keys() != now.keys():
            raise UserError(f"{path} is not what this program wrote; choose another TARGET")
        changed = [f"{key} {before[key]}, not {now[key]}" for key in now if before[key] != now[key]]
        raise UserError(
            f"{target} was made with {'; '.join(changed)}: choose another TARGET, or delete this "
            f"one. If SOURCE was only moved, correct it in {path}"
        )


def _list_broken(target: Path, outcome: Outcome) -> None:
    path = target / BROKEN
    if outcome.broken:
        lines = sorted(outcome.broken)
        text = "".join(f"{escaped(name, raw=True)}\t{reason}\n" for name, reason in lines)
        content = text.encode(errors="surrogateescape")
        write_atomically(path, lambda file: file.write(content))
    elif not outcome.stopped:
        path.unlink(missing_ok=True)


def targets(names: Sequence[str], suffix: str) -> Iterator[Job]:
    """Each file of a sorted tree with its target: a/b.jpg -> a/b.png.

    Where several would get the same (b.jpg and b.gif; B.jpg on some disks), they keep their
    whole names: b.jpg.png and b.gif.png.
    """
    for _, group in itertools.groupby(names, key=os.path.dirname):
        stems = {name: os.path.splitext(name)[0] for name in group}
        while True:  # b.jpg may have become b.jpg.png, which b.jpg.gif had
            taken = Counter(stem.casefold() for stem in stems.values())
            doubled = [n for n, stem in stems.items() if taken[stem.casefold()] > 1 and stem != n]
            if not doubled:
                break
            stems.update((name, name) for name in doubled)
        for name, stem in stems.items():
            yield name, f"{stem}.{suffix}"


def _run(source: Path, names: list[str], target: Path, recipe: Recipe, workers: int) -> Outcome:
    outcome = Outcome()
    jobs = targets(names, recipe.format)
    chunks = iter(lambda: list(itertools.islice(jobs, CHUNK)), [])
    with (
        _interruptions() as interrupted,
        _bar(len(names)) as show,
        _workers(workers, source, target, recipe) as (pool, stop),
    ):
        ahead: set[Future[Outcome]] = set()
        while True:
            if interrupted:
                outcome.stopped = True
                stop.set()
            else:
                for chunk in itertools.islice(chunks, 4 * workers - len(ahead)):
                    ahead.add(pool.submit(_shrink, chunk))
            if not ahead:
                return outcome
            done, ahead = wait(ahead, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in done:
                outcome.add(future.result())
            show(outcome)


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Signals that ask for an end, in a list that fills instead of an exception anywhere."""
    seen: list[int] = []
    before = {
        number: signal.signal(number, lambda received, _: seen.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[Outcome], None]]:
    """-> show(outcome): a progress bar where a person watches, otherwise nothing."""
    if not sys.stderr.isatty():
        yield lambda outcome: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(),
        progress.MofNCompleteColumn(), progress.TextColumn("{task.fields[speed]}"),
        progress.TimeRemainingColumn(),
    )  # fmt: skip
    began = time.monotonic()
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("shrinking", total=total, speed="")

        def show(outcome: Outcome) -> None:
            speed = f"{outcome.made / (time.monotonic() - began):.0f}/s"
            speed += f", {len(outcome.broken)} broken" if outcome.broken else ""
            bar.update(task, completed=outcome.done, speed=speed)

        yield show


@contextmanager
def _workers(
    count: int, source: Path, target: Path, recipe: Recipe
) -> Iterator[tuple[ProcessPoolExecutor, Event]]:
    """A pool whose workers `_shrink`, and an event that makes them stop after their image."""
    fork = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if fork else "spawn")
    if fork:
        from multiprocessing import forkserver

        context.set_forkserver_preload(["mosaickd.data.pictures"])  # the slow imports, once
        # Ctrl-C goes to all processes of a terminal. Workers are born ignoring it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, handler)
    stop = context.Event()
    pool = ProcessPoolExecutor(
        count, context, initializer=_begin, initargs=(source, target, recipe, stop)
    )
    try:
        with pool:
            try:
                yield pool, stop
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                stop.set()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker ended unexpectedly, perhaps killed for want of memory; the same command "
            "goes on, with fewer --workers perhaps to the end"
        ) from error


# ------------------------------------------------------------------------------------ in a worker

_task: tuple[Path, Path, Recipe, Event]


def _begin(source: Path, target: Path, recipe: Recipe, stop: Event) -> None:
    global _task
    _task = (source, target, recipe, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # of the many odd files among a million
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A parent that was killed can't end its workers: they would wait for work for ever."""
    connection.wait([parent])
    os._exit(1)


def _shrink(jobs: list[Job]) -> Outcome:
    source, target, recipe, stop = _task
    outcome = Outcome()
    for name, goal in jobs:
        if stop.is_set():
            break
        if _is_there(target / goal):
            outcome.present += 1
            continue
        try:
            content = shrunk(read_file(source / name), recipe)
        except Exception as error:  # also of a disk that can't be read everywhere
            reason = " ".join(f"{error or type(error).__name__}".split())
            outcome.broken.append((name, escaped(reason)))
            continue
        _put(target / PARTIAL / str(os.getpid()), target / goal, content)
        outcome.made += 1
    return outcome


def _is_there(path: Path) -> bool:
    """Empty files don't count: a machine that went down may leave them."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _put(partial: Path, path: Path, content: bytes) -> None:
    # Not mosaickd.files.write_atomically, which waits for the disk: too slow for a million files.
    partial.write_bytes(content)
    try:
        os.replace(partial, path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, path)


def shrunk(data: bytes, recipe: Recipe) -> bytes:
    """An encoded image of any kind -> a small one, RGB, without loss and without metadata."""
    size = (recipe.size, recipe.size)
    method = FILTERS[recipe.filter]
    with in_rgb(data, Counter()) as picture:
        if recipe.fit == "stretch":
            picture = picture.resize(size, method)
        else:
            picture = ImageOps.fit(picture, size, method)
    picture.info.clear()  # colour profiles, larger than the image
    file = BytesIO()
    options = {"lossless": True} if recipe.format == "webp" else {}
    picture.save(file, recipe.format, **options)
    return file.getvalue()


# ------------------------------------------------------------------------------- the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """-> exit code: 0 when most images came out, 1 when not, 130 when stopped."""
    options = _parser().parse_args(arguments)
    recipe = Recipe(options.size, options.filter, options.fit, options.format)
    began = time.monotonic()
    try:
        outcome = prepare(
            options.source, options.target, recipe, options.workers, options.follow_links
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    good = outcome.made + outcome.present
    speed = outcome.made / max(time.monotonic() - began, 1e-9)
    line = (
        f"{options.target}: {good} images of {recipe.size}x{recipe.size}, {outcome.made} of them "
        f"made now ({speed:.0f} a second)"
    )
    if outcome.broken:
        files = "file" if len(outcome.broken) == 1 else "files"
        line += f"; {len(outcome.broken)} broken {files} left out: {options.target / BROKEN}"
        for name, reason in outcome.broken[:SHOWN]:
            print(f"broken: {escaped(options.source / name)}: {reason}", file=sys.stderr)
    if outcome.stopped:
        line += "; stopped: the same command goes on"
    print(line)
    if outcome.stopped:
        return 130
    return 0 if good and good >= len(outcome.broken) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mosaickd.data.prepare",
        description="Shrink a tree of photographs, once, so that runs read small images. "
        "Sub-folders (train/<class>/..., val/<class>/...) are kept; transparency is put on "
        "black, grey and 16-bit images become RGB, and photographs are turned upright. The same "
        "command again goes on where one was stopped. Broken files are skipped and listed in "
        f"TARGET/{BROKEN}.",
        epilog="Example: python -m mosaickd.data.prepare /data/imagenet data/ImageNet_32x32, then "
        "python run.py ood=imagenet32",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="where the photographs are")
    parser.add_argument("target", metavar="TARGET", type=Path, help="a new folder, or one to go "
                        "on with; neither in SOURCE nor around it")  # fmt: skip
    parser.add_argument("--size", type=_positive, default=32, metavar="S",
                        help="pixels of each side")  # fmt: skip
    parser.add_argument("--filter", choices=FILTERS, default="box", help="how pixels are "
                        "averaged; downsampled ImageNet was made with box")  # fmt: skip
    parser.add_argument("--fit", choices=FITS, default="stretch", help="stretch: the whole image "
                        "becomes square, as in downsampled ImageNet; crop: proportions are kept "
                        "and the edges of the longer side are lost")  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, default="png", help="both without loss; WebP "
                        "is often smaller, and slower to write")  # fmt: skip
    parser.add_argument("--follow-links", action="store_true", help="also links that lead out of "
                        "SOURCE")  # fmt: skip
    parser.add_argument("--workers", type=_positive, default=_processors(), metavar="N",
                        help="processes")  # fmt: skip
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "positive whole number"  # argparse: "invalid positive whole number value"


def _processors() -> int:
    """Those that this process may use, which on a shared machine are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
