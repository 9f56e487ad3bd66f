"""Image files of every kind, and what only pretends to be one: its pixels, or why not."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from mosaickd.data import pictures
from mosaickd.data.broken import Unreadable, escaped

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
FOUR = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8).repeat(8, 0).repeat(8, 1)  # 16x16
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def encoded(picture: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes, size: int | None = None) -> tuple[np.ndarray, dict[str, int]]:
    notes: Counter[str] = Counter()
    return pictures.pixels(data, size, notes), dict(notes)


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """Top left, top right, bottom left, bottom right, a little inside."""
    last = [size - 1 - size // 8 for size in pixels.shape[:2]]
    first = [size // 8 for size in pixels.shape[:2]]
    places = [(y, x) for y in (first[0], last[0]) for x in (first[1], last[1])]
    return [tuple(int(value) for value in pixels[place]) for place in places]


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(
    width: int, height: int, bits: int, colour: int, *chunks: bytes, rows: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*body, chunk(b"IEND", b"")])


# --------------------------------------------------------------------------- no image to be had


def eps() -> bytes:
    """Ghostscript would be started for it, by its content and whatever its name."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n"
        b"(%pipe%touch /tmp/escaped) (w) file closefile\nshowpage\n%%EOF\n"
    )


def webp_bomb() -> bytes:
    """A canvas of 16383x16383, and a frame that isn't there."""
    whole = encoded(NOISE, "WEBP")
    side = (16383 - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + side + side + whole[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_bomb() -> bytes:
    small = bytearray(encoded(NOISE, "TIFF"))
    place = struct.unpack_from("<I", small, 4)[0]
    for entry in range(struct.unpack_from("<H", small, place)[0]):
        offset = place + 2 + 12 * entry
        if struct.unpack_from("<H", small, offset)[0] in (256, 257):  # width, height: as LONG
            struct.pack_into("<HII", small, offset + 2, 4, 1, 2**30)
    return bytes(small)


def jpeg_bomb() -> bytes:
    data = bytearray(encoded(NOISE, "JPEG"))
    frame = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, frame + 5, 65535, 65535)
    return bytes(data)


def torn(kind: str, keep: float, **options: Any) -> bytes:
    whole = encoded(NOISE, kind, **options)
    return whole[: int(keep * len(whole))]


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "an empty file"),
    "one byte": (lambda: b"\x89", "not an image"),
    "zeros": (lambda: bytes(4096), "not an image"),
    "text": (lambda: "Grüße\n".encode() * 99, "not an image"),
    "a page that says it is gone": (lambda: b"<!DOCTYPE html><h1>404</h1>", "not an image"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "eps": (eps, "not an image"),
    "eps with a preview": (lambda: b"\xc5\xd0\xd3\xc6" + bytes(26) + eps(), "not an image"),
    "pdf": (lambda: encoded(NOISE, "PDF"), "not an image"),
    "ico": (lambda: encoded(NOISE, "ICO"), "not an image"),
    "tga": (lambda: encoded(NOISE, "TGA"), "not an image"),
    "pcx": (lambda: encoded(NOISE, "PCX"), "not an image"),
    "icns": (lambda: b"icns" + bytes(60), "not an image"),
    "fits": (lambda: b"SIMPLE  =                    T" + bytes(2900), "not an image"),
    "pickle": (lambda: b"\x80\x04cos\nsystem\n(S'touch /tmp/escaped'\ntR.", "not an image"),
    "zip": (lambda: b"PK\x03\x04" + bytes(200), "not an image"),
    "elf": (lambda: b"\x7fELF\x02\x01\x01" + bytes(200), "not an image"),
    "png signature only": (lambda: encoded(NOISE, "PNG")[:8], "."),
    "png header only": (lambda: encoded(NOISE, "PNG")[:33], "."),
    "png, wrong checksum": (lambda: encoded(NOISE, "PNG").replace(b"IHDR\0\0", b"IHDR\1\0"), "."),
    "png without pixels": (lambda: png(16, 16, 8, 2), "."),
    "png of no width": (lambda: png(0, 16, 8, 2), "."),
    "png, pixels of another file": (lambda: png(640, 640, 8, 2, rows=bytes(99)), "."),
    "palette without a palette": (lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)), "."),
    "jpeg header only": (lambda: encoded(NOISE, "JPEG")[:20], "."),
    "jpeg without pixels": (lambda: b"\xff\xd8\xff\xd9", "."),
    "gif header only": (lambda: b"GIF89a\x10\0\x10\0\0\0\0", "."),
    "bmp header only": (lambda: encoded(NOISE, "BMP")[:54], "."),
    "bmp of an absurd header": (lambda: b"BM" + b"\xff" * 60, "."),
    "tiff in a circle": (lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "."),
    "ppm of words": (lambda: b"P3 2 2 255\n" + b"words " * 12, "."),
    "ppm without pixels": (lambda: b"P6 16 16 255\n", "."),
    **{
        f"torn {kind} {keep:.0%}": (lambda kind=kind, keep=keep: torn(kind, keep), ".")
        for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
        for keep in (0.3, 0.9)
    },
    "torn progressive jpeg": (lambda: torn("JPEG", 0.8, progressive=True), "."),
    "torn compressed tiff": (lambda: torn("TIFF", 0.8, compression="tiff_lzw"), "."),
    "png bomb": (lambda: png(200_000, 200_000, 8, 2), "bomb"),
    "png at Pillow's warning": (lambda: png(10_000, 10_000, 1, 0), "100.*bomb|bomb.*100"),
    "png of one long line": (lambda: png(2**31 - 1, 1, 1, 0), "bomb"),
    "jpeg bomb": (jpeg_bomb, "bomb"),
    "webp bomb": (webp_bomb, "bomb"),
    "tiff bomb": (tiff_bomb, "bomb"),
    "bmp bomb": (
        lambda: b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 2**30, 2**30, 1, 24,
                                    0, 0, 0, 0, 0, 0),
        "bomb",
    ),
    "ppm bomb": (lambda: b"P6 100000 100000 255\n" + bytes(99), "bomb"),
    "gif bomb": (
        lambda: b"GIF89a" + b"\xff" * 4 + bytes(3) + b"," + bytes(4) + b"\xff" * 4 + b"\0\2\0;",
        "bomb",
    ),
    "text bomb in a png": (
        lambda: png(16, 16, 8, 2, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))), "."
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_image_is_refused_with_a_reason(name: str) -> None:
    make, said = BROKEN[name]
    reasons = set()
    for _ in range(2):  # nothing in it differs from run to run: no addresses
        with pytest.raises(Unreadable, match=said) as caught:
            decoded(make(), 8)
        reasons.add(str(caught.value))
    (reason,) = reasons
    assert reason == escaped(reason)
    assert reason
    assert " at 0x" not in reason


