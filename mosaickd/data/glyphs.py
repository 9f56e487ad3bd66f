"""The quickstart's world: coloured letters, and bare strokes as out-of-domain images.

Letters are made of strokes as objects are made of local patterns: the two sets share fonts,
colours, backgrounds, noise and stroke widths, and differ in what the strokes add up to. Drawn
from the fonts that matplotlib ships, so nothing is downloaded.
"""

from __future__ import annotations

import logging
import math
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError
from mosaickd.utils.files import remove_temporaries, write_atomically
from mosaickd.utils.locks import build_lock

log = logging.getLogger(__name__)

VERSION = 1  # of the drawing: raise it when the pixels change, so that old caches are not read

# Without I, which is the stroke | in half the fonts, and O, which at 16 pixels is a poor Q and
# a pair of brackets: neither would tell whether a student saw letters or strokes.
LETTERS = {letter: letter for letter in "ABCDEFGHJKLMNPQRSTUVWXYZ"}
STROKES = {
    "\\": "backslash", "/": "slash", "|": "bar", "-": "hyphen", "+": "plus", "=": "equals",
    "<": "less", ">": "greater", "~": "tilde", "(": "left bracket", ")": "right bracket",
    "_": "underscore", "^": "caret", ":": "colon", ".": "full stop",
}  # fmt: skip
ALPHABETS = {"letters": LETTERS, "strokes": STROKES}

# Fonts whose every glyph is what its code says.
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic",
    "STIXGeneralBolIta", "cmtt10",
)  # fmt: skip
# TeX's text fonts keep other glyphs at \ | < > _ (quotes, a dash, Spanish marks) and small
# accents at ^ and ~; only these strokes are what their code says.
TEX_FONTS = ("cmr10", "cmb10", "cmss10", "cmti10")
TEX_STROKES = "/-+=():."

SUPERSAMPLE = 4  # drawn this much larger, then averaged down: smooth edges after rotation
EM = 1.0  # font size as a share of the image: a capital is about 0.7 of it high
CHUNK = 1024  # images drawn at once
ROTATION = 12.0  # degrees, either way
SCALE = (0.85, 1.2)
SHIFT = 0.09  # share of the image, either way
CONTRAST = 0.35  # least difference of luminance (0..1) between glyph and background
GRADIENT = 0.2  # a background's two ends differ by up to twice this in each channel
NOISE = 0.04  # standard deviation of a pixel's noise


def read(
    *,
    root: Path,
    split: str,
    image_size: int,
    alphabet: Literal["letters", "strokes"],
    seed: int = 0,
    train_images: int = 8000,
    test_images: int = 2000,
) -> ImageSet:
    """Draw a split, or read it from its cache under root. images: uint8 [N, 3, size, size].

    The same settings give the same images; train and test come from different random streams.
    Classes are balanced to within one image. Raises UserError for settings that cannot be meant.
    """
    if alphabet not in ALPHABETS:
        raise UserError(f"reader.alphabet must be one of {', '.join(ALPHABETS)}, got {alphabet!r}")
    if seed < 0:
        raise UserError(f"reader.seed of {alphabet} must be at least 0, got {seed}")
    count = train_images if split == "train" else test_images
    if not 1 <= count <= 10**6:
        raise UserError(
            f"reader.{split}_images of {alphabet} must be at least 1 and at most 1000000, "
            f"got {count}"
        )
    if image_size > 256:
        raise UserError(f"image_size of {alphabet} must be at most 256, got {image_size}")
    names = list(ALPHABETS[alphabet].values())
    name = f"{alphabet}-{split}-{count}-{image_size}px-seed{seed}-v{VERSION}.npz"
    images, labels = _load_or_draw(root / name, alphabet, split, count, image_size, seed)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels), names)


