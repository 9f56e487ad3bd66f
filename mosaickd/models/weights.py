"""Reading and writing network weights."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mosaickd.errors import UserError
from mosaickd.files import write_atomically

# Where weights hide in a training checkpoint; "s_state_dict" is the student in the authors'.
_WRAPPERS = ("state_dict", "model", "student", "s_state_dict")
# What DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a `.safetensors`, `.pth` or `.pt` file -> its weights on the CPU, and its record.

    The record is what is known about the weights: metadata in the file, `accuracy` in percent
    where a checkpoint has `best_acc1`, and whatever a JSON file of the same name beside it says.
    Pickles are read without running code. Raises UserError, which names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights at {path}: " + _what_is_there(path))
    if path.suffix == ".safetensors":
        weights, record = _read_safetensors(path)
    elif path.suffix in (".pth", ".pt"):
        weights, record = _read_pickle(path)
    else:
        raise UserError(f"{path} is not a .safetensors, .pth or .pt file")
    if not weights:
        raise UserError(f"{path} holds no weights")
    return _without_prefix(weights), record | _read_json(path.with_suffix(".json"))


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, role: str = "teacher"
) -> dict[str, Any]:
    """Load a file's weights into `model`, all of them or none, and return the file's record.

    `role` is what error messages call the model. Raises UserError when the file belongs to
    another architecture or another number of classes.
    """
    weights, record = read_weights(path)
    own_keys = list(model.state_dict())
    expected = _without_prefix(model.state_dict())
    # BatchNorm's counters are absent from very old checkpoints, and no forward pass needs them.
    missing = [k for k in expected if k not in weights and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in weights if k not in expected]
    if missing or unexpected:
        parts = [
            f"{len(keys)} keys {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for kind, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise UserError(
            f"{path} is not a checkpoint of the {role}'s architecture "
            f"({type(model).__name__}): {', '.join(parts)}; choose the {role} that it was saved "
            "from, or another file"
        )
    other_shape = [k for k in expected if k in weights and weights[k].shape != expected[k].shape]
    if other_shape:
        raise UserError(_explain_shapes(model, weights, expected, other_shape, str(path), role))
    own_key = dict(zip(expected, own_keys, strict=True))  # a compiled model's have a prefix
    model.load_state_dict({own_key[key]: tensor for key, tensor in weights.items()})
    return record


def weights_digest(module: nn.Module) -> str:
    """sha256, in hex, of all that a module remembers, by name."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_weights(
    module_or_state: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
) -> None:
    """Write weights and metadata as one safetensors file, of which no half is ever visible.

    A crash leaves either the old file or the new one. Values of `metadata` are anything JSON has;
    `read_weights` returns them as its record.
    """
    path = Path(path)
    if isinstance(module_or_state, nn.Module):
        module_or_state = module_or_state.state_dict()
    state = {key: _own_copy(tensor) for key, tensor in _without_prefix(module_or_state).items()}
    # One entry: the format has no order for several, and equal weights should be equal files.
    record = json.dumps(dict(metadata), default=_plain, sort_keys=True)
    data = safetensors.torch.save(state, metadata={"record": record})
    write_atomically(path, lambda file: file.write(data))


def _own_copy(tensor: Tensor) -> Tensor:
    """A contiguous CPU tensor that shares memory with no other: safetensors takes nothing else.

    Tied weights, views into one flat buffer and channels-last weights all come out plain.
    """
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _plain(value: Any) -> Any:
    """What JSON lacks: numbers in tensors become numbers, everything else its text."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else str(value)


def _what_is_there(path: Path) -> str:
    """For a file that is missing: what its folder holds instead."""
    if path.is_dir():
        return "it is a folder"
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    there = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".safetensors", ".pth"))
    return f"its folder has {', '.join(there[:10])}" if there else "its folder has no weights"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            record = {key: _from_text(text) for key, text in (file.metadata() or {}).items()}
            if isinstance(own := record.pop("record", None), dict):  # as save_weights writes it
                record |= own
            return {key: file.get_tensor(key) for key in file.keys()}, record  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _from_text(text: str) -> Any:
    """Metadata is text in safetensors: ours is JSON, other people's may be anything."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch has one exception for both: a pickle that names a function or class outside of
        # torch's list, and bytes that are no pickle.
        if "GLOBAL" in str(error) or "allowlist" in str(error):
            raise UserError(
                f"{path} can only be read by running code that it contains, so it was not: save "
                "the network's state_dict() in place of the whole object"
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # damaged bytes surface as nearly any exception
        raise _damaged(path, error) from error

    record: dict[str, Any] = {}
    if isinstance(content, Mapping):
        best = content.get("best_acc1")
        if isinstance(best, int | float) or (isinstance(best, Tensor) and best.numel() == 1):
            record["accuracy"] = float(best)
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise UserError(
            f"{path} holds neither a state dict nor a checkpoint with one under "
            + ", ".join(f"'{name}'" for name in _WRAPPERS)
        )
    return dict(content), record


def _damaged(path: Path, error: Exception) -> UserError:
    size = path.stat().st_size
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserError(
        f"{path} ({size:,} bytes) is damaged, cut short, or not a file of weights; fetch or write "
        f"it again ({reason})"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}, the record beside the weights, can't be read: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}, the record beside the weights, is not a JSON object")
    return record


def _without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what wrappers put before the name of every weight."""
    weights = dict(weights)
    # More than one may be stacked, in either order.
    while weights and (prefix := _common_prefix(weights)):
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    return weights


def _common_prefix(keys: Iterable[str]) -> str | None:
    return next((p for p in _PREFIXES if all(key.startswith(p) for key in keys)), None)


def _explain_shapes(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    keys: list[str],
    path: str,
    role: str,
) -> str:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if linear and set(keys) <= {f"{linear[-1]}.weight", f"{linear[-1]}.bias"}:
        old, new = weights[f"{linear[-1]}.weight"].shape, expected[f"{linear[-1]}.weight"].shape
        if old[1:] == new[1:]:
            return (
                f"{path} has {old[0]} classes, the data set has {new[0]}: choose the dataset that "
                f"the {role} was trained on, or another checkpoint"
            )
    examples = ", ".join(
        f"{key} {list(weights[key].shape)} in the file, {list(expected[key].shape)} in the model"
        for key in keys[:3]
    )
    return (
        f"{path} is not a checkpoint of the {role}'s architecture ({type(model).__name__}): "
        f"{len(keys)} tensors have another shape ({examples}); choose the {role} that it was "
        "saved from, or another file"
    )