def test_torn_files_are_broken_even_where_someone_wanted_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for kind in ("PNG", "JPEG", "TIFF"):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with pytest.raises(Unreadable):
            decoded(torn(kind, 0.5))


def test_bombs_are_refused_where_pillow_is_told_not_to_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(Unreadable, match=r"bomb.*200000x200000.*89,478,485 pixels"):
        decoded(png(200_000, 200_000, 8, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_bombs_take_no_memory(tmp_path: Path) -> None:
    """In a process of its own: each of them claims between 300 MB and 120 GB."""
    bombs = [make() for name, (make, _) in BROKEN.items() if "bomb" in name]
    for number, bomb in enumerate(bombs):
        (tmp_path / f"{number}.png").write_bytes(bomb)
    script = (
        "import resource, sys\nfrom collections import Counter\n"
        "from mosaickd.data.pictures import Unreadable, pixels, read_file\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    try: pixels(read_file(path), 8, Counter()); raise SystemExit(path)\n"
        "    except Unreadable: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", script, *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) < 200_000, "kilobytes"


def test_large_pictures_wait_for_room() -> None:
    """Whatever comes, no more is in work than fits, and all are done in the end."""
    import threading

    room = pictures.Room(3 * pictures.SMALL)
    lowest = []

    def work() -> None:
        for _ in range(50):
            with room.taken(2 * pictures.SMALL):
                lowest.append(room.left)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(lowest) == {pictures.SMALL}, "one at a time"
    assert room.left == 3 * pictures.SMALL
    with pytest.raises(ZeroDivisionError), room.taken(2 * pictures.SMALL):
        raise ZeroDivisionError
    assert room.left == 3 * pictures.SMALL


# ------------------------------------------------------------------------------ good, and unusual


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[pictures.ORIENTATION] = orientation
    return tags


def palette(transparent: int | None = None, kind: str = "PNG") -> bytes:
    picture = Image.fromarray(FOUR).quantize(4)
    options = {} if transparent is None else {"transparency": picture.getpixel((15, transparent))}
    return encoded(picture, kind, **options)


def frames(kind: str) -> bytes:
    others = [Image.new("RGB", (16, 16), (9, 9, 9))] * 2
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    return encoded(Image.fromarray(FOUR), kind, save_all=True, append_images=others, **options)


def grey16(values: list[int], mode: str = "I;16") -> Image.Image:
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    pixels = np.array(values, kind).reshape(2, 2).repeat(8, 0).repeat(8, 1)
    return Image.frombytes(mode, (16, 16), pixels.tobytes())


def floats(values: list[float]) -> bytes:
    pixels = np.array(values, np.float32).reshape(2, 2).repeat(8, 0).repeat(8, 1)
    return encoded(Image.fromarray(pixels), "TIFF")


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(value, value, value) for value in values]


def key_colour() -> bytes:
    return encoded(Image.fromarray(FOUR), "PNG", transparency=WHITE)


def cmyk(kind: str) -> bytes:
    """Full yellow and magenta are red, and so on; half black makes it darker."""
    inks = [[(0, 255, 255, 0), (255, 0, 255, 0)], [(255, 255, 0, 0), (0, 0, 0, 128)]]
    pixels = np.array(inks, np.uint8).repeat(8, 0).repeat(8, 1)
    picture = Image.frombytes("CMYK", (16, 16), pixels.tobytes())
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    return encoded(picture, kind, **options)


def lab() -> bytes:
    """Lightness 0, 50, 100 without colour, and a red."""
    values = [[(0, 0, 0), (128, 0, 0)], [(255, 0, 0), (136, 80, 67)]]
    pixels = np.array(values, np.uint8).repeat(8, 0).repeat(8, 1)
    return encoded(Image.frombytes("LAB", (16, 16), pixels.tobytes()), "TIFF")


def mpo() -> bytes:
    other = Image.new("RGB", (16, 16), (9, 9, 9))
    return encoded(Image.fromarray(FOUR), "MPO", save_all=True, append_images=[other], quality=95)


def with_exif(kind: str, tags: bytes | Image.Exif, **options: Any) -> bytes:
    return encoded(FOUR, kind, exif=tags, **options)


def malformed_exif() -> bytes:
    """An orientation, and a tag whose value lies beyond the end."""
    entries = struct.pack("<HHII", 0x010F, 2, 2**31, 2**31) + struct.pack("<HHII", 0x0112, 2, 9, 9)
    return b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries


def partly_malformed_exif() -> bytes:
    entries = struct.pack("<HHII", 0x010F, 2, 2**31, 2**31) + struct.pack(
        "<HHIHH", 0x0112, 3, 1, 6, 0
    )
    return b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries


UPRIGHT = [RED, GREEN, BLUE, WHITE]
TURNED = [BLUE, RED, WHITE, GREEN]  # by 90 degrees, clockwise
PLAIN: dict[str, int] = {}
BLACK_BELOW = "with transparency (put on black)"
FIRST = {"animated (first frame)": 1}

GOOD: dict[str, tuple[Callable[[], bytes], list[tuple[int, int, int]], dict[str, int]]] = {
    "png": (lambda: encoded(FOUR, "PNG"), UPRIGHT, PLAIN),
    "interlaced pixels of 16 bits": (
        lambda: png(2, 2, 16, 2, rows=b"".join(
            b"\0" + b"".join(struct.pack(">HHH", *(c * 257 for c in colour)) for colour in row)
            for row in ((RED, GREEN), (BLUE, WHITE)))),
        UPRIGHT, PLAIN,
    ),
    "webp": (lambda: encoded(FOUR, "WEBP", lossless=True), UPRIGHT, PLAIN),
    "bmp": (lambda: encoded(FOUR, "BMP"), UPRIGHT, PLAIN),
    "ppm": (lambda: encoded(FOUR, "PPM"), UPRIGHT, PLAIN),
    "tiff": (lambda: encoded(FOUR, "TIFF"), UPRIGHT, PLAIN),
    "tiff, deflate": (lambda: encoded(FOUR, "TIFF", compression="tiff_deflate"), UPRIGHT, PLAIN),
    "jpeg": (lambda: encoded(FOUR, "JPEG", quality=95, subsampling=0), UPRIGHT, PLAIN),
    "palette": (palette, UPRIGHT, {"palette": 1}),
    "palette, one colour transparent": (
        lambda: palette(15), [RED, GREEN, BLUE, BLACK], {BLACK_BELOW: 1}),
    "gif": (lambda: palette(kind="GIF"), UPRIGHT, {"palette": 1}),
    "gif, one colour transparent": (
        lambda: palette(15, "GIF"), [RED, GREEN, BLUE, BLACK], {BLACK_BELOW: 1}),
    "key colour": (key_colour, [RED, GREEN, BLUE, BLACK], {BLACK_BELOW: 1}),
    "half transparent": (
        lambda: encoded(Image.new("RGBA", (16, 16), (200, 100, 50, 128)), "PNG"),
        [(100, 50, 25)] * 4, {BLACK_BELOW: 1}),
    "grey and alpha": (
        lambda: encoded(Image.new("LA", (16, 16), (200, 0)), "PNG"), grey(0, 0, 0, 0),
        {BLACK_BELOW: 1}),
    "grey with a key": (
        lambda: encoded(Image.new("L", (16, 16), 200), "PNG", transparency=200), grey(0, 0, 0, 0),
        {BLACK_BELOW: 1}),
    "grey": (lambda: encoded(Image.new("L", (16, 16), 77), "PNG"), grey(77, 77, 77, 77),
             {"grey": 1}),
    "one bit": (lambda: encoded(Image.fromarray(FOUR[:, :, 0] > 99), "PNG"),
                [WHITE, BLACK, BLACK, WHITE], {"grey": 1}),
    "one bit, tiff": (
        lambda: encoded(Image.fromarray(FOUR[:, :, 0] > 99), "TIFF", compression="group4"),
        [WHITE, BLACK, BLACK, WHITE], {"grey": 1}),
    "grey, 16 bits": (lambda: encoded(grey16([0, 300, 40_000, 65_535]), "PNG"),
                      grey(0, 1, 156, 255), {"16-bit grey": 1}),
    "grey, 16 bits with a key": (
        lambda: png(2, 1, 16, 0, chunk(b"tRNS", b"\x80\0"), rows=b"\0\x80\0\xff\0"),
        grey(128, 255, 128, 255), {"16-bit grey": 1}),
    "grey, 16 bits, tiff": (lambda: encoded(grey16([0, 300, 40_000, 65_535]), "TIFF"),
                            grey(0, 1, 156, 255), {"16-bit grey": 1}),
    "grey, 16 bits, big end first": (
        lambda: encoded(grey16([0, 300, 40_000, 65_535], "I;16B"), "TIFF"),
        grey(0, 1, 156, 255), {"16-bit grey": 1}),
    "grey, 32 bits": (lambda: encoded(grey16([-5, 300, 40_000, 2**31 - 1], "I"), "TIFF"),
                      grey(0, 1, 156, 255), {"16-bit grey": 1}),
    "grey, 16 bits, pgm": (
        lambda: b"P5 2 2 65535\n" + struct.pack(">4H", 0, 300, 40_000, 65_535),
        grey(0, 1, 156, 255), {"16-bit grey": 1}),
    "floats 0..1": (lambda: floats([0, 0.25, 0.5, 1]), grey(0, 64, 128, 255),
                    {"floating point": 1}),
    "floats 0..255": (lambda: floats([-3, 1, 99.6, 255]), grey(0, 1, 100, 255),
                      {"floating point": 1}),
    "floats 0..65535": (lambda: floats([0, 256, 32_768, 65_280]), grey(0, 1, 128, 255),
                        {"floating point": 1}),
    "floats that are none": (lambda: floats([float("nan"), float("inf"), 0.5, 1]),
                             grey(0, 0, 128, 255), {"floating point": 1}),
    "pfm": (lambda: b"Pf\n2 2\n-1.0\n" + struct.pack("<4f", 0, 0.25, 0.5, 1),
            grey(128, 255, 0, 64), {"floating point": 1}),
    "cmyk tiff": (lambda: cmyk("TIFF"), [RED, GREEN, BLUE, (127, 127, 127)], {"in CMYK": 1}),
    "cmyk jpeg, inverted as Adobe's": (
        lambda: cmyk("JPEG"), [RED, GREEN, BLUE, (127, 127, 127)], {"in CMYK": 1}),
    "lab": (lab, [BLACK, (119, 119, 119), WHITE, (250, 3, 11)], {"in LAB": 1}),
    "ycbcr tiff": (
        lambda: encoded(Image.fromarray(FOUR).convert("YCbCr"), "TIFF"), UPRIGHT, {"in YCbCr": 1}),
    "animated gif": (lambda: frames("GIF"), UPRIGHT, {"palette": 1, **FIRST}),
    "animated png": (lambda: frames("PNG"), UPRIGHT, FIRST),
    "animated webp": (lambda: frames("WEBP"), UPRIGHT, FIRST),
    "tiff of three pages": (lambda: frames("TIFF"), UPRIGHT, {"of several pages (first)": 1}),
    "a phone's two pictures": (mpo, UPRIGHT, {"of several pages (first)": 1}),
    **{f"{kind} turned": (lambda kind=kind: with_exif(kind, exif(6)), TURNED, PLAIN)
       for kind in ("PNG", "TIFF")},
    "WEBP turned": (lambda: with_exif("WEBP", exif(6), lossless=True), TURNED, PLAIN),
    "JPEG turned": (
        lambda: with_exif("JPEG", exif(6), quality=95, subsampling=0), TURNED, PLAIN),
    "turned by nothing": (lambda: with_exif("PNG", exif(1)), UPRIGHT, PLAIN),
    "turned by an absurd number": (lambda: with_exif("PNG", exif(999)), UPRIGHT, PLAIN),
    **{f"{kind} with malformed EXIF": (
        lambda kind=kind, options=options: with_exif(kind, malformed_exif(), **options),
        UPRIGHT, PLAIN) for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}),
                                              ("JPEG", {"quality": 95, "subsampling": 0}))},
    "turned, and malformed EXIF beside it": (
        lambda: with_exif("PNG", partly_malformed_exif()), TURNED, PLAIN),
    "EXIF of noise": (lambda: with_exif("PNG", b"Exif\0\0" + bytes(range(200))), UPRIGHT, PLAIN),
    "one pixel": (lambda: encoded(Image.new("RGB", (1, 1), RED), "PNG"), [RED] * 4, PLAIN),
    "after the end, more": (lambda: encoded(FOUR, "PNG") + b"PK\x03\x04" * 99, UPRIGHT, PLAIN),
    "an unknown chunk": (
        lambda: encoded(FOUR, "PNG")[:33] + chunk(b"quIz", bytes(999)) + encoded(FOUR, "PNG")[33:],
        UPRIGHT, PLAIN),
    "a colour profile of noise": (
        lambda: encoded(FOUR, "PNG", icc_profile=bytes(range(250))), UPRIGHT, PLAIN),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_picture_becomes_rgb(name: str) -> None:
    make, expected, notes = GOOD[name]
    pixels, noted = decoded(make())
    assert pixels.dtype == np.uint8
    assert np.abs(np.array(corners(pixels)) - expected).max() <= 5, corners(pixels)  # JPEG's
    if not any(lossy in name.lower() for lossy in ("jpeg", "phone", "ycbcr", "lab")):
        assert corners(pixels) == expected
    assert noted == notes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_rotations_of_cameras(orientation: int) -> None:
    from PIL import ImageOps

    data = with_exif("PNG", exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert np.array_equal(decoded(data)[0], np.asarray(upright))


@pytest.mark.parametrize("size", [(1, 1), (1, 60_000), (60_000, 1), (3, 7), (9000, 9000)])
def test_extreme_shapes_are_fitted(size: tuple[int, int]) -> None:
    data = encoded(Image.new("L", size, 200), "PNG")
    assert (decoded(data, 8)[0] == 200).all()


# --------------------------------------------------------------------------------- from the disk


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    import socket

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "nowhere.png").symlink_to("gone.png")
    (tmp_path / "round.png").symlink_to("round.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.png"))
        for name in ("pipe", "device", "folder", "socket"):
            with pytest.raises(Unreadable, match="not a regular file"):
                pictures.read_file(tmp_path / f"{name}.png")
    for name in ("nowhere", "round"):
        with pytest.raises(Unreadable, match="leads nowhere"):
            pictures.read_file(tmp_path / f"{name}.png")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.touch()
    os.truncate(path, 2**40)  # takes no room on the disk
    with pytest.raises(Unreadable, match=r"1,099,511,627,776 bytes"):
        pictures.read_file(path)
