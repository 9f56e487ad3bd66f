"""Files in the formats of torch.save that only somebody who means harm would write."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

ONES = b"\0\0\x80\x3f" * 4  # a storage of four ones


class Calls:
    """Pickled as a call of whatever function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


class Stored:
    """Pickled as torch.save pickles a storage."""

    def __init__(self, count: Any = 4, kind: Any = torch.FloatStorage, key: Any = "0") -> None:
        self.saved: Any = ("storage", kind, key, "cpu", count)


def tensor(
    shape: Any = (4,), strides: Any = (1,), offset: Any = 0, storage: Any = None, hooks: Any = None
) -> Calls:
    """Pickled as torch.save pickles a tensor, of whatever shape."""
    rebuild = torch._utils._rebuild_tensor_v2
    return Calls(rebuild, storage or Stored(), offset, shape, strides, False, hooks or {})


def pickled(content: Any, protocol: int = 2) -> bytes:
    """Bytes are a pickle already."""
    if isinstance(content, bytes):
        return content

    class Pickler(pickle._Pickler):  # the one in C goes less deep
        def persistent_id(self, value: Any) -> Any:
            return value.saved if isinstance(value, Stored) else None

    file = io.BytesIO()
    Pickler(file, protocol).dump(content)
    return file.getvalue()


def entry(name: str, data: bytes, begin: int, lies: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """One file of a zip archive that is `begin` bytes long before it -> it, and what the directory
    says of it. lies: flags, method, size (unpacked), packed, at, crc, extra, attributes."""
    fields = {"flags": 0, "method": 0, "size": len(data), "packed": len(data), "at": begin,
              "crc": crc32(data), "extra": b"", "attributes": 0} | lies  # fmt: skip
    flags, method, size, packed, at, crc, extra, attributes = fields.values()
    told = struct.pack("<5H3I2H", 20, flags, method, 0, 0, crc, packed, size, len(name), len(extra))
    local = b"PK\3\4" + told[:-2] + bytes(2) + name.encode() + data
    central = b"PK\1\2" + bytes(2) + told + bytes(6) + struct.pack("<2I", attributes, at)
    return local, central + name.encode() + extra


def archive(content: Any, storages: Mapping[str, Any] | None = None, **other: Any) -> bytes:
    """What torch.save writes today. storages: by key, bytes or (bytes, lies about them); "0" of
    four ones if there are none given. other: further files."""
    storages = {"0": ONES} if storages is None else storages
    records = {f"data/{key}": data for key, data in storages.items()}
    records = {"data.pkl": pickled(content), "version": b"3\n"} | records | other
    body, directory = b"", b""
    for name, data in records.items():
        data, lies = data if isinstance(data, tuple) else (data, {})
        local, central = entry(f"archive/{name}", data, len(body), lies)
        body, directory = body + local, directory + central
    return body + directory + end(len(records), len(directory), len(body))


def end(count: int, length: int, begin: int, comment: bytes = b"") -> bytes:
    """Of a zip archive."""
    sizes = (0, 0, count, count, length, begin, len(comment))
    return b"PK\5\6" + struct.pack("<4H2IH", *sizes) + comment


def legacy(
    content: Any, keys: Any = ("0",), values: bytes = ONES, count: int = 4, first: Any = None
) -> bytes:
    """What torch.save wrote before."""
    head = [MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True} if first is None else first]
    pickles = [pickled(part) for part in (*head, content, list(keys))]
    return b"".join(pickles) + (count.to_bytes(8, "little") + values) * len(keys)


def in_each_other(depth: int, times: int = 1) -> list[Any]:
    """A list that holds one list `times` over, which holds one list `times` over..."""
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner] * times
    return inner
