"""Write checkpoints atomically and in a thread; read them without running code."""

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

from mosaickd.errors import UserError
from mosaickd.utils.files import write_atomically
from mosaickd.utils.torch_io import load_torch_file

log = logging.getLogger(__name__)


def previous(path: Path) -> Path:
    """Return where the checkpoint before the one at `path` lies."""
    return path.with_name(f"previous{path.suffix}")


def exist(path: Path) -> bool:
    """Return whether there is a checkpoint to resume from, the newest or the one before."""
    return path.exists() or previous(path).exists()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, and keep the one that was the newest until now as the previous one.

    state: tensors, numbers, texts, lists and dicts of these.
    """
    buffer = io.BytesIO()  # torch.save hides why a file can't be written, such as a full disk
    torch.save(state, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()), previous(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Raise UserError, which names the file, where it is damaged."""
    try:
        state = load_torch_file(path)
        if not isinstance(state, dict) or "trainer" not in state:
            raise ValueError("not a checkpoint of this framework")
    except ValueError as error:
        raise UserError(f"{path} can't be read as a checkpoint ({error})") from error
    return state


def newest_readable(path: Path, *, read_only: bool = False) -> Path | None:
    """Return the checkpoint to resume from, or None where there is none.

    Where the newest is damaged, rename it, warn, and return the one before it. read_only: rename
    nothing. Raise UserError where there are checkpoints and none can be read.
    """
    errors = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            load_checkpoint(candidate)
        except UserError as error:
            errors.append(str(error))
            continue
        if errors and not read_only:
            damaged = path.with_name(f"damaged{path.suffix}")
            os.replace(path, damaged)
            log.warning("%s. The run goes on from the checkpoint before it; the damaged one is "
                        "kept as %s", errors[0], damaged)  # fmt: skip
        return candidate
    if errors:
        raise UserError(
            f"{'; '.join(errors)}. There is no other checkpoint (nothing was deleted): start the "
            "run anew with force=true, or choose another hydra.run.dir=FOLDER"
        )
    return None


class CheckpointWriter:
    """Write checkpoints in a thread: training waits for a copy in memory, not for the disk.

    One at a time; a second `save` waits for the first. on_written: called by that thread with each
    state that has reached the disk.
    """

    def __init__(
        self, path: Path, on_written: Callable[[dict[str, Any]], None] = lambda state: None
    ) -> None:
        self.path = path
        self.on_written = on_written
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._verified = False

    def save(self, state: dict[str, Any]) -> None:
        """Copy `state` as it is now, and start writing it. Raise what the last writing raised."""
        self.wait()
        copied = snapshot(state)
        copies_done = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if copies_done is not None:
            copies_done.record()

        def write() -> None:
            if copies_done is not None:
                copies_done.synchronize()
            save_checkpoint(self.path, copied)
            if not self._verified:  # a method's state may hold what no checkpoint can
                load_checkpoint(self.path)
                self._verified = True
            self.on_written(copied)

        self._pending = self._executor.submit(write)

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk. Raise what writing it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the last checkpoint, and end the thread."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()


def snapshot(state: Any) -> Any:
    """Return a copy on the host that later steps don't change.

    CUDA tensors are copied to pinned memory without waiting: synchronise before reading them.
    """
    if isinstance(state, Tensor):
        if not state.is_cuda:
            return state.clone()
        pinned = torch.empty_like(state, device="cpu", pin_memory=True)
        return pinned.copy_(state, non_blocking=True)
    if isinstance(state, dict):
        copied = copy.copy(state)  # a module's state dict has its version as an attribute
        for name, value in state.items():
            copied[name] = snapshot(value)
        return copied
    if isinstance(state, list):
        return [snapshot(value) for value in state]
    if isinstance(state, tuple):
        return tuple(snapshot(value) for value in state)
    return state


class TorchRNG:
    """Save and restore PyTorch's default generators, of the CPU and of this CUDA device."""

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
        """Start other random numbers than the run's first, decided by its seed and `step`."""
        torch.manual_seed((torch.initial_seed() + 1_000_003 * step) % 2**63)
