"""Checkpoints: written whole or not at all, read without executing pickled code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from mosaickd.errors import UserError
from mosaickd.files import write_atomically


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """state: tensors, numbers, texts, lists and dicts of these."""
    write_atomically(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Raises a UserError that names a file which is corrupt, truncated or not a checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch doesn't look at the checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} in it is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise just about anything
        raise _unreadable(path, error) from error
    if not isinstance(state, dict) or "game" not in state:
        raise _unreadable(path, ValueError("not a checkpoint of this framework"))
    return state


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
    return UserError(
        f"{path} can't be read as a checkpoint ({reason}); delete it, or start the run anew "
        "with force=true"
    )
