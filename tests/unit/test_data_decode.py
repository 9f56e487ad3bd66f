"""Encoded images of every kind become RGB pixels; what is no image says why."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from mosaickd.data.decode import Unreadable, decode_image, fit_image, format_broken

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
FOUR = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8).repeat(8, 0).repeat(8, 1)  # 16x16
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes) -> tuple[np.ndarray, dict[str, int]]:
    notes: Counter[str] = Counter()
    return np.asarray(decode_image(data, notes)), dict(notes)


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """Top left, top right, bottom left, bottom right, a little inside."""
    last = [size - 1 - size // 8 for size in pixels.shape[:2]]
    first = [size // 8 for size in pixels.shape[:2]]
    places = [(y, x) for y in (first[0], last[0]) for x in (first[1], last[1])]
    return [tuple(int(value) for value in pixels[place]) for place in places]


def torn(kind: str, **options: Any) -> bytes:
    whole = encoded(NOISE, kind, **options)
    return whole[: int(0.6 * len(whole))]


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an empty file"),
    "zeros": (bytes(4096), "not an image"),
    "a page that says it is gone": (b"<!DOCTYPE html><h1>404</h1>", "not an image"),
    "eps, for which Ghostscript would be started": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n",
        "not an image"),
    "pdf": (encoded(NOISE, "PDF"), "not an image"),
    "png header only": (encoded(NOISE, "PNG")[:33], "."),
    "jpeg without pixels": (b"\xff\xd8\xff\xd9", "."),
    "bmp header only": (encoded(NOISE, "BMP")[:54], "."),
    **{f"torn {kind}": (torn(kind), ".")
       for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")},
    "torn progressive jpeg": (torn("JPEG", progressive=True), "."),
    "ppm bomb": (b"P6 100000 100000 255\n" + bytes(99), "bomb"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_image_is_refused_with_a_reason_on_one_line(name: str) -> None:
    data, reason = BROKEN[name]
    with pytest.raises(Unreadable, match=reason) as caught:
        decoded(data)
    assert str(caught.value).isprintable()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def four(kind: str, **options: Any) -> bytes:
    return encoded(FOUR, kind, **options)


def palette(kind: str, transparent: bool = False) -> bytes:
    image = Image.fromarray(FOUR).quantize(4)
    options = {"transparency": image.getpixel((15, 15))} if transparent else {}
    return encoded(image, kind, **options)


def frames(kind: str, **options: Any) -> bytes:
    others = [Image.new("RGB", (16, 16), (9, 9, 9))] * 2
    return four(kind, save_all=True, append_images=others, **options)


def grey16(values: list[int], mode: str = "I;16") -> bytes:
    pixels = np.array(values, {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode])
    pixels = pixels.reshape(2, 2).repeat(8, 0).repeat(8, 1)
    return encoded(Image.frombytes(mode, (16, 16), pixels.tobytes()), "TIFF")


def floats(values: list[float]) -> bytes:
    pixels = np.array(values, np.float32).reshape(2, 2).repeat(8, 0).repeat(8, 1)
    return encoded(Image.fromarray(pixels), "TIFF")


def cmyk() -> bytes:
    inks = [[(0, 255, 255, 0), (255, 0, 255, 0)], [(255, 255, 0, 0), (0, 0, 0, 128)]]
    pixels = np.array(inks, np.uint8).repeat(8, 0).repeat(8, 1)
    image = Image.frombytes("CMYK", (16, 16), pixels.tobytes())
    return encoded(image, "JPEG", quality=100, subsampling=0)


def malformed_exif() -> bytes:
    """An orientation, and a tag whose value lies beyond the end."""
    entries = struct.pack("<HHII", 0x010F, 2, 2**31, 2**31)
    entries += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    return b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(value, value, value) for value in values]


UPRIGHT = [RED, GREEN, BLUE, WHITE]
TURNED = [BLUE, RED, WHITE, GREEN]  # by 90 degrees, clockwise
ON_BLACK = {"with transparency (put on black)": 1}
DEEP = {"16-bit grey": 1}
FLOAT = {"floating point": 1}
SHARP = {"quality": 95, "subsampling": 0}

GOOD: dict[str, tuple[Callable[[], bytes], list[tuple[int, int, int]], dict[str, int]]] = {
    "png": (lambda: four("PNG"), UPRIGHT, {}),
    "webp": (lambda: four("WEBP", lossless=True), UPRIGHT, {}),
    "bmp": (lambda: four("BMP"), UPRIGHT, {}),
    "ppm": (lambda: four("PPM"), UPRIGHT, {}),
    "tiff": (lambda: four("TIFF", compression="tiff_deflate"), UPRIGHT, {}),
    "jpeg": (lambda: four("JPEG", **SHARP), UPRIGHT, {}),
    "palette": (lambda: palette("PNG"), UPRIGHT, {"palette": 1}),
    "gif, one colour transparent": (
        lambda: palette("GIF", True), [RED, GREEN, BLUE, BLACK], ON_BLACK),
    "key colour": (lambda: four("PNG", transparency=WHITE), [RED, GREEN, BLUE, BLACK], ON_BLACK),
    "half transparent": (
        lambda: encoded(Image.new("RGBA", (16, 16), (200, 100, 50, 128)), "PNG"),
        [(100, 50, 25)] * 4, ON_BLACK),
    "grey and alpha": (
        lambda: encoded(Image.new("LA", (16, 16), (200, 0)), "PNG"), grey(0, 0, 0, 0), ON_BLACK),
    "grey": (lambda: encoded(Image.new("L", (16, 16), 77), "PNG"), grey(77, 77, 77, 77),
             {"grey": 1}),
    "one bit": (lambda: encoded(Image.fromarray(FOUR[:, :, 0] > 99), "PNG"),
                [WHITE, BLACK, BLACK, WHITE], {"grey": 1}),
    **{f"grey, {mode}": (lambda mode=mode: grey16([0, 300, 40_000, 65_535], mode),
                         grey(0, 1, 156, 255), DEEP) for mode in ("I;16", "I;16B", "I")},
    "floats 0..1": (lambda: floats([0, 0.25, 0.5, 1]), grey(0, 64, 128, 255), FLOAT),
    "floats 0..255": (lambda: floats([-3, 1, 99.6, 255]), grey(0, 1, 100, 255), FLOAT),
    "floats 0..65535": (lambda: floats([0, 256, 32_768, 65_280]), grey(0, 1, 128, 255), FLOAT),
    "cmyk jpeg": (cmyk, [RED, GREEN, BLUE, (127, 127, 127)], {"in CMYK": 1}),
    "animated gif": (lambda: frames("GIF"), UPRIGHT, {"palette": 1}),
    "animated webp": (lambda: frames("WEBP", lossless=True), UPRIGHT, {}),
    "jpeg turned": (lambda: four("JPEG", exif=exif(6), **SHARP), TURNED, {}),
    "turned by an absurd number": (lambda: four("PNG", exif=exif(999)), UPRIGHT, {}),
    "turned, and malformed EXIF": (lambda: four("PNG", exif=malformed_exif()), TURNED, {}),
    "EXIF of noise": (lambda: four("PNG", exif=b"Exif\0\0" + bytes(range(200))), UPRIGHT, {}),
    "a colour profile of noise": (
        lambda: four("PNG", icc_profile=bytes(range(250))), UPRIGHT, {}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # Pillow's, of EXIF
@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_image_becomes_rgb(name: str) -> None:
    make, expected, notes = GOOD[name]
    pixels, noted = decoded(make())
    assert pixels.dtype == np.uint8
    tolerance = 5 if "jpeg" in name else 0
    assert np.abs(np.array(corners(pixels)) - expected).max() <= tolerance, corners(pixels)
    assert noted == notes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_rotations_of_cameras(orientation: int) -> None:
    data = four("PNG", exif=exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert np.array_equal(decoded(data)[0], np.asarray(upright))


@pytest.mark.parametrize("size", [(1, 1), (1, 60_000), (60_000, 1), (3, 7), (900, 900)])
def test_extreme_shapes_are_fitted(size: tuple[int, int]) -> None:
    image = decode_image(encoded(Image.new("L", size, 200), "PNG"), Counter())
    assert (np.asarray(fit_image(image, 8, Counter())) == 200).all()


def test_a_list_of_broken_images_has_a_line_each_whatever_their_names() -> None:
    broken = (("/a/Grüße  2.png", "torn"), ("/a/\x1b[31mred\n\u202egnp.png", "torn"))
    assert format_broken({"ood/train": broken}).splitlines() == [
        "ood/train\t/a/Grüße  2.png\ttorn",
        r"ood/train	/a/\x1b[31mred\n\u202egnp.png	torn",
    ]
