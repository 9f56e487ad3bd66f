"""A generator's images over the training, from the sample grids that its run has kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mosaickd.errors import UserError
from mosaickd.figures.drawing import write_bytes
from mosaickd.figures.runs import nothing
from mosaickd.report.labels import shown
from mosaickd.report.results import Run
from mosaickd.report.sample_grids import Images, Unreadable, of_kind, samples

Kind = Literal["gif", "mp4"]
LARGEST = 8192  # pixels that a frame may have on a side
WIDTH = 480  # pixels that a frame has at least, where its images are small
HOLD = 3  # times as long as the others is the last frame shown
FRAMES = 200  # at most


def frames(run: Run) -> tuple[list[tuple[int, Images]], list[str]]:
    """What can be shown of a run, in order; and what can't."""
    found, notes = [], []
    for step, name in samples(run.folder):
        try:
            found.append((step, of_kind(run.folder, name)))
        except Unreadable as error:
            notes.append(f"left out: {shown(run.folder)}: {error}")
    if not found:
        raise nothing([run.folder], notes or ["it has no samples"], "no synthetic images")
    if len({grid.pixels.shape for _, grid in found}) > 1:
        notes.append(f"{shown(run.folder)}: grids of several sizes; those like the last are shown")
        found = [one for one in found if one[1].pixels.shape == found[-1][1].pixels.shape]
    if len(found) > FRAMES:
        every = np.linspace(0, len(found) - 1, FRAMES).round().astype(int)
        notes.append(f"{shown(run.folder)}: {FRAMES} of its {len(found)} grids are shown")
        found = [found[i] for i in every]
    return found, notes


def write(
    run: Run, folder: Path, *, kind: Kind = "gif", seconds: float = 0.4, columns: int = 10
) -> tuple[Path, list[str]]:
    """`folder`/animation.gif or .mp4; seconds: that each evaluation is shown. -> path and notes."""
    if not 0.02 <= seconds <= 60:
        raise UserError(f"--seconds must be between 0.02 and 60, got {seconds:g}")
    found, notes = frames(run)
    pictures = [frame(step, grid.pixels, columns) for step, grid in found]
    path = folder / f"animation.{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "gif":
        content = io.BytesIO()
        durations = [round(1000 * seconds)] * (len(pictures) - 1) + [round(1000 * HOLD * seconds)]
        first, *rest = [picture.quantize(256, dither=0) for picture in pictures]
        first.save(content, format="GIF", save_all=True, append_images=rest, duration=durations,
                   loop=0, disposal=1)  # fmt: skip
        write_bytes(path, content.getvalue())
    else:
        _film(pictures, path, seconds)
    return path, notes


def frame(step: int, images: np.ndarray, columns: int) -> Any:
    """The images in rows, enlarged, with the step below them. -> a PIL image."""
    from PIL import Image, ImageDraw, ImageFont

    count, size = len(images), images.shape[1]
    columns = min(columns, count)
    rows = -(-count // columns)
    canvas = np.full((rows * (size + 1) + 1, columns * (size + 1) + 1, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = 1 + (i // columns) * (size + 1), 1 + (i % columns) * (size + 1)
        canvas[top : top + size, left : left + size] = image
    if max(canvas.shape) > LARGEST:
        raise UserError(f"{count} images of {size}x{size} pixels are too many for a frame")
    zoom = max(1, -(-WIDTH // canvas.shape[1]))
    picture = Image.fromarray(np.kron(canvas, np.ones((zoom, zoom, 1), np.uint8)))
    even = (picture.width + picture.width % 2, picture.height + 28 + picture.height % 2)
    framed = Image.new("RGB", even, "white")  # a film has even sides
    framed.paste(picture, (0, 0))
    text = f"step {step}"
    ImageDraw.Draw(framed).text(
        (8, picture.height + 5), text, fill="#1c2330", font=ImageFont.load_default(16)
    )
    return framed


def _film(pictures: list[Any], path: Path, seconds: float) -> None:
    """H.264, which every browser and slide shows."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError('MP4 needs ffmpeg: pip install "mosaickd[video]", or a GIF') from error
    making = path.with_name(f".{path.name}.tmp.mp4")
    try:
        writer = imageio_ffmpeg.write_frames(
            str(making), pictures[0].size, fps=1 / seconds, macro_block_size=2, quality=8
        )
        writer.send(None)
        for picture in [*pictures, *[pictures[-1]] * (HOLD - 1)]:
            writer.send(np.ascontiguousarray(picture))
        writer.close()
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)
