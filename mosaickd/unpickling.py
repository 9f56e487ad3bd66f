"""Pickles, read without executing anything that they ask for.

A pickle is a program: it names functions and calls them. Here it may name those few that a reader
knows, and it gets the reader's stand-ins for them; and nothing is reserved for what it only
claims to hold.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar

#: For numbers, texts, bytes, lists, tuples, dicts, and for calling stand-ins. Among others, those
#: for instances and registered extensions are left out; INST stays to be refused by name.
#: What BINPERSID asks for is refused where a reader has no `persistent_load`.
INSTRUCTIONS = [
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "EMPTY_LIST", "LIST", "APPEND",
    "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "SETITEM",
    "SETITEMS", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT",
    "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "INST", "BINPERSID",
]  # fmt: skip

#: Python hashes larger numbers modulo a prime: a dict of chosen ones takes forever to fill.
LARGEST_KEY = 2**60
COPIED = (str, bytes, tuple, list, dict)


class Refused(Exception):
    """What a pickle wants that its reader doesn't need."""


class Unknown(Refused):
    """A function or a class that a pickle names, and its reader doesn't know."""


class StandIn:
    """What a pickle may give attributes to: it gets them as `__setstate__` takes them."""

    def __setstate__(self, state: Any) -> None:
        raise Refused("attributes of something that has none")


class Bounded:
    """Reads from a file no more than `size` bytes, so that a false length reserves no memory."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file = file
        self.left = size

    def read(self, count: int) -> bytes:
        if count > self.left:
            raise EOFError(f"it ends {count - self.left} bytes too early")
        self.left -= count
        found = self.file.read(count)
        if len(found) < count:
            raise EOFError(f"it ends {count - len(found)} bytes too early")
        return found

    def readline(self) -> bytes:
        line = self.file.readline(self.left)
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise EOFError("it ends in the middle of a line")
        return line


def encode(text: Any, encoding: Any) -> bytes:
    """How protocols 0 to 2 hold the bytes of Python 3."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused("a text in an unusual encoding")
    return text.encode("latin1")


class _Dispatch(dict[int, Any]):
    def __missing__(self, code: int) -> Any:
        raise Refused(f"the pickle instruction {bytes([code])!r}")


# The unpickler in Python, not the one in C, which reserves what a length or a memo index says
# before it looks at the file. Few and large items make it fast enough.
class Unpickler(pickle._Unpickler):
    """Builds plain containers and stand-ins; raises Refused for whatever else is asked for.

    known: the stand-in of each function or class that may be named, by its module and name.
    What damaged bytes raise is nearly any exception.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    dispatch: ClassVar[dict[int, Any]] = _Dispatch(
        {
            getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
            for name in INSTRUCTIONS
        }
    )

    def __init__(
        self, file: IO[bytes], size: int, known: Mapping[tuple[str, str], Any], encoding: str
    ) -> None:
        super().__init__(Bounded(file, size), encoding=encoding)
        # Nothing here refers to self: it is freed, with all it has read, when it is done.
        self.known = known
        self.left = size

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for module.name."""
        if (module, name) not in self.known:
            raise Unknown(f"{module}.{name}")
        return self.known[module, name]

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not any(function is known for known in self.known.values()):
            raise Refused("a call of something that is not a function")
        # What is copied was in the file, unless the same is copied again and again.
        self.left -= sum(len(a) for a in arguments if type(a) in COPIED)
        if self.left < 0:
            raise Refused("more bytes than the file has")
        self.stack[-1] = function(*arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], StandIn):
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
        if not isinstance(into, dict) or not all(map(plain_key, keys)):
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


def plain_key(key: Any) -> bool:
    """Whether a dict or a set may hold it. Others may be nested so deeply that hashing them
    overflows the stack."""
    return type(key) in (str, bytes) or (type(key) is int and abs(key) < LARGEST_KEY)
