"""Reading and writing network weights."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from mosaickd import torch_file
from mosaickd.errors import UserError, printable
from mosaickd.files import write_atomically

log = logging.getLogger(__name__)

T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]

LISTED = 20  # names in a message
LONGEST_NAME = 1000
LARGEST_RECORD = 2**20  # bytes of JSON
DEEPEST_RECORD = 20  # lists in lists
# Where weights hide in a training checkpoint; "s_state_dict" is the student in the authors'.
_WRAPPERS = ("state_dict", "model", "student", "s_state_dict")
# What DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")


def read_weights(
    path: str | os.PathLike[str], accept: Callable[[Shapes], None] = lambda shapes: None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a `.safetensors`, `.pth` or `.pt` file -> its weights on the CPU, and its record.

    accept: is shown every weight's shape before any is read, and raises for those that don't do.
    The record is what is known about the weights: metadata in the file, `accuracy` in percent
    where a checkpoint has `best_acc1`, and whatever a JSON file of the same name beside it says.
    Pickles are read without running code. Raises UserError, which names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights at {path}: " + _what_is_there(path))
    if path.suffix not in READERS:
        raise UserError(f"{path} is not a .safetensors, .pth or .pt file")

    def check(shapes: Shapes) -> None:
        if not shapes:
            raise UserError(f"{path} holds no weights")
        if (longest := max(map(len, shapes))) > LONGEST_NAME:
            raise UserError(f"{path} holds names of up to {longest:,} characters: not a network's")
        accept(_without_prefix(shapes))

    weights, record = READERS[path.suffix](path, check)
    record |= _read_json(path.with_suffix(".json"))
    return _without_prefix(weights), _checked_record(record, path)


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, role: str = "teacher"
) -> dict[str, Any]:
    """Load a file's weights into `model`, all of them or none, and return the file's record.

    `role` is what error messages call the model. Raises UserError when the file belongs to
    another architecture or another number of classes, and for weights that no network computes
    with; a file of other names or shapes is not read any further.
    """
    own_keys = list(model.state_dict())
    expected = _without_prefix(model.state_dict())
    weights, record = read_weights(
        path, lambda shapes: _check_shapes(model, shapes, expected, str(path), role)
    )
    for key, tensor in weights.items():
        _check_values(tensor, expected[key], f"{path}: {printable(key)}")
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


def _read_safetensors(
    path: Path, check: Callable[[Shapes], None]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(str(path), framework="numpy") as file:  # for torch it maps all at once
            record = {key: _from_text(text) for key, text in (file.metadata() or {}).items()}
            if isinstance(own := record.pop("record", None), dict):  # as save_weights writes it
                record |= own
            names = list(file.keys())
            check({name: tuple(file.get_slice(name).get_shape()) for name in names})
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}, record
    except UserError:
        raise
    except Exception as error:  # types and sizes that torch doesn't have surface variously
        raise _damaged(path, error) from error


def _from_text(text: str) -> Any:
    """Metadata is text in safetensors: ours is JSON, other people's may be anything."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_pickle(
    path: Path, check: Callable[[Shapes], None]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        described = _find_weights(torch_file.describe(path), path)
        check({name: tuple(tensor.shape) for name, tensor in described.items()})
        content = torch_file.load(path)
    except torch_file.AsksForCode as error:
        raise UserError(
            f"{path} was not read: {error}; save the network's state_dict() in place of the whole "
            "object"
        ) from error
    except torch_file.Unreadable as error:
        raise _damaged(path, error) from error
    best = content.get("best_acc1")
    if isinstance(best, Tensor) and best.numel() == 1:
        best = best.item()
    return _find_weights(content, path), {} if best is None else {"accuracy": best}


def _find_weights(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict that a file's content is, or has under a name that we know."""
    if isinstance(content, Mapping):
        wrapped = (content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping))
        content = next(wrapped, content)
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise UserError(
            f"{path} holds neither a state dict nor a checkpoint with one under "
            + ", ".join(f"'{name}'" for name in _WRAPPERS)
        )
    return dict(content)


