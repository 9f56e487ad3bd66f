"""Shrink a tree of photographs, once, so that runs read small images.

    python -m mosaickd.data.prepare /data/imagenet data/ImageNet_32x32
    python -m mosaickd.data.prepare /data/places365 data/Places365_32x32 --workers 16

The same command again goes on where one was stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageOps, features
from rich.console import Console
from rich.progress import track

from mosaickd.data.decode import (
    Unreadable,
    decode_image,
    escape_name,
    map_in_threads,
    read_bytes,
)
from mosaickd.data.image_files import SUFFIXES, ImageFiles
from mosaickd.errors import UserError, printable
from mosaickd.utils.files import read_json, write_atomically, write_json
from mosaickd.utils.locks import build_lock

FILTERS = {"box": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}
FORMATS = ("png", "webp")
FITS = ("stretch", "crop")
RECORD = "prepare.json"
BROKEN = "broken.txt"
SHOWN = 5  # broken files named on the terminal


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


def prepare(
    source: Path, target: Path, recipe: Recipe, workers: int, follow_links: bool = False
) -> Outcome:
    """Write small copies of all images below source to target, in the same sub-folders.

    Finished ones are left alone; broken files, and links out of source unless follow_links, are
    listed in target/broken.txt. Ctrl-C stops it. Raises UserError for folders that can't be meant
    and where target can't be written.
    """
    source, target = source.resolve(), target.resolve()
    if not source.is_dir():
        raise UserError(f"no folder {source}; SOURCE is the folder with the photographs")
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f"TARGET ({target}) and SOURCE ({source}) must not lie in one another; "
                        "choose another TARGET")  # fmt: skip
    if recipe.format == "webp" and not features.check("webp"):
        raise UserError("this Pillow can't write WebP; use --format png")
    found = ImageFiles()
    found.add(source, source, follow_links)
    if not found.files:
        raise UserError(f"no images below {source} (looked for {', '.join(sorted(SUFFIXES))})")
    outside = {os.path.relpath(path, source) for path in found.outside}
    names = [os.path.relpath(path, source) for path in found.files]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with build_lock(target / ".making", str(target)):
            _check_record(source, target, recipe)
            inside = [name for name in names if name not in outside]
            outcome = _shrink_all(source, inside, target, recipe, workers)
            reason = f"a link that leads out of {source}; --follow-links follows it"
            outcome.broken = sorted(outcome.broken + [(name, reason) for name in outside])
            _list_broken(target, outcome)
    except OSError as error:
        path = error.filename2 or error.filename or target
        raise UserError(
            f"cannot write {path}: {error.strerror}; the same command goes on when that is mended"
        ) from error
    return outcome


def _check_record(source: Path, target: Path, recipe: Recipe) -> None:
    """Raise UserError where a folder holds the images of another source or recipe."""
    path, now = target / RECORD, {"source": str(source), **asdict(recipe)}
    before = read_json(path)
    if before is None:
        if any(not entry.name.startswith(".") for entry in target.iterdir()):
            raise UserError(f"{target} holds something else already; choose an empty or a new "
                            "folder as TARGET")  # fmt: skip
        write_json(path, now)
    elif before != now:
        changed = [f"{key} {before.get(key)}, not {value}" for key, value in now.items()
                   if before.get(key) != value]  # fmt: skip
        raise UserError(
            f"{target} was made with {'; '.join(changed)}: choose another TARGET, or delete this "
            f"one. If SOURCE was only moved, correct it in {path}"
        )


def _list_broken(target: Path, outcome: Outcome) -> None:
    path = target / BROKEN
    if outcome.broken:
        text = "".join(f"{escape_name(name)}\t{reason}\n" for name, reason in outcome.broken)
        write_atomically(path, lambda file: file.write(text.encode()))
    elif not outcome.stopped:
        path.unlink(missing_ok=True)


def assign_targets(names: Sequence[str], suffix: str) -> Iterator[tuple[str, str]]:
    """Yield each file of a sorted tree with its target: a/b.jpg, a/b.png.

    Where several would get the same (b.jpg and b.gif; B.jpg on some disks), they keep their
    whole names: b.jpg.png and b.gif.png.
    """
    for _, group in groupby(names, key=os.path.dirname):
        stems = {name: os.path.splitext(name)[0] for name in group}
        taken = Counter(word.casefold() for item in stems.items() for word in item)
        for name, stem in stems.items():
            yield name, f"{stem if taken[stem.casefold()] == 1 else name}.{suffix}"


def _shrink_all(
    source: Path, names: list[str], target: Path, recipe: Recipe, workers: int
) -> Outcome:
    def shrink_file(job: tuple[str, str]) -> tuple[str, str, str]:
        """Return what became of a file (made, present, broken), its name, and why."""
        name, goal = job
        path = target / goal
        if path.exists():
            return "present", name, ""
        try:
            content = shrink(read_bytes(source / name), recipe)
        except (Unreadable, OSError) as error:  # also of a disk that can't be read everywhere
            return "broken", name, printable(str(error), 200)
        # Not write_atomically, which waits for the disk: too slow for a million files.
        unfinished = path.with_name(f".{path.name}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(path)
        return "made", name, ""

    outcome, console = Outcome(), Console(stderr=True)
    results = map_in_threads(shrink_file, assign_targets(names, recipe.format), workers)
    shown = track(results, "shrinking", total=len(names), console=console, transient=True,
                  disable=not console.is_terminal)  # fmt: skip
    try:
        for status, name, reason in shown:
            outcome.made += status == "made"
            outcome.present += status == "present"
            if status == "broken":
                outcome.broken.append((name, reason))
    except KeyboardInterrupt:
        outcome.stopped = True
    finally:
        results.close()  # wait for the images at work
    return outcome


def shrink(data: bytes, recipe: Recipe) -> bytes:
    """Return an encoded image of any kind as a small one, RGB, lossless and without metadata."""
    size, method = (recipe.size, recipe.size), FILTERS[recipe.filter]
    image = decode_image(data, Counter())
    if recipe.fit == "stretch":
        image = image.resize(size, method)
    else:
        image = ImageOps.fit(image, size, method)
    image.info.clear()  # colour profiles, larger than the image
    file = BytesIO()
    image.save(file, recipe.format, **({"lossless": True} if recipe.format == "webp" else {}))
    return file.getvalue()


# ------------------------------------------------------------------------------- the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Return an exit code: 0 when most images came out, 1 when not, 130 when stopped."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # who else is at it
    warnings.simplefilter("ignore")  # of the many odd files among a million
    recipe = Recipe(options.size, options.filter, options.fit, options.format)
    began = time.monotonic()
    try:
        outcome = prepare(
            options.source, options.target, recipe, options.workers, options.follow_links
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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
            print(f"broken: {printable(str(options.source / name))}: {reason}", file=sys.stderr)
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
    parser.add_argument("--workers", type=_positive, default=_usable_cores(), metavar="N",
                        help="images at once")  # fmt: skip
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "positive whole number"  # argparse: "invalid positive whole number value"


def _usable_cores() -> int:
    """Return how many this process may use, on a shared machine fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
