"""Pickled dicts of numpy arrays, read without executing anything that the pickle asks for.

It may name those few functions that numpy arrays are pickled with, and it gets stand-ins, which
note what they are given. The arrays are made afterwards, from bytes that are really there.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from mosaickd.errors import UserError
from mosaickd.unpickling import Refused, StandIn, Unpickler, encode

ADVICE = "get the file again from where it was published"


def _text(value: Any) -> str:
    """A text, which Python 2 pickled as bytes. Never the text of anything else: a nested list
    that holds itself many times over has no end."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    if not isinstance(value, str):
        raise Refused(f"a {type(value).__name__} in the place of a text")
    return value


class Dtype(StandIn):
    """In the place of numpy.dtype. Plain numbers only: objects and records are refused."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        code = _text(code)
        if not re.fullmatch(r"b1|f[248]|[iu][1248]", code):
            raise Refused(f"an array of {code[:40]!r}, which is not a plain number type")
        self.kind = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """state: (version, byte order, ...), as numpy writes it."""
        order: Any = _text(state[1])
        if order not in ("<", ">", "|", "="):
            raise Refused(f"a byte order {order[:10]!r}")
        self.kind = self.kind.newbyteorder(order)


class Array(StandIn):
    """In the place of numpy.ndarray: its type, shape and bytes, until `to_numpy`."""

    def __init__(self) -> None:
        self.content: tuple[Any, ...] | None = None

    def __setstate__(self, state: Any) -> None:
        """state: (version, shape, dtype, in Fortran order, bytes), as numpy writes it."""
        shape, dtype, fortran, data = state[-4:]
        self.content = (shape, dtype, "F" if fortran else "C", data)

    def to_numpy(self) -> np.ndarray:
        """A view of the pickled bytes; Refused where they are not what type and shape say."""
        shape, dtype, order, data = self.content or ((), None, "C", b"")
        shape = (shape,) if type(shape) is int else shape
        if type(dtype) is not Dtype or type(shape) is not tuple or not isinstance(data, bytes):
            raise Refused("an array without type, shape or bytes")
        if len(shape) > 8 or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
            raise Refused("an array of an impossible shape")
        claimed = math.prod(shape) * dtype.kind.itemsize
        if claimed != len(data):
            raise Refused(f"an array of shape {shape}, {claimed} bytes, made of the {len(data)} "
                          "bytes that are there")  # fmt: skip
        return np.frombuffer(data, dtype.kind).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    if kind is not Array:
        raise Refused("an array of another class than numpy.ndarray")
    return Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array.content = (shape, dtype, order, data)
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    array = Array()
    array.content = ((), dtype, "C", data)
    return array.to_numpy().item()


def _no_bytes() -> bytes:
    """How protocols 0 to 2 hold the empty bytes of Python 3."""
    return b""


#: The stand-in of each function that numpy arrays are pickled with.
KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Dtype,
    ("_codecs", "encode"): encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    KNOWN[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    KNOWN[f"{_core}.numeric", "_frombuffer"] = _frombuffer


def load_dict(path: Path) -> dict[str, Any]:
    """The pickled dict in a file: text keys, and `Array`s for its arrays.

    Raises UserError for a damaged file, and for one that wants more than containers, numbers and
    arrays of numbers; nothing of it is executed.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb", buffering=1 << 20) as file:
            # "bytes": what Python 2 pickled as str stays as it is.
            content = Unpickler(file, size, KNOWN, encoding="bytes").load()
    except Refused as error:
        raise UserError(
            f"{path} asks for {error}, which pickled images don't need; nothing in it was "
            f"executed. Don't open it with other programs; {ADVICE}"
        ) from None
    except Exception as error:  # a damaged pickle surfaces as nearly anything
        raise UserError(
            f"cannot read {path} ({type(error).__name__}: {error}); it is damaged, incomplete or "
            f"not a pickle: {ADVICE}"
        ) from error
    if type(content) is not dict:
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of images and "
                        f"labels; {ADVICE}")  # fmt: skip
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): value
        for key, value in content.items()
    }
