"""Pickled dicts of numpy arrays, read without executing anything that the pickle asks for.

A pickle is a program: it names functions and calls them. Here it may name those few that numpy
arrays are pickled with, and it gets stand-ins, which note what they are given. The arrays are
made afterwards, from bytes that are really there.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from mosaickd.errors import UserError

ADVICE = "get the file again from where it was published"


#: For numbers, texts, bytes, lists, tuples, dicts, and for calling stand-ins. Among others, those
#: for instances and registered extensions are left out; INST stays to be refused by name.
INSTRUCTIONS = [
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "EMPTY_LIST", "LIST", "APPEND",
    "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "SETITEM",
    "SETITEMS", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT",
    "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "INST",
]  # fmt: skip


class Refused(Exception):
    """What a pickle wants that arrays don't need."""


def _text(value: Any) -> str:
    """A text, which Python 2 pickled as bytes. Never the text of anything else: a nested list
    that holds itself many times over has no end."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    if not isinstance(value, str):
        raise Refused(f"a {type(value).__name__} in the place of a text")
    return value


class Dtype:
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


class Array:
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


def _encoder(size: int) -> Callable[[Any, Any], bytes]:
    """How protocols 0 to 2 hold the bytes of Python 3, of which there are at most size."""
    left = size

    def encode(text: Any, encoding: Any) -> bytes:
        nonlocal left
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise Refused("a text in an unusual encoding")
        left -= len(text)
        if left < 0:  # the same text again and again
            raise Refused("more bytes than the file has")
        return text.encode("latin1")

    return encode


def _no_bytes() -> bytes:
    """How protocols 0 to 2 hold the empty bytes of Python 3."""
    return b""


class Bounded:
    """Reads from a file no more than it has, so that a false length never reserves memory."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file = file
        self.left = size

    def read(self, count: int) -> bytes:
        if count > self.left:
            raise EOFError(f"it ends {count - self.left} bytes too early")
        self.left -= count
        return self.file.read(count)

    def readline(self) -> bytes:
        line = self.file.readline()
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise EOFError("it ends in the middle of a line")
        return line


# The unpickler in Python, not the one in C, which reserves what a length or a memo index says
# before it looks at the file. Few and large items make it fast enough.
class Unpickler(pickle._Unpickler):
    """Builds plain containers and stand-ins; raises Refused for whatever else is asked for."""

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    dispatch: ClassVar[dict[int, Any]] = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
        for name in INSTRUCTIONS
    }

    def __init__(self, file: IO[bytes], size: int) -> None:
        # "bytes": what Python 2 pickled as str stays as it is.
        super().__init__(Bounded(file, size), encoding="bytes")
        # Nothing here refers to self: it is freed, with all it has read, when it is done.
        self.known = {
            ("numpy", "ndarray"): Array,
            ("numpy", "dtype"): Dtype,
            ("_codecs", "encode"): _encoder(size),
            ("__builtin__", "bytes"): _no_bytes,
            ("builtins", "bytes"): _no_bytes,
        }
        for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
            self.known[f"{core}.multiarray", "_reconstruct"] = _reconstruct
            self.known[f"{core}.multiarray", "scalar"] = _scalar
            self.known[f"{core}.numeric", "_frombuffer"] = _frombuffer

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for module.name."""
        if (module, name) not in self.known:
            raise Refused(f"{module}.{name}")
        return self.known[module, name]

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not any(function is known for known in self.known.values()):
            raise Refused("a call of something that is not a function")
        self.stack[-1] = function(*arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) not in (Array, Dtype):
            raise Refused("attributes of something that has none")
        self.stack[-1].__setstate__(state)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_setitem(self) -> None:
        items = [self.stack.pop(), self.stack.pop()]
        self._set_items(items[::-1])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        into = self.stack[-1]
        keys, values = items[::2], items[1::2]
        # Other keys may be nested so deeply that hashing them overflows the stack.
        if type(into) is not dict or not all(type(key) in (str, bytes, int) for key in keys):
            raise Refused("a dict of unusual keys")
        into.update(zip(keys, values, strict=True))

    def load_bytearray8(self) -> None:
        length = int.from_bytes(self.read(8), "little")
        self.append(self.read(length))

    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def load_dict(path: Path) -> dict[str, Any]:
    """The pickled dict in a file: text keys, and `Array`s for its arrays.

    Raises UserError for a damaged file, and for one that wants more than containers, numbers and
    arrays of numbers; nothing of it is executed.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb", buffering=1 << 20) as file:
            content = Unpickler(file, size).load()
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
