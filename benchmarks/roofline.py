"""How much work an iteration is, and how fast this machine could do it at best.

**Counted**, operator by operator while an iteration runs eagerly:

- FLOPs by the formulas of `torch.utils.flop_counter` (a multiplication and an addition are two):
  convolutions and matrix products, forward and backward, of the latter only the gradients that
  are asked for. Nothing else counts as arithmetic.
- `bytes`, the memory traffic *as executed eagerly*: each operator reads its inputs and writes its
  outputs once. A batch norm that computes statistics reads its inputs twice, in both directions:
  it cannot write anything before it has seen everything. Views and fresh memory are free, and
  what is picked from a tensor by index counts as much as is picked.
- `fused_bytes`, what is left if everything elementwise rides along with a neighbour: only
  convolutions and matrix products read and write, and the batch norms of training networks still
  read their inputs once for their statistics. No compiler reaches that.

**Measured**, in the process that uses it (`measure_peaks`): FLOP/s of a large matrix product in
the precision of the iteration, and bytes/s of a copy that no cache holds, read and written.

**The floor** is the sum over operators of the larger of flops/peak and bytes/bandwidth: no operator
can be faster, if caches do not help. A share of the floor (floor / measured time) may come out
above 1 where they do (a CPU's last level holds small batches), and a convolution may do better than
the matrix product that stands for its peak.

**Not counted**: elementwise arithmetic, the optimizers' in `fused_bytes`, launching and
everything that Python does, synchronisation, zero padding (a 3x3 convolution at the border
multiplies fewer numbers than the formula says), weights that a cache keeps from one operator to
the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

#: Operators that hand out memory without writing it, or look at it in another shape.
FREE = (
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "_reshape_alias", "is_same_size"),
)
#: Operators that read as much of their first input as they write.
PICKING = ("index", "gather", "index_select", "embedding")


@dataclass(frozen=True)
class Operation:
    """One operator that ran."""

    name: str
    flops: int
    bytes: int
    fused_bytes: int


class Tally(TorchDispatchMode):
    """Counts what runs inside of it, by turn."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: dict[str, list[Operation]] = {}
        self._open: list[Operation] = []

    @property
    def operations(self) -> list[Operation]:
        return [operation for turn in self.turns.values() for operation in turn] + self._open

    def after_turn(self, name: str) -> None:
        """All since the last call was part of `name`."""
        self.turns.setdefault(name, []).extend(self._open)
        self._open = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if operation := count(func, args, kwargs, result):
            self._open.append(operation)
        return result


def count(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> Operation | None:
    """What a call of the operator `func` costs; None if nothing."""
    schema, packet = func._schema, func._overloadpacket
    name = packet.__name__
    if schema.name.startswith(("prim", "profiler")) or name in FREE or _is_view(schema):
        return None
    given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)}
    given |= kwargs
    mutated = [
        tensor
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _tensors(given.get(argument.name))
    ]
    results = [new for new in _tensors(result) if not any(new is old for old in mutated)]
    writes = sum(map(size_of, mutated)) + sum(map(size_of, results))
    reads = sum(map(size_of, _read(name, given)))
    if name in PICKING:
        reads += writes
    traffic = reads + writes

    flops = 0
    if formula := flop_registry.get(packet):
        flops = int(formula(*args, **kwargs, out_val=result))
    fused = traffic if flops else 0
    in_training = given.get("training", given.get("train", "no_update" not in name))
    if "batch_norm" in name and in_training:
        inputs = [given.get(key) for key in ("input", "grad_out", "grad_output")]
        fused = sum(size_of(tensor) for tensor in inputs if isinstance(tensor, Tensor))
        traffic += fused
    return Operation(name, flops, traffic, fused)


def _read(name: str, given: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operator reads."""
    unread: set[str] = set()
    if name == "convolution_backward":
        to_input, to_weight, _ = given["output_mask"]
        unread = ({"weight"} if not to_input else set()) | ({"input"} if not to_weight else set())
    elif name in PICKING:  # counted by what is picked
        unread = {"self", "weight"}
    elif name in ("copy_", "fill_", "zero_"):
        unread = {"self"}
    return [
        tensor for key, value in given.items() if key not in unread for tensor in _tensors(value)
    ]


def _is_view(schema: Any) -> bool:
    aliases = [value.alias_info for value in schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def size_of(tensor: Tensor) -> int:
    """Bytes that a tensor has to itself: what is expanded exists once."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in pairs if stride or size == 0) * tensor.element_size()


# ------------------------------------------------------------------------------- the machine


@dataclass(frozen=True)
class Peaks:
    """What this machine does at best. flops: FLOP/s by precision; bandwidth: bytes/s."""

    flops: dict[str, float]
    bandwidth: float


@dataclass(frozen=True)
class Work:
    """An iteration's operators, added up; floors in seconds."""

    flops: int
    bytes: int
    fused_bytes: int
    flops_by_turn: dict[str, int]
    floor: float  # as executed eagerly
    fused_floor: float


def work_of(tally: Tally, peak: float, bandwidth: float) -> Work:
    """peak: FLOP/s; bandwidth: bytes/s."""
    operations = tally.operations
    return Work(
        flops=sum(o.flops for o in operations),
        bytes=sum(o.bytes for o in operations),
        fused_bytes=sum(o.fused_bytes for o in operations),
        flops_by_turn={name: sum(o.flops for o in turn) for name, turn in tally.turns.items()},
        floor=sum(max(o.flops / peak, o.bytes / bandwidth) for o in operations),
        fused_floor=sum(max(o.flops / peak, o.fused_bytes / bandwidth) for o in operations),
    )


def measure_peaks(device: torch.device, precisions: Iterable[str]) -> Peaks:
    """precisions: of "fp32", "tf32" (CUDA's rounded float32) and "bf16"."""
    return Peaks({name: peak_flops(device, name) for name in precisions}, peak_bandwidth(device))


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a square matrix product, 8192 wide on CUDA and 2048 on a CPU."""
    width = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.randn(width, width, device=device, dtype=dtype)
    right = torch.randn(width, width, device=device, dtype=dtype)
    out = torch.empty_like(left)
    with rounding(device, precision):
        seconds = fastest(lambda: torch.mm(left, right, out=out), device)
    return 2 * width**3 / seconds


def peak_bandwidth(device: torch.device) -> float:
    """Bytes/s, read and written, of a copy too large for the caches."""
    size = 2**30 if device.type == "cuda" else min(max(4 * last_level_cache(), 2**28), 2**30)
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    return 2 * size / fastest(lambda: target.copy_(source), device)


@contextmanager
def rounding(device: torch.device, precision: str) -> Iterator[None]:
    """Inside, float32 matrix products on CUDA round their factors if `precision` is "tf32"."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def fastest(call: Callable[[], Any], device: torch.device, seconds: float = 1.0) -> float:
    """The shortest of as many calls as fit into `seconds`, after one to warm up; three at least."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        times.append(timed(call, device))
    return min(times)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call: on CUDA between two events on its stream."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def last_level_cache() -> int:
    """Bytes of the CPU's largest cache, as Linux tells it; 32 MiB where nobody does."""
    sizes = [2**25]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes)
