"""What torch.save wrote, read without executing it, and without memory for what it only claims.

`torch.load(weights_only=True)` executes nothing, but it believes what a file claims: it reserves
what is asked for, makes views of any shape, looks at no checksum, and some pickles crash it. So
each file is walked first, with stand-ins in the place of all that it names (`torch_pickle`), and
torch sees no file that torch.save could not have written.
"""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from mosaickd import torch_pickle
from mosaickd.errors import printable
from mosaickd.torch_pickle import Storage
from mosaickd.unpickling import Refused, Unknown

FLAGS = 0x0808  # of a zip entry: its sizes follow it; its name is UTF-8


class Unreadable(Exception):
    """Why a file was not read, as a phrase: whoever asked for it names the file."""


class AsksForCode(Unreadable):
    """A file with a pickle that names a function or a class which tensors don't need."""


def load(path: Path) -> Any:
    """What torch.save wrote to `path`, with its tensors on the CPU. Raises Unreadable."""
    with _explained(), open(path, "rb") as file:
        _walk(file)
        if _is_zip(file):
            with zipfile.ZipFile(file) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise Refused(f"{damaged} in it is damaged")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def describe(path: Path) -> Any:
    """The same with tensors on the meta device: shapes and types without values.

    Reads next to nothing, however large the file. Raises Unreadable.
    """
    with _explained(), open(path, "rb") as file:
        return _walk(file)


@contextmanager
def _explained() -> Iterator[None]:
    """Damaged bytes surface as nearly any exception: make one of all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a damaged file seems to be
            yield
    except Unknown as error:
        name = printable(str(error), 100)
        raise AsksForCode(f"it can only be read by running code that it names ({name})") from error
    except Exception as error:
        raise Unreadable(printable(str(error), 200) or type(error).__name__) from error


def _is_zip(file: IO[bytes]) -> bool:
    file.seek(0)
    return file.read(4) == b"PK\x03\x04"


def _walk(file: IO[bytes]) -> Any:
    return _walk_zip(file) if _is_zip(file) else _walk_legacy(file)


# ------------------------------------------------------------------------------------ zip archives


def _walk_zip(file: IO[bytes]) -> Any:
    end = _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        _check_entries(file, entries, end)
        sizes = {entry.filename: entry.file_size for entry in entries}
        folder = entries[0].filename.partition("/")[0]
        if sizes.get(f"{folder}/data.pkl", 0) > torch_pickle.LARGEST:
            raise Refused(f"{sizes[f'{folder}/data.pkl']:,} bytes beside the values of its tensors")

        def claim(storage: Storage) -> None:
            if sizes.get(f"{folder}/data/{storage.key}") != storage.size:
                raise Refused(f"a storage {storage.key[:40]!r} of {storage.size:,} bytes, which "
                              "are not there")  # fmt: skip

        pickled = io.BytesIO(archive.read(f"{folder}/data.pkl"))  # its checksum, too
        return torch_pickle.read_content(pickled, claim)


def _check_directory(file: IO[bytes]) -> int:
    """Where the archive's directory begins, if all programs that read it find the same one."""
    size = file.seek(0, 2)
    tail_size = min(size, 98)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    signature, _, _, _, _, length, begin, comment = struct.unpack("<4s4H2IH", tail[-22:])
    end = size - 22
    if tail[-42:-38] == b"PK\x06\x07":  # sizes of 64 bits
        end = size - 98
        at = struct.unpack("<Q", tail[-34:-26])[0]
        record, rest, length, begin = struct.unpack("<4sQ28x2Q", tail[:56])
        if record != b"PK\x06\x06" or rest != 44 or at != end:
            raise Refused("an unusual end of the archive")
    if signature != b"PK\x05\x06" or comment or begin + length != end:
        raise Refused("it is cut short, or something follows the archive's end")
    if length > torch_pickle.LARGEST:
        raise Refused(f"a directory of {length:,} bytes")
    return int(begin)


def _check_entries(file: IO[bytes], entries: list[zipfile.ZipInfo], end: int) -> None:
    """Plain copies of what they hold, one behind the other."""
    if len({entry.filename.casefold() for entry in entries}) < len(entries):
        raise Refused("several entries of the same name")
    entries = sorted(entries, key=lambda entry: entry.header_offset)
    for entry, behind in zip(entries, [*(e.header_offset for e in entries[1:]), end], strict=True):
        name, size = entry.filename, entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != size:
            raise Refused(f"compressed values ({name[:40]!r}), which torch.save never writes")
        if entry.external_attr or name.endswith("/"):  # torch would leave its memory as it was
            raise Refused(f"a folder, or what is marked as one ({name[:40]!r})")
        file.seek(entry.header_offset)
        header = file.read(30)
        signature, flags, name_length, extra_length = struct.unpack("<4s2xH18x2H", header)
        if signature != b"PK\x03\x04" or (flags | entry.flag_bits) & ~FLAGS:
            raise Refused(f"an unusual entry ({name[:40]!r})")
        if entry.orig_filename != name:
            raise Refused(f"an entry of an unusual name ({name[:40]!r})")
        if entry.extra and entry.extra[:4] != struct.pack("<2H", 1, len(entry.extra) - 4):
            raise Refused(f"an entry of unusual fields ({name[:40]!r})")
        if entry.header_offset + 30 + name_length + extra_length + size > behind:
            raise Refused(f"an entry that overlaps the next ({name[:40]!r})")


# ------------------------------------------------------------------------------- before torch 1.6


def _walk_legacy(file: IO[bytes]) -> Any:
    """Five pickles, then each storage: how many values, and these."""
    size = file.seek(0, 2)
    file.seek(0)
    with suppress(tarfile.TarError):
        tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        raise Refused("a tar archive, as PyTorch 0.1 wrote them: save it with a newer one")
    file.seek(0)
    storages: dict[str, Storage] = {}

    def claim(storage: Storage) -> None:
        if storages.setdefault(storage.key, storage).size != storage.size:
            raise Refused(f"a storage {storage.key[:40]!r} of two sizes")

    if not _begins_well(file):
        raise Refused("it does not begin as torch.save begins")
    torch_pickle.read_plain(file)  # the machine that wrote it
    content = torch_pickle.read_content(file, claim)
    keys = torch_pickle.read_plain(file)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise Refused("a list of something else than its storages")
    if sorted(keys) != sorted(storages):
        raise Refused("other storages than its tensors need")
    if sum(storage.size for storage in storages.values()) > size:
        raise Refused(f"storages that are larger than the file's {size:,} bytes")
    for key in keys:
        if file.read(8) != storages[key].count.to_bytes(8, "little"):
            raise Refused(f"a storage {key[:40]!r} of another size than its tensors need")
        if file.seek(storages[key].size, 1) > size:
            raise Refused("it is cut short")
    return content


def _begins_well(file: IO[bytes]) -> bool:
    try:
        magic, version = torch_pickle.read_plain(file), torch_pickle.read_plain(file)
        return bool(magic == MAGIC_NUMBER and version == PROTOCOL_VERSION)
    except Unknown:
        raise
    except Exception:  # whatever bytes these are
        return False