def _load_or_draw(
    path: Path, alphabet: str, split: str, count: int, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels in the cache; draw them, and put them there, where it has none.

    A folder that can't be written stops nobody: drawing takes seconds.
    """
    shape = (count, 3, size, size)
    drawn = _load(path, shape)
    if drawn is not None:
        return drawn
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with build_lock(path.with_name(f".{path.stem}.making"), alphabet):
            drawn = _load(path, shape)  # another run may have drawn them meanwhile
            if drawn is None:
                if path.exists():
                    log.warning("%s is damaged: drawing it again", path)
                remove_temporaries(path.parent, of=path.stem)
                drawn = images, labels = draw(alphabet, split, count, size, seed)
                write_atomically(path, partial(np.savez, images=images, labels=labels))
        return drawn
    except OSError as error:
        log.warning("glyphs are not cached in %s: %s", path.parent, error)
        return drawn or draw(alphabet, split, count, size, seed)


def _load(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the images and labels in a file; None where there is none, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except Exception:  # numpy raises nearly anything for a damaged header
        return None
    if images.shape != shape or images.dtype != np.uint8 or labels.shape != shape[:1]:
        return None
    return images, labels.astype(np.int64, copy=False)


def draw(
    alphabet: str, split: str, count: int, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw glyphs. Return images, uint8 [N, 3, size, size], and labels, int64 [N]."""
    stream = [seed, list(ALPHABETS).index(alphabet), ("train", "test").index(split)]
    random = np.random.default_rng(stream)
    masks, of_class = _masks(alphabet, size)
    labels = random.permutation(np.arange(count) % len(of_class))
    chosen = np.array([random.choice(of_class[label]) for label in labels])
    images = np.empty((count, 3, size, size), dtype=np.uint8)
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        glyphs = _jitter(masks[torch.from_numpy(chosen[part])], size, random)
        pixels = _paint(glyphs, random)
        images[part] = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    return images, labels


@cache
def _masks(alphabet: str, size: int) -> tuple[Tensor, list[list[int]]]:
    """Return every glyph in every font, centred, 0..1 [M, 1, S, S], and each class's glyphs."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    large = size * SUPERSAMPLE
    masks: list[np.ndarray] = []
    of_class: list[list[int]] = [[] for _ in ALPHABETS[alphabet]]
    for name in FONTS + TEX_FONTS:
        try:
            font = ImageFont.truetype(str(folder / f"{name}.ttf"), round(EM * large))
        except OSError as error:
            raise UserError(
                f"the glyphs need the font {folder / name}.ttf, which matplotlib ships, and it "
                f"cannot be read ({error}); reinstall matplotlib"
            ) from error
        for label, glyph in enumerate(ALPHABETS[alphabet]):
            if name in TEX_FONTS and alphabet == "strokes" and glyph not in TEX_STROKES:
                continue
            left, top, right, bottom = font.getbbox(glyph)
            canvas = Image.new("L", (large, large))
            corner = ((large - left - right) / 2, (large - top - bottom) / 2)
            ImageDraw.Draw(canvas).text(corner, glyph, font=font, fill=255)
            of_class[label].append(len(masks))
            masks.append(np.asarray(canvas, dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(masks))[:, None], of_class


def _jitter(masks: Tensor, size: int, random: np.random.Generator) -> np.ndarray:
    """Rotate, scale and shift a little, then average down: [B, 1, S, S] -> [B, size, size]."""
    count = len(masks)
    angle = random.uniform(-1, 1, count) * math.radians(ROTATION)
    zoom = 1 / random.uniform(*SCALE, count)  # affine_grid maps output to input: the inverse
    shift = random.uniform(-1, 1, (2, count)) * 2 * SHIFT  # the grid's unit is half an image
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    theta = np.stack([cos, -sin, shift[0], sin, cos, shift[1]], axis=1).reshape(count, 2, 3)
    grid = affine_grid(torch.from_numpy(theta).float(), list(masks.shape), align_corners=False)
    moved = grid_sample(masks, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return avg_pool2d(moved, masks.shape[-1] // size)[:, 0].numpy()


def _paint(glyphs: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Paint glyphs [B, size, size] (0..1) in a colour on a gradient: [B, 3, size, size]."""
    count, size, _ = glyphs.shape
    middle, ink = _colours(count, random)
    ends = random.uniform(-GRADIENT, GRADIENT, (count, 3))
    direction = random.uniform(0, 2 * math.pi, count)
    axis = np.linspace(-1, 1, size)
    slope = (
        np.cos(direction)[:, None, None] * axis[None, None, :]
        + np.sin(direction)[:, None, None] * axis[None, :, None]
    ) / math.sqrt(2)  # -1 at one corner, 1 at the opposite
    background = middle[:, :, None, None] + ends[:, :, None, None] * slope[:, None]
    alpha = glyphs[:, None]
    pixels = background * (1 - alpha) + ink[:, :, None, None] * alpha
    noisy: Any = pixels + random.normal(0, NOISE, pixels.shape)
    return np.asarray(noisy)


def _colours(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a background and an ink colour, [B, 3] each, that differ enough in luminance."""
    luminance = np.array([0.299, 0.587, 0.114])
    colours = random.uniform(0, 1, (2, count, 3))
    while True:
        pale = np.abs((colours[0] - colours[1]) @ luminance) < CONTRAST
        if not pale.any():
            return colours[0], colours[1]
        colours[:, pale] = random.uniform(0, 1, (2, int(pale.sum()), 3))
