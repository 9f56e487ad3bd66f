"""Checkpoints: written whole or not at all, the one before kept, read without executing code."""

from __future__ import annotations

import copy
import io
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mosaickd import torch_file
from mosaickd.errors import UserError
from mosaickd.files import write_atomically

log = logging.getLogger(__name__)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """The newest checkpoint; what was the newest until now is kept beside it.

    state: tensors, numbers, texts, lists and dicts of these.
    """
    content = io.BytesIO()  # torch.save would hide what went wrong with the file: a full disk, say
    torch.save(state, content)
    write_atomically(path, lambda file: file.write(content.getbuffer()), before(path))


def before(path: Path) -> Path:
    """Where the checkpoint lies that was the newest before the one at `path`."""
    return path.with_name(f"previous{path.suffix}")


def exist(path: Path) -> bool:
    """Whether there is a checkpoint to go on from, be it the one before the newest."""
    return path.exists() or before(path).exists()


def newest_readable(path: Path, *, look_only: bool = False) -> Path | None:
    """The checkpoint to go on from; None where there is none.

    A damaged newest one is put aside, which the log says, and the one before it taken. Raises
    UserError where none can be read; nothing is removed. look_only: nothing is put aside either.
    """
    reasons = []
    for candidate in (path, before(path)):
        try:
            if candidate.exists():
                load_checkpoint(candidate)
                break
        except UserError as error:
            reasons.append(str(error))
    else:
        if reasons:
            raise UserError(
                f"{'; '.join(reasons)}. There is no other checkpoint (nothing was deleted): start "
                "the run anew with force=true, or choose another hydra.run.dir=FOLDER"
            )
        return None
    if reasons and not look_only:
        aside = path.with_name(f"damaged{path.suffix}")
        os.replace(path, aside)
        log.warning("%s. The run goes on from the checkpoint before it; the damaged one is kept as "
                    "%s", reasons[0], aside)  # fmt: skip
    return candidate


class CheckpointWriter:
    """Writes checkpoints in a thread of its own: the loop waits for a copy in memory, not for
    the disk. One at a time; the next waits for the one before it."""

    def __init__(
        self, path: Path, written: Callable[[dict[str, Any]], None] = lambda state: None
    ) -> None:
        """written: called, by that thread, with each state that has reached the disk."""
        self.path = path
        self.written = written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._readable = False  # as the first one has shown

    def save(self, state: dict[str, Any]) -> None:
        """Copy `state` as it is now, and have it written. Raises what the last writing raised."""
        self.wait()
        copied = snapshot(state)
        done = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if done is not None:  # the copies out of the device are under way
            done.record()

        def write() -> None:
            if done is not None:
                done.synchronize()
            save_checkpoint(self.path, copied)
            if not self._readable:  # a method's state may hold what no checkpoint can
                load_checkpoint(self.path)
                self._readable = True
            self.written(copied)

        self._writing = self._thread.submit(write)

    def wait(self) -> None:
        """Until the last checkpoint is on the disk. Raises what writing it raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def snapshot(state: Any) -> Any:
    """A copy on the host that later steps don't change. CUDA tensors go to pinned memory without
    waiting: synchronise before reading."""
    if isinstance(state, Tensor):
        if not state.is_cuda:
            return state.clone()
        pinned = torch.empty_like(state, device="cpu", pin_memory=True)
        return pinned.copy_(state, non_blocking=True)
    if isinstance(state, dict):
        copied = copy.copy(state)  # with what a module's state says of its version
        for name, value in state.items():
            copied[name] = snapshot(value)
        return copied
    if isinstance(state, list):
        return [snapshot(value) for value in state]
    if isinstance(state, tuple):
        return tuple(snapshot(value) for value in state)
    return state


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Raises a UserError that names a file which is corrupt, truncated or not a checkpoint."""
    try:
        state = torch_file.load(path)
        if not isinstance(state, dict) or "trainer" not in state:
            raise torch_file.Unreadable("not a checkpoint of this framework")
    except torch_file.Unreadable as error:
        raise UserError(f"{path} can't be read as a checkpoint ({error})") from error
    return state


class TorchRandom:
    """PyTorch's own random numbers (dropout in a user's model), on the CPU and this CUDA device."""

    def state_dict(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            states["cuda"] = torch.cuda.get_rng_state()
        return states

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if torch.cuda.is_initialized() and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])

    def reseed(self, step: int) -> None:
        """Other numbers than the run began with, decided by its seed and `step`."""
        torch.manual_seed((torch.initial_seed() + 1_000_003 * step) % 2**63)
