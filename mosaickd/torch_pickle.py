"""Pickles within what torch.save writes: what they say of tensors, without any tensor.

The values are elsewhere in the file, in storages that tensors are views of. Here each tensor
becomes one on the meta device, with a shape and a type, once the file can have its storage.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from mosaickd.unpickling import Refused, StandIn, Unpickler, encode, plain_key

#: Bytes of names, shapes and numbers, enough for 40,000 tensors. Each may become a hundred bytes
#: of objects. Also how many objects there may be.
LARGEST = 4 * 2**20
DEEPEST = 50  # containers in containers
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Storage:
    """In the place of what several tensors may view."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


def read_content(file: IO[bytes], claim: Callable[[Storage], None]) -> Any:
    """What was saved, with meta tensors. claim(storage): raises Refused unless the file has it."""
    content = _Content(file, LARGEST, KNOWN, "utf-8", claim).load()
    items, _ = _count(content, {}, 0)
    if items > LARGEST:
        raise Refused(f"{items:,} items, most of them again and again")
    return content


def read_plain(file: IO[bytes]) -> Any:
    """Numbers, texts and containers of these."""
    return Unpickler(file, LARGEST, {}, "utf-8").load()


class _Content(Unpickler):
    def __init__(self, *arguments: Any) -> None:
        *arguments_, self.claim = arguments
        super().__init__(*arguments_)

    def persistent_load(self, saved: Any) -> Storage:
        """saved: ("storage", kind, key, location, count), and behind that None in old files."""
        if type(saved) is not tuple or saved[0] != "storage" or saved[5:] not in ((), (None,)):
            raise Refused("something from outside of the pickle that is no storage")
        _, kind, key, location, count = saved[:5]
        if type(kind) is not _Kind or type(key) is not str or type(location) is not str:
            raise Refused("a storage without a type, a name or a place")
        storage = Storage(key, kind.dtype, _whole(count))
        self.claim(storage)
        return storage


def _count(value: Any, counted: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """(items, height) of nested containers, as whoever walks through them meets them: what is
    there twice counts twice. A list that holds itself is endlessly deep."""
    if isinstance(value, dict):
        inside = [*value.values(), *getattr(value, "__dict__", {}).values()]
    elif type(value) in (list, tuple):
        inside = [*value]
    elif isinstance(value, PLAIN):
        return 1, 0
    else:
        raise Refused(f"a {type(value).__name__.strip('_').lower()} by itself")
    if not inside:
        return 1, 0
    if depth <= DEEPEST and id(value) not in counted:
        within = [_count(item, counted, depth + 1) for item in inside]
        counted[id(value)] = (
            1 + sum(items for items, _ in within),
            1 + max(height for _, height in within),
        )
    items, height = counted.get(id(value), (0, DEEPEST))
    if depth + height > DEEPEST:
        raise Refused("containers that are too deep in each other")
    return items, height


# --------------------------------------------------------------------------------------- stand-ins


@dataclass(frozen=True)
class _Kind:
    """In the place of torch.FloatStorage and its like."""

    dtype: torch.dtype


class _StateDict(collections.OrderedDict[Any, Any], StandIn):
    """An OrderedDict. A module's holds the versions of the modules in it, as `_metadata`."""

    def __init__(self, pairs: Any = ()) -> None:
        super().__init__()
        for key, value in pairs:
            if not plain_key(key):
                raise Refused("a dict of unusual keys")
            self[key] = value

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict or not {*state} <= {"_metadata"}:
            raise Refused("attributes that a state dict doesn't have")
        self.__dict__.update(state)


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise Refused("a size or a place that is no whole number")
    return number


def _size(numbers: Any) -> tuple[int, ...]:
    if type(numbers) is not tuple or len(numbers) > MOST_DIMENSIONS:
        raise Refused("a shape that is none")
    return tuple(map(_whole, numbers))


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any,
    requires_grad: Any = False, hooks: Any = None, metadata: Any = None, dtype: Any = None,
) -> Tensor:  # fmt: skip
    """A view of a storage. It may not have more values than that: expanded to any size, it would
    take the memory when it is copied."""
    if type(storage) is not Storage or len(shape) != len(strides) or hooks or metadata:
        raise Refused("a tensor of an unusual kind")
    shape, strides, dtype = _size(shape), _size(strides), dtype or storage.dtype
    values, available = math.prod(shape), storage.size // dtype.itemsize
    last = _whole(offset) + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if values > available or (values and last >= available):
        raise Refused(f"a tensor of shape {list(shape)} in a storage of {available:,} values")
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any,
    requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None,
) -> Tensor:  # fmt: skip
    """A tensor of a type that has no storages of its own."""
    if not isinstance(dtype, torch.dtype):
        raise Refused("a tensor without a type")
    return _tensor(storage, offset, shape, strides, requires_grad, hooks, metadata, dtype)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> Tensor:
    if not isinstance(data, Tensor) or hooks:
        raise Refused("a parameter of an unusual kind")
    return data


def _counter(counts: Any) -> collections.Counter[Any]:
    if type(counts) is not dict:
        raise Refused("a counter of something else than a dict")
    return collections.Counter(counts)


def _set(members: Any) -> set[Any]:
    if not all(map(plain_key, members)):
        raise Refused("a set of unusual members")
    return set(members)


def _bytearray(text: Any = b"", encoding: Any = "latin-1") -> bytearray:
    return bytearray(text if type(text) is bytes else encode(text, encoding))


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(float(real), float(imaginary))


def _device(kind: Any, index: Any = None) -> str:
    if type(kind) is not str:
        raise Refused("a device without a name")
    return kind


#: What may be among containers.
PLAIN = (str, bytes, bytearray, int, float, complex, set, Tensor, torch.dtype, type(None))

#: The types of which torch has, or had, a class of storages; others are stored as bytes.
KINDS = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
}  # fmt: skip

#: The stand-in of each function and class that state dicts and training checkpoints need.
KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch.storage", "UntypedStorage"): _Kind(torch.uint8),
    ("collections", "OrderedDict"): _StateDict,
    ("collections", "Counter"): _counter,
    ("_codecs", "encode"): encode,
}
KNOWN |= {("torch", f"{name}Storage"): _Kind(dtype) for name, dtype in KINDS.items()}
KNOWN |= {("torch", name): d for name, d in vars(torch).items() if isinstance(d, torch.dtype)}
for _builtins in ("builtins", "__builtin__"):
    KNOWN[_builtins, "set"] = _set
    KNOWN[_builtins, "bytearray"] = _bytearray
    KNOWN[_builtins, "complex"] = _complex
