"""One run on several ranks, as torchrun starts them: what they share and agree on.

Every rank trains on its part of each batch. All of them draw the same random numbers for the whole
batch and take their part, so that together they see the images and the noise that one would;
gradients are averaged turn by turn, and rank 0 alone writes. With one process nothing here does
anything.
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

#: The environment of each rank under torchrun, beside WORLD_SIZE.
FROM_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

#: How long a collective may take. A dead rank is noticed sooner: its closed connection ends a
#: collective at once. Work that can take longer is polled for through the store (`rank0_only`).
TIMEOUT = timedelta(minutes=10)

_store: dist.Store | None = None
_calls = 0  # of `rank0_only`
_failures = 0  # calls of `all_ranks_failed`
_says_goodbye = True


class LostProcess(UserError):
    """Another rank is gone. Reported where it is raised: torchrun may end this one any moment."""

    reported = True


def init() -> None:
    """Join the process group, if torchrun started this process (it sets RANK, WORLD_SIZE, ...)."""
    global _store
    if dist.is_initialized() or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    if missing := [name for name in FROM_TORCHRUN if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that several processes train a run, but "
            f"{', '.join(missing)} is not set: start them with torchrun, or unset WORLD_SIZE"
        )
    store, rank, world = next(iter(dist.rendezvous("env://")))
    # The store may outlive ranks that torchrun restarts: each generation has a prefix of its own.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    both = torch.cuda.is_available() and dist.is_nccl_available()
    with _lost_ranks_explained():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if both else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=TIMEOUT,
        )
    _store = dist.PrefixStore("mosaickd", store)
    atexit.register(_end)


def give_up() -> None:
    """Let this process end with an error without waiting for the other ranks."""
    global _says_goodbye
    _says_goodbye = False


def _end() -> None:
    # torchrun ends all ranks when one has failed: let rank 0, which prints, do so before.
    sys.stdout.flush()
    if is_rank0() and _store is not None:
        with suppress(RuntimeError):
            _store.set("printed", "yes")
    else:
        _wait_for(["printed"], seconds=5)
    if _says_goodbye and dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Return how many processes train this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_rank0() -> bool:
    """Return whether this is the process that writes and prints."""
    return rank() == 0


def local_rank() -> int | None:
    """Return which of this machine's ranks this is, from 0; None where there is only one."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else None


def rank_slice(batch_size: int) -> slice:
    """Return this rank's part of a batch. Raises UserError where the batch doesn't divide."""
    part, rest = divmod(batch_size, world_size())
    if rest:
        near = [n for n in (batch_size - rest, batch_size - rest + world_size()) if n]
        raise UserError(
            f"train.batch_size={batch_size} does not divide among {world_size()} processes: choose "
            f"{' or '.join(map(str, near))}, or another --nproc_per_node"
        )
    return slice(rank() * part, (rank() + 1) * part)


# ---------------------------------------------------------------------------------- collectives


@contextmanager
def _lost_ranks_explained() -> Iterator[None]:
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
    """Replace each tensor by its mean over all ranks: one flat all-reduce (as StyleGAN3 does)."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    all_reduce_sum(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def all_reduce_sum(tensor: Tensor) -> None:
    """Replace `tensor` by its sum over all ranks."""
    if world_size() > 1:
        with _lost_ranks_explained():
            dist.all_reduce(tensor)


def sum_over_ranks(numbers: Sequence[int]) -> list[int]:
    """Return each number's sum over all ranks."""
    sums = torch.tensor(numbers, dtype=torch.int64)
    all_reduce_sum(sums)
    return sums.tolist()


def all_reduce_max(number: int) -> int:
    """Return the largest of the ranks' numbers."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number)
    with _lost_ranks_explained():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Return all ranks' tensors [n, ...], one after the other: [world * n, ...], no gradient."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    with _lost_ranks_explained():
        dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states of all ranks, in their order."""
    if world_size() == 1:
        return [state]
    states: list[Any] = [None] * world_size()
    with _lost_ranks_explained():
        dist.all_gather_object(states, state)
    return states


def broadcast(*tensors: Tensor) -> None:
    """Fill each of the tensors with rank 0's values."""
    if world_size() > 1:
        for tensor in tensors:
            with _lost_ranks_explained():
                dist.broadcast(tensor, 0)


# ---------------------------------------------------------------------- what only rank 0 does


def rank0_only(work: Callable[[], Result]) -> Result:
    """Do `work` on rank 0 only; return on all ranks what it returned, or raise what it raised.

    The others poll for the outcome, for as long as it takes: work may be training a teacher. What
    it returns has to be picklable.
    """
    global _calls
    if _store is None:
        return work()
    _calls += 1
    key = f"first-{_calls}"
    if is_rank0():
        try:
            outcome: tuple[bool, Any] = True, work()
        except BaseException as error:
            reason = error if isinstance(error, UserError) else UserError(f"stopped: {error}")
            _store.set(key, pickle.dumps((False, reason)).hex())
            raise
        _store.set(key, pickle.dumps(outcome).hex())
    else:
        with _lost_ranks_explained():
            while not _store.check([key]):  # not `wait`: a signal would have to wait with it
                time.sleep(0.02)
            content = bytes.fromhex(_store.get(key).decode())
            outcome = pickle.loads(content)  # noqa: S301  (from a process of this run, as torch's are)
        if not outcome[0]:
            raise outcome[1]
    result: Result = outcome[1]
    return result


@contextmanager
def rank0_holds(lock: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Hold a lock that belongs to all ranks: rank 0 takes it and gives it back."""
    with ExitStack() as held:
        rank0_only(lambda: held.enter_context(lock()))
        yield


def rank0_first(work: Callable[[], Result]) -> Result:
    """Do `work` on rank 0, then on the others, which find what it left on the disk."""
    if world_size() == 1:
        return work()
    found: list[Result] = []
    rank0_only(lambda: found.append(work()))
    return found[0] if found else work()


def all_ranks_failed(seconds: float = 5.0) -> bool:
    """Return whether every rank has come here, with an error each. Waits for `seconds` at most.

    Then the same is wrong in all of them, rank 0 reports it, and a sweep can go on.
    """
    global _failures
    if _store is None:
        return True
    _failures += 1
    keys = [f"failed-{_failures}-{each}" for each in range(world_size())]
    with suppress(RuntimeError):
        _store.set(keys[rank()], "yes")
    return _wait_for(keys, seconds)


def _wait_for(keys: list[str], seconds: float) -> bool:
    """Return whether all keys are in the store within some seconds."""
    deadline = time.monotonic() + seconds
    with suppress(RuntimeError):  # the store is gone, and whoever kept it
        while _store is not None and time.monotonic() < deadline:
            if _store.check(keys):
                return True
            time.sleep(0.02)
    return False