def _damaged(path: Path, error: Exception) -> UserError:
    size = path.stat().st_size
    reason = printable(str(error), 200) or type(error).__name__
    return UserError(
        f"{path} ({size:,} bytes) is damaged, cut short, or not a file of weights; fetch or write "
        f"it again ({reason})"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(LARGEST_RECORD + 1)
        if len(text) > LARGEST_RECORD:
            raise ValueError(f"it is larger than {LARGEST_RECORD:,} bytes")
        record = json.loads(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}, the record beside the weights, can't be read: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}, the record beside the weights, is not a JSON object")
    return record


def _checked_record(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """A record may come from anywhere: its accuracy is a number of percent, or dropped."""
    if _deep(record):
        raise UserError(f"the record of {path} holds lists in lists without end: remove it")
    accuracy = record.get("accuracy")
    if accuracy is None or (type(accuracy) in (int, float) and 0 <= accuracy <= 100):
        return record
    said = repr(accuracy) if isinstance(accuracy, str | float) else type(accuracy).__name__
    log.warning(
        "the record of %s says accuracy = %s, which is not a number of percent: it is ignored",
        path, printable(said, 40),
    )  # fmt: skip
    return {key: value for key, value in record.items() if key != "accuracy"}


def _deep(value: Any, left: int = DEEPEST_RECORD) -> bool:
    inside = value.values() if isinstance(value, dict) else value
    return isinstance(value, dict | list) and (
        left == 0 or any(_deep(item, left - 1) for item in inside)
    )


def _without_prefix(weights: Mapping[str, T]) -> dict[str, T]:
    """Drop what wrappers put before the name of every weight."""
    weights = dict(weights)
    # More than one may be stacked, in either order.
    while weights and (prefix := _common_prefix(weights)):
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    return weights


def _common_prefix(keys: Iterable[str]) -> str | None:
    return next((p for p in _PREFIXES if all(key.startswith(p) for key in keys)), None)


def _check_shapes(
    model: nn.Module, shapes: Shapes, expected: Mapping[str, Tensor], path: str, role: str
) -> None:
    """Raises UserError unless these are the weights of a model with `expected` ones."""
    # BatchNorm's counters are absent from very old checkpoints, and no forward pass needs them.
    missing = [k for k in expected if k not in shapes and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in shapes if k not in expected]
    other = [k for k in expected if k in shapes and shapes[k] != expected[k].shape]
    if missing or unexpected:
        wrong = ", ".join(
            f"{len(keys)} keys {kind} ({_listed(keys)})"
            for kind, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        )
    elif other:
        _check_classes(model, shapes, expected, other, path, role)
        examples = _listed(
            [
                f"{key} {list(shapes[key])} in the file, {list(expected[key].shape)} in the model"
                for key in other
            ]
        )
        wrong = f"{len(other)} tensors have another shape ({examples})"
    else:
        return
    raise UserError(
        f"{path} is not a checkpoint of the {role}'s architecture ({type(model).__name__}): "
        f"{wrong}; choose the {role} that it was saved from, or another file"
    )


def _check_classes(
    model: nn.Module,
    shapes: Shapes,
    expected: Mapping[str, Tensor],
    other: list[str],
    path: str,
    role: str,
) -> None:
    """Raises UserError where nothing but the number of classes differs."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear or not {f"{linear[-1]}.weight"} <= {*other} <= {
        f"{linear[-1]}.weight",
        f"{linear[-1]}.bias",
    }:
        return
    old, new = shapes[f"{linear[-1]}.weight"], expected[f"{linear[-1]}.weight"].shape
    if len(old) == 2 and old[1] == new[1]:
        raise UserError(
            f"{path} has {old[0]} classes, the data set has {new[0]}: choose the dataset that "
            f"the {role} was trained on, or another checkpoint"
        )


def _check_values(tensor: Tensor, expected: Tensor, what: str) -> None:
    """Raises UserError for values that the model's own type can't hold, or can't have meant."""
    if (
        tensor.is_complex() != expected.is_complex()
        or (tensor.dtype == torch.bool) != (expected.dtype == torch.bool)
        or (expected.is_floating_point() and not tensor.is_floating_point())
    ):
        raise UserError(
            f"{what} holds values of {_type_name(tensor.dtype)}, the model's are "
            f"{_type_name(expected.dtype)}: choose another file"
        )
    if expected.is_floating_point() and not tensor.to(expected.dtype).isfinite().all():
        raise UserError(
            f"{what} holds values that are not finite: nothing can be learned from such weights; "
            "choose another file"
        )


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(items: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = [f"and {len(items) - LISTED} more"] if len(items) > LISTED else []
    return ", ".join([printable(item, 120) for item in items[:LISTED]] + more)


#: By suffix.
READERS = {".safetensors": _read_safetensors, ".pth": _read_pickle, ".pt": _read_pickle}
