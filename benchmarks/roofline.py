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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import flop_registry

#: Operators that hand out memory without writing it, or look at it in another shape.
FREE = (
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "_reshape_alias", "is_same_size"),
)
#: Operators that read as much of their first input as they write.
INDEXING = ("index", "gather", "index_select", "embedding")


@dataclass(frozen=True)
class OperatorCost:
    """What one call of an operator costs."""

    name: str
    flops: int
    bytes: int
    fused_bytes: int


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that run inside of it, by turn."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: dict[str, list[OperatorCost]] = {}
        self.current: list[OperatorCost] = []

    def after_turn(self, name: str) -> None:
        """Assign all operators since the last call to the turn `name`."""
        self.turns.setdefault(name, []).extend(self.current)
        self.current = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if cost := cost_of(func, args, kwargs or {}, result):
            self.current.append(cost)
        return result


def cost_of(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> OperatorCost | None:
    """Return what a call of the operator `func` costs; None if nothing."""
    schema, packet = func._schema, func._overloadpacket
    name = packet.__name__
    returns = [value.alias_info for value in schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in returns)
    if is_view or name in FREE or schema.name.startswith(("prim", "profiler")):
        return None
    inputs = dict(zip((argument.name for argument in schema.arguments), args, strict=False))
    inputs |= kwargs

    mutated = [
        tensor
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in tensors(inputs.get(argument.name))
    ]
    outputs = [out for out in tensors(result) if not any(out is tensor for tensor in mutated)]
    written = sum(map(size_of, [*mutated, *outputs]))
    ignored = unread(name, inputs)
    read = sum(
        size_of(tensor)
        for argument, value in inputs.items()
        if argument not in ignored
        for tensor in tensors(value)
    )
    if name in INDEXING:
        read += written

    formula = flop_registry.get(packet)
    flops = int(formula(*args, **kwargs, out_val=result)) if formula else 0
    statistics = 0  # of a training batch norm: a second pass over its inputs
    training = inputs.get("training", inputs.get("train", "no_update" not in name))
    if "batch_norm" in name and training:
        batch = [inputs.get(key) for key in ("input", "grad_out", "grad_output")]
        statistics = sum(map(size_of, tensors(batch)))
    traffic = read + written
    return OperatorCost(
        name, flops, bytes=traffic + statistics, fused_bytes=traffic if flops else statistics
    )


def unread(name: str, inputs: Mapping[str, Any]) -> set[str]:
    """Return the inputs that an operator doesn't read, or not as a whole."""
    if name == "convolution_backward":
        to_input, to_weight, _ = inputs["output_mask"]
        return ({"weight"} if not to_input else set()) | ({"input"} if not to_weight else set())
    if name in INDEXING:
        return {"self", "weight"}
    return {"self"} if name in ("copy_", "fill_", "zero_") else set()


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def size_of(tensor: Tensor) -> int:
    """Return the bytes that a tensor has to itself: what is expanded exists once."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in pairs if stride or size == 0) * tensor.element_size()


# ------------------------------------------------------------------------------------ the machine


@dataclass(frozen=True)
class Peaks:
    """What a machine does at best. flops: FLOP/s by precision; bandwidth: bytes/s."""

    flops: dict[str, float] = field(default_factory=dict)
    bandwidth: float = 0.0


@dataclass(frozen=True)
class Work:
    """An iteration's operators, added up; floors in seconds."""

    flops: int
    bytes: int
    fused_bytes: int
    flops_by_turn: dict[str, int]
    floor: float  # as executed eagerly
    fused_floor: float


def add_up(turns: Mapping[str, Iterable[OperatorCost]], peak: float, bandwidth: float) -> Work:
    """Return the work of an iteration. peak: FLOP/s; bandwidth: bytes/s."""
    costs = [cost for turn in turns.values() for cost in turn]
    return Work(
        flops=sum(cost.flops for cost in costs),
        bytes=sum(cost.bytes for cost in costs),
        fused_bytes=sum(cost.fused_bytes for cost in costs),
        flops_by_turn={name: sum(cost.flops for cost in turn) for name, turn in turns.items()},
        floor=sum(max(cost.flops / peak, cost.bytes / bandwidth) for cost in costs),
        fused_floor=sum(max(cost.flops / peak, cost.fused_bytes / bandwidth) for cost in costs),
    )


def measure_peaks(device: torch.device, precisions: Iterable[str]) -> Peaks:
    """Measure this machine. precisions: of fp32, tf32 (CUDA's rounded float32) and bf16."""
    flops = {precision: measure_flops(device, precision) for precision in precisions}
    source = torch.ones(2**28 if device.type == "cuda" else 2**27, device=device)  # float32
    target = torch.zeros_like(source)
    seconds = shortest(lambda: target.copy_(source))
    return Peaks(flops, 2 * size_of(source) / seconds)


def measure_flops(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of a square matrix product, 8192 wide on CUDA and 2048 on a CPU."""
    width = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    with rounding_to_tf32(precision == "tf32"):
        return 2 * width**3 / shortest(lambda: torch.mm(left, right, out=out))


@contextmanager
def rounding_to_tf32(enabled: bool) -> Iterator[None]:
    """Let float32 matrix products on CUDA round their factors inside, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def shortest(call: Callable[[], Any], seconds: float = 1.0) -> float:
    """Return the shortest time of a call, of as many as fit into `seconds`."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=seconds).times)
