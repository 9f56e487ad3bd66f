"""Folders of image files, one sub-folder a class; and the decoding that other readers share."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError

log = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
# "val" first: where a set has both, its test folder is often without labels (ImageNet).
FOLDERS = {"train": ("train",), "test": ("val", "test")}
CHUNK = 256  # images a thread decodes at a stretch
PROGRESS_AFTER = 2.0  # seconds before a progress bar appears
ADVICE = "set dataset.root= (or ood.root=) to a folder that holds train/<class>/*.png"


def read(*, root: Path, split: str, image_size: int) -> ImageSet:
    """Read `root/train/<class>/...` or, for the test split, `root/val/...` or `root/test/...`.

    Without a train folder, the class folders (or bare images) in root itself are the training
    set. Images become RGB, the shorter side is resized to image_size, the centre is cropped.
    Raises UserError for a missing or empty folder and for a file that is not a readable image.
    """
    root = root.absolute()
    if not root.is_dir():
        raise UserError(f"no folder {root}; {ADVICE}")
    train_folder = root / "train" if (root / "train").is_dir() else root
    folder = train_folder if split == "train" else _test_folder(root)
    classes = _class_names(train_folder, skip=() if train_folder != root else FOLDERS["test"])
    strangers = set(_class_names(folder)) - set(classes) if split != "train" else set()
    if strangers and classes:
        raise UserError(
            f"{folder} has class folders that {train_folder} lacks: "
            f"{', '.join(sorted(strangers)[:5])}; both must have the same classes"
        )

    files: list[str] = []
    labels: list[int] = []
    if classes:
        for label, name in enumerate(classes):
            found = _image_files(folder / name)
            if not found:
                log.warning("%s has no images in its class folder %s", folder, name)
            files += found
            labels += [label] * len(found)
    else:
        classes = ["all"]  # bare images: enough for an out-of-domain set
        files = _image_files(folder)
        labels = [0] * len(files)
    if not files:
        raise UserError(
            f"no images in {folder} (looked for {', '.join(sorted(SUFFIXES))}); {ADVICE}"
        )

    def content(index: int) -> bytes:
        with open(files[index], "rb") as file:
            return file.read()

    images = decode(len(files), content, files.__getitem__, image_size, what=str(folder))
    return ImageSet(images, torch.tensor(labels, dtype=torch.int64), classes)


def decode(
    count: int,
    content: Callable[[int], bytes],
    place: Callable[[int], str],
    image_size: int | None,
    what: str,
) -> Tensor:
    """Decode encoded images (any format Pillow reads) in a thread pool -> uint8 [N, 3, S, S].

    content(i): the i-th image's bytes; place(i): where it is, for error messages. image_size
    None keeps the images' own size [N, 3, H, W], which must then be the same for all. What had to
    be converted is logged once, with counts. Raises UserError naming the place of a bad image.
    """

    def one(index: int, notes: Counter[str]) -> np.ndarray:
        try:
            return _to_rgb(content(index), image_size, notes)
        except Exception as error:  # decoders raise nearly anything for damaged bytes
            raise UserError(
                f"cannot read the image {place(index)}: {error}; the file is damaged or not an "
                "image: remove it, or get it again"
            ) from error

    first = one(0, Counter())
    images = np.empty((count, 3, *first.shape[:2]), dtype=np.uint8)

    def stretch(indices: range) -> Counter[str]:
        notes: Counter[str] = Counter()
        for index in indices:
            picture = one(index, notes)
            if picture.shape != first.shape:
                raise UserError(
                    f"the image {place(index)} is {picture.shape[1]}x{picture.shape[0]}, others "
                    f"are {first.shape[1]}x{first.shape[0]}; all must have one size"
                )
            images[index] = picture.transpose(2, 0, 1)
        return notes

    stretches = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    notes = _in_threads(stretch, stretches, f"reading {what}")
    if notes:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(notes.items()))
        log.info("%s: of %d images, converted %s", what, count, kinds)
    return torch.from_numpy(images)


def _to_rgb(data: bytes, size: int | None, notes: Counter[str]) -> np.ndarray:
    """Decode to RGB uint8 [H, W, 3] (or [size, size, 3]); conversions are counted in notes."""
    picture: Image.Image = Image.open(BytesIO(data))
    if picture.format in ("JPEG", "TIFF"):
        picture = ImageOps.exif_transpose(picture)  # cameras store rotation as a tag
    if picture.mode != "RGB":
        picture = _mode_to_rgb(picture, notes)
    if size is not None and picture.size != (size, size):
        notes["of another size"] += 1
        # ImageOps.fit scales the shorter side and crops the centre in one step; its box filter
        # averages what a pixel covers, so shrinking does not alias.
        enlarge = min(picture.size) < size
        method = Image.Resampling.BILINEAR if enlarge else Image.Resampling.BOX
        picture = ImageOps.fit(picture, (size, size), method=method)
    return np.asarray(picture)


def _mode_to_rgb(picture: Image.Image, notes: Counter[str]) -> Image.Image:
    mode = picture.mode
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        notes["with transparency (put on black)"] += 1
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, picture).convert("RGB")
    if mode.startswith("I"):
        # Pillow's own conversion clips 16-bit values at 255, which turns most pictures white.
        notes["16-bit grey"] += 1
        values = np.asarray(picture).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if mode in ("1", "L"):
        notes["grey"] += 1
    elif mode == "P":
        notes["palette"] += 1
    else:
        notes[f"in {mode}"] += 1
    return picture.convert("RGB")


def _in_threads(
    work: Callable[[range], Counter[str]], stretches: Sequence[range], title: str
) -> Counter[str]:
    """Run work over all stretches and add up its notes; a bar if slow and someone is watching."""
    total: Counter[str] = Counter()
    began = time.monotonic()
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 1))
        # On an error, or Ctrl-C, what has not begun is dropped instead of waited for.
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        futures = [pool.submit(work, stretch) for stretch in stretches]
        advance: Callable[[int], None] | None = None
        for done, future in enumerate(futures, start=1):
            total += future.result()
            if advance is not None:
                advance(done)
            elif time.monotonic() - began > PROGRESS_AFTER and sys.stderr.isatty():
                advance = _progress_bar(stack, title, len(stretches))
    return total


def _progress_bar(stack: ExitStack, title: str, total: int) -> Callable[[int], None]:
    from rich.console import Console
    from rich.progress import Progress

    bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
    task = bar.add_task(title, total=total)
    return lambda done: bar.update(task, completed=done)


def _test_folder(root: Path) -> Path:
    for name in FOLDERS["test"]:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"no test images: neither {root / 'val'} nor {root / 'test'} exists; {ADVICE}"
                    " and val/<class>/*.png")  # fmt: skip


def _class_names(folder: Path, skip: Sequence[str] = ()) -> list[str]:
    """Sub-folders' names, sorted: the classes. Empty where the folder holds bare images."""
    with os.scandir(folder) as entries:
        return sorted(
            e.name
            for e in entries
            if e.is_dir() and not e.name.startswith((".", "__")) and e.name not in skip
        )


def _image_files(folder: Path) -> list[str]:
    """All image files under a folder, at any depth, in sorted order."""
    files: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            os.path.join(place, name)
            for name in sorted(names)
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
        ]
    return files
