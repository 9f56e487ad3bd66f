"""A generator's images over the training, from the sample pictures of its run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mosaickd.analysis.figures.drawing import INK, write_bytes
from mosaickd.analysis.figures.grids import SampleGrid, read_grid
from mosaickd.analysis.figures.runs import Run, warn_left_out
from mosaickd.errors import UserError

COLUMNS = 10  # images in a row
WIDTH = 480  # pixels that a frame has at least
HOLD = 3  # times as long as the others is the last frame shown


def write_animation(
    run: Run, folder: Path, *, kind: Literal["gif", "mp4"] = "gif", seconds: float = 0.4
) -> Path:
    """Write `folder`/animation.gif or .mp4 and return its path; seconds: a frame is shown.

    Raises UserError where there are no images.
    """
    grids = read_grids(run)
    most = max(len(grid.images) for grid in grids)
    columns = min(COLUMNS, most)
    frames = [draw_frame(grid, -(-most // columns), columns) for grid in grids]
    path = folder / f"animation.{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "mp4":
        write_film(frames, path, seconds)
        return path
    buffer = io.BytesIO()
    durations = [round(1000 * seconds)] * (len(frames) - 1) + [round(1000 * HOLD * seconds)]
    first, *rest = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=durations,
               loop=0, disposal=1)  # fmt: skip
    write_bytes(path, buffer.getvalue())
    return path


def read_grids(run: Run) -> list[SampleGrid]:
    """Return the run's synthetic images by step. Raises UserError where there are none."""
    paths, grids = run.run_dir.sample_paths(), []
    for path in paths:
        try:
            grids.append(read_grid(path))
        except UserError as error:
            warn_left_out(run.run_dir, str(error))
    if not grids:
        raise UserError("it has no samples of synthetic images")
    return grids


def draw_frame(grid: SampleGrid, rows: int, columns: int) -> Image.Image:
    """Return the images in rows, enlarged, with the step below them."""
    size = grid.images.shape[1]
    canvas = np.full((rows * (size + 1) + 1, columns * (size + 1) + 1, 3), 255, np.uint8)
    for i, image in enumerate(grid.images):
        top, left = 1 + (i // columns) * (size + 1), 1 + (i % columns) * (size + 1)
        canvas[top : top + size, left : left + size] = image
    zoom = max(1, -(-WIDTH // canvas.shape[1]))
    picture = Image.fromarray(canvas.repeat(zoom, 0).repeat(zoom, 1))
    even = (picture.width + picture.width % 2, picture.height + 28 + picture.height % 2)
    frame = Image.new("RGB", even, "white")  # a film has even sides
    frame.paste(picture, (0, 0))
    place, font = (8, picture.height + 5), ImageFont.load_default(16)
    ImageDraw.Draw(frame).text(place, f"step {grid.step}", fill=INK, font=font)
    return frame


def write_film(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """Write frames as H.264, which every browser and slide shows."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError('MP4 needs ffmpeg: pip install "mosaickd[video]", or a GIF') from error
    writer = imageio_ffmpeg.write_frames(
        str(path), frames[0].size, fps=1 / seconds, macro_block_size=2, quality=8
    )
    writer.send(None)
    for frame in [*frames, *[frames[-1]] * (HOLD - 1)]:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
