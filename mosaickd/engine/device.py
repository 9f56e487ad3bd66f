"""Where and in what precision a run computes."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple

import torch
from torch import nn

from mosaickd.engine import distributed
from mosaickd.engine.settings import TrainSettings
from mosaickd.errors import UserError
from mosaickd.utils.files import user_cache


class Compute(NamedTuple):
    """Where and how a run computes. precision: fp32 or bf16."""

    device: torch.device
    precision: str
    autocast: Callable[[], AbstractContextManager[object]]


def set_up(name: str, settings: TrainSettings) -> Compute:
    """Choose the device and set torch's switches as `train.*` asks; return how the run computes."""
    device = choose_device(name, distributed.local_rank())
    precision, autocast = autocast_for(device, settings.precision)
    if settings.cuda_graph and device.type != "cuda":
        raise UserError("train.cuda_graph=true needs a CUDA device; this run is on the CPU")
    if settings.deterministic:  # cuBLAS reads this when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = not settings.deterministic
    torch.backends.cudnn.allow_tf32 = precision != "fp32"  # fp32 means float32
    if device.type == "cuda":  # streams and graphs take the current device
        torch.cuda.set_device(device)
    if settings.compile:
        begin_compiling()
    return Compute(device, precision, autocast)


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device of `auto` (CUDA where there is one, else CPU), `cpu`, `cuda`, `cuda:N`.

    local_rank: of several processes that play together, which of this machine's it is; each
    takes a CUDA device of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device: {name!r} is unknown; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise UserError(f"device={name}: no CUDA device here; use device=auto or device=cpu")
        if (device.index or 0) >= count:
            raise UserError(f"device={name}: the devices here are cuda:0 to cuda:{count - 1}")
        if local_rank is not None:
            if device.index is not None:
                raise UserError(
                    f"device={name} is one device for several processes: leave it out, and choose "
                    "with CUDA_VISIBLE_DEVICES"
                )
            if local_rank >= count:
                raise UserError(
                    f"there are more processes than the {count} CUDA devices here: torchrun "
                    f"--nproc_per_node={count}, or device=cpu"
                )
            return torch.device("cuda", local_rank)
        device = torch.device(
            "cuda", device.index or 0
        )  # who makes it the current one needs a number
    return device


def computes_bfloat16_fast(device: torch.device) -> bool:
    """Return whether it is CUDA with bf16 units, or a CPU with AVX512-bf16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public query yet; a build without these falls back to float32.
    queries = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, query, lambda: False)() for query in queries)


def autocast_for(
    device: torch.device, precision: str
) -> tuple[str, Callable[[], AbstractContextManager[object]]]:
    """Return the precision that `auto` comes to, and a context to run forward passes in."""
    if precision == "auto":
        precision = "bf16" if computes_bfloat16_fast(device) else "fp32"
    if precision == "fp32":
        return precision, nullcontext
    return precision, lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def eagerly() -> AbstractContextManager[object]:
    """Run compiled networks as they are written: other batch sizes aren't worth compiling for."""
    return torch.compiler.set_stance("force_eager")


def begin_compiling() -> None:
    """Forget what earlier runs of this process compiled (it counts against a limit), and keep
    what this one compiles for later ones: in $TORCHINDUCTOR_CACHE_DIR or else in the user's cache
    folder, where it is found again after a reboot, and on machines with a processor of the same
    kind that share a home."""
    with suppress(RuntimeError):  # no home: torch has a place of its own for everyone
        # What torch looks code up by says nothing of the processor that it was compiled for.
        place = user_cache() / "compiled" / _processor()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(place))
    torch.compiler.reset()  # takes the first look at that variable


def _processor() -> str:
    """Return a hash of what this machine's processor can do."""
    facts = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    with suppress(OSError), open("/proc/cpuinfo") as file:
        facts += sorted({line for line in file if line.startswith(("model", "flags", "Features"))})
    return hashlib.sha256("".join(facts).encode()).hexdigest()[:12]


def compile_network(network: nn.Module, *, frozen: bool) -> None:
    """Compile a network in place. frozen: the weights are final when the first batch comes.

    Where no gradient is asked for, a frozen network's weights become constants of the compiled
    code, laid out and folded into their neighbours once.
    """
    from torch._dynamo import config as dynamo

    # Networks of one architecture share compiled code. Without this, a student's, which has no
    # hooks, would be run in place of its teacher's, and whoever looks inside would see nothing.
    dynamo.skip_nnmodule_hook_guards = False
    network.compile(dynamic=False)
    if not frozen:
        return
    from torch._inductor import config as inductor  # half a second that eager runs don't need

    compiled = network._compiled_call_impl
    assert compiled is not None

    def call(*args: Any, **kwargs: Any) -> Any:
        # Dynamo looks at this global setting while it traces; `options=` comes too late for it.
        with inductor.patch(freezing=not torch.is_grad_enabled()):
            return compiled(*args, **kwargs)

    network._compiled_call_impl = call


#: How PyTorch says on a CPU, and CUDA's libraries say, that there is no memory; and what sizes
#: that no memory has come to.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|ALLOC_FAILED"
    r"|size calculation overflowed|numel: integer multiplication overflow",
    re.IGNORECASE,
)


def out_of_memory(error: BaseException) -> str | None:
    """Return in a line what could not be had; None where `error` is about something else."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return lines[0].rstrip(".") if lines else "no memory is left"
    found = next((line for line in lines if _NO_MEMORY.search(line)), None)
    if not isinstance(error, RuntimeError) or found is None:
        return None
    return found.rpartition("DefaultCPUAllocator: ")[2].rstrip(".")


def describe_device(device: torch.device) -> str:
    """Return the device in words, for results."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model n")]
        name = models[0] if models else name
    except OSError:
        pass  # not Linux
    return f"{name}, {torch.get_num_threads()} threads"


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory that tensors (CUDA) or the process (CPU) ever held, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on Windows, where no one trains

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
