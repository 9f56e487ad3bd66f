"""One run played by several processes, as torchrun starts them: what they share and agree on.

Every process plays the whole game on its part of each batch. All of them draw the same random
numbers for the whole batch and take their part, so that together they see the images and the
noise that a single process would; gradients are averaged turn by turn, and the first process
alone writes. With one process nothing here does anything.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mosaickd.errors import UserError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: What torchrun tells each process that it starts, beside WORLD_SIZE.
FROM_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

#: How long a message may take. Deaths are noticed sooner: a closed connection ends a message at
#: once, and torchrun ends the others. Nothing that can take longer is waited for in a message.
PATIENCE = timedelta(minutes=10)

_store: dist.Store | None = None
_turns = 0  # how often `first` was called
_failures = 0  # how often `all_ranks_failed` was called
_whole = True


class LostProcess(UserError):
    """Another process of this run is gone. Told at once: torchrun may end this one any moment."""

    told = True


def init() -> None:
    """Meet the others, if torchrun started this process (RANK, WORLD_SIZE and so on are set)."""
    global _store
    if dist.is_initialized() or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    if missing := [name for name in FROM_TORCHRUN if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that several processes play this run, but "
            f"{', '.join(missing)} is not set: start them with torchrun, or unset WORLD_SIZE"
        )
    store, rank, world = next(iter(dist.rendezvous("env://")))
    # The store may outlive the processes that torchrun restarts: what these say to each other,
    # their addresses to begin with, is kept apart from what those said.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    both = torch.cuda.is_available() and dist.is_nccl_available()
    with _messages():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if both else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=PATIENCE,
        )
    _store = dist.PrefixStore("mosaickd", store)
    atexit.register(_end)


def give_up() -> None:
    """This process ends with an error: it does not wait for the others in order to say goodbye."""
    global _whole
    _whole = False


def _end() -> None:
    # torchrun ends all when one has failed: let the first one, who talks, have its say before.
    sys.stdout.flush()
    if is_rank0() and _store is not None:
        with suppress(RuntimeError):
            _store.set("spoken", "yes")
    else:
        _wait_for(["spoken"], seconds=5)
    if _whole and dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes play this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_rank0() -> bool:
    """Whether this is the process that writes and talks."""
    return rank() == 0


def local_rank() -> int | None:
    """Which of this machine's processes this is, from 0; None where there is only one."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else None


def rank_slice(batch_size: int) -> slice:
    """This process's part of a batch. Raises UserError where the batch doesn't divide."""
    part, rest = divmod(batch_size, world_size())
    if rest:
        near = [n for n in (batch_size - rest, batch_size - rest + world_size()) if n]
        raise UserError(
            f"train.batch_size={batch_size} does not divide among {world_size()} processes: choose "
            f"{' or '.join(map(str, near))}, or another --nproc_per_node"
        )
    return slice(rank() * part, (rank() + 1) * part)


# ------------------------------------------------------------------------------------- messages


@contextmanager
def _messages() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo raises these; torch's own are a kind of them
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise  # something else went wrong in here: no memory, say
        reason = str(error).strip().partition("\n")[0].partition(". This is typically")[0]
        lost = LostProcess(
            f"another process of this run has ended or does not answer ({reason[:200]}). "
            "The same command goes on from the last checkpoint"
        )
        log.error("process %d: %s", rank(), lost)
        raise lost from error


@torch.no_grad()
def all_reduce_mean(tensors: Sequence[Tensor]) -> None:
    """Put the mean over all processes into each of `tensors`: one flat message for all of them,
    whatever their number (as StyleGAN3 does it)."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    all_reduce_sum(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def all_reduce_sum(tensor: Tensor) -> None:
    """Put the sum over all processes into `tensor`."""
    if world_size() > 1:
        with _messages():
            dist.all_reduce(tensor)


def sum_over_ranks(numbers: Sequence[int]) -> list[int]:
    """Each number's sum over all processes."""
    sums = torch.tensor(numbers, dtype=torch.int64)
    all_reduce_sum(sums)
    return sums.tolist()


def all_reduce_max(number: int) -> int:
    """The largest of the numbers that the processes have."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number)
    with _messages():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """All processes' tensors [n, ...], one after the other. -> [world * n, ...], no gradient."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    with _messages():
        dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process has to remember, in their order."""
    if world_size() == 1:
        return [state]
    states: list[Any] = [None] * world_size()
    with _messages():
        dist.all_gather_object(states, state)
    return states


def broadcast(*tensors: Tensor) -> None:
    """Fill each of the tensors with what the first process has in it."""
    if world_size() > 1:
        for tensor in tensors:
            with _messages():
                dist.broadcast(tensor, 0)


# --------------------------------------------------------------- what only the first process does


def rank0_only(work: Callable[[], Result]) -> Result:
    """Only the first process does `work`; all return what it came to, or raise what it raised.

    The others look for the outcome from time to time, for as long as it takes: work may be
    training a teacher. What it returns has to be picklable.
    """
    global _turns
    if _store is None:
        return work()
    _turns += 1
    key = f"first-{_turns}"
    if is_rank0():
        try:
            outcome: tuple[bool, Any] = True, work()
        except BaseException as error:
            reason = error if isinstance(error, UserError) else UserError(f"stopped: {error}")
            _store.set(key, pickle.dumps((False, reason)).hex())
            raise
        _store.set(key, pickle.dumps(outcome).hex())
    else:
        with _messages():
            while not _store.check([key]):  # not `wait`: a signal would have to wait with it
                time.sleep(0.02)
            said = bytes.fromhex(_store.get(key).decode())
            outcome = pickle.loads(said)  # noqa: S301  (from a process of this run, as torch's are)
        if not outcome[0]:
            raise outcome[1]
    result: Result = outcome[1]
    return result


@contextmanager
def rank0_holds(lock: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Hold a lock that belongs to all processes: the first one takes it and gives it back."""
    with ExitStack() as held:
        rank0_only(lambda: held.enter_context(lock()))
        yield


def rank0_first(work: Callable[[], Result]) -> Result:
    """The first process does `work`, then the others do, and find what it left on the disk."""
    if world_size() == 1:
        return work()
    found: list[Result] = []
    rank0_only(lambda: found.append(work()))
    return found[0] if found else work()


def all_ranks_failed(seconds: float = 5.0) -> bool:
    """Whether every process has come here, with an error each: what is wrong is then wrong in all
    of them, one tells it, and they can go on to something else together. Waits a little."""
    global _failures
    if _store is None:
        return True
    _failures += 1
    keys = [f"failed-{_failures}-{each}" for each in range(world_size())]
    with suppress(RuntimeError):
        _store.set(keys[rank()], "yes")
    return _wait_for(keys, seconds)


def _wait_for(keys: list[str], seconds: float) -> bool:
    """Whether all of these are said in the store, or will be soon."""
    deadline = time.monotonic() + seconds
    with suppress(RuntimeError):  # the store is gone, and whoever kept it
        while _store is not None and time.monotonic() < deadline:
            if _store.check(keys):
                return True
            time.sleep(0.02)
    return False
