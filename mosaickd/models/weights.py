"""Read and write the weights of networks."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from mosaickd.errors import UserError, printable
from mosaickd.utils.files import read_json, write_atomically
from mosaickd.utils.torch_io import load_torch_file

log = logging.getLogger(__name__)

# Where a training checkpoint has its weights; "s_state_dict" is the student in the authors' files.
WRAPPERS = ("state_dict", "model", "student", "s_state_dict")
# What DataParallel and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")
SUFFIXES = (".safetensors", ".pth", ".pt")


def load_weights(model: nn.Module, path: str | Path, *, role: str = "teacher") -> dict[str, Any]:
    """Load a file's weights into `model`, all or none, and return the file's record.

    role: what error messages call the model. Raise UserError for weights of another architecture
    or number of classes, and for values that are not finite.
    """
    weights, record = read_weights(path)
    own_names = list(model.state_dict())  # a compiled model's have a prefix
    expected = _strip_prefixes(model.state_dict())
    mismatch = _compare_shapes(model, weights, expected) or _compare_values(weights, expected)
    if mismatch:
        raise UserError(
            f"{path} does not fit the {role} ({type(model).__name__}): {mismatch}. Choose the "
            "model and the data set that it was trained with, or another file"
        )
    own_name = dict(zip(expected, own_names, strict=True))
    model.load_state_dict({own_name[name]: tensor for name, tensor in weights.items()})
    return record


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of safetensors or torch.save. Return its weights on the CPU, and its record.

    The record is what is known of the weights: our metadata in a safetensors file, `accuracy` in
    percent where a checkpoint has `best_acc1`, and what a JSON file of the same name beside it
    says. No code in the file is run. Raise UserError, which names the file.
    """
    path = Path(path)
    if not path.is_file():
        names = sorted(p.name for p in path.parent.glob("*.*") if p.suffix in SUFFIXES)
        raise UserError(
            f"no file of weights at {path}; its folder has {', '.join(names[:10]) or 'none'}"
        )
    try:
        with open(path, "rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"  # eight bytes of length, then JSON
        weights, record = (_read_safetensors if is_safetensors else _read_torch)(path)
    except Exception as error:  # damaged bytes surface as nearly any exception
        raise UserError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged, or not a file of weights "
            f"({printable(str(error), 300)}): fetch it again, or save the network's state_dict() "
            "anew"
        ) from error
    if not weights:
        raise UserError(f"{path} holds no weights: choose another file")
    json_path = path.with_suffix(".json")
    beside = read_json(json_path) or {}
    if not isinstance(beside, dict):
        raise UserError(f"{json_path} is not a JSON object: mend or remove it")
    record |= beside
    accuracy = record.get("accuracy") or 0
    if not (isinstance(accuracy, int | float) and 0 <= accuracy <= 100):
        log.warning("the record of %s has accuracy = %s, which is not a number of percent: it is "
                    "ignored", path, printable(repr(accuracy), 40))  # fmt: skip
        del record["accuracy"]
    return _strip_prefixes(weights), record


def save_weights(
    module_or_state: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    metadata: Mapping[str, Any],
) -> None:
    """Write weights and metadata as one safetensors file, atomically.

    metadata: values that JSON has, or tensors of one number; `read_weights` returns it as the
    record.
    """
    if isinstance(module_or_state, nn.Module):
        module_or_state = module_or_state.state_dict()
    # safetensors takes contiguous tensors that share no memory: tied weights are written twice.
    state = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in _strip_prefixes(module_or_state).items()
    }
    # One entry: the format has no order for several, and equal weights should be equal files.
    record = json.dumps(dict(metadata), default=_to_json, sort_keys=True)
    data = safetensors.torch.save(state, metadata={"record": record})
    write_atomically(Path(path), lambda file: file.write(data))


def weights_digest(module: nn.Module) -> str:
    """Return the sha256, in hex, of a module's state dict: names and values, in order."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(str(path), framework="pt") as file:
        record = json.loads((file.metadata() or {}).get("record", "{}"))
        return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state dict, or a training checkpoint with one under a name of WRAPPERS."""
    content = weights = load_torch_file(path)
    if isinstance(content, Mapping):
        wrapped = (content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping))
        weights = next(wrapped, content)
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    ):
        raise ValueError(f"it holds neither a state dict nor one under {' or '.join(WRAPPERS)}")
    best = content.get("best_acc1")
    if isinstance(best, Tensor) and best.numel() == 1:
        best = best.item()
    return dict(weights), {} if best is None else {"accuracy": best}


def _strip_prefixes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what wrappers put before all names: several may be stacked, in any order."""
    for prefix in PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            return _strip_prefixes({n.removeprefix(prefix): t for n, t in weights.items()})
    return dict(weights)


def _to_json(value: Any) -> Any:
    """Return the number in a tensor of one, or the text of any other value."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else str(value)


def _compare_shapes(
    model: nn.Module, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> str | None:
    """Return how names and shapes differ from the model's, as a phrase, or None."""
    # BatchNorm's counters are absent from very old checkpoints, and no forward pass needs them.
    missing = [n for n in expected if n not in weights and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in weights if n not in expected]
    reshaped = [n for n in expected if n in weights and weights[n].shape != expected[n].shape]

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
    classifier = [f"{name}.{parameter}" for name in linear for parameter in ("weight", "bias")]
    if not missing and not unexpected and reshaped and {*reshaped} <= {*classifier}:
        old, new = (state[classifier[0]].shape for state in (weights, expected))
        if old[1:] == new[1:]:
            return f"it has {old[0]} classes, the data set has {new[0]}"

    shapes = [
        f"{name} {list(weights[name].shape)} in the file, {list(expected[name].shape)} in the model"
        for name in reshaped
    ]
    parts = [
        f"{len(items)} {kind} ({_abbreviate(items)})"
        for kind, items in (
            ("keys missing", missing),
            ("keys unexpected", unexpected),
            ("tensors of another shape", shapes),
        )
        if items
    ]
    return ", ".join(parts) or None


def _compare_values(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Return which weights a float parameter or buffer can't hold, as a phrase, or None."""
    for name, tensor in weights.items():
        dtype = expected[name].dtype
        if dtype.is_floating_point and not tensor.is_floating_point():
            return f"{name} holds values of {tensor.dtype}, the model's are {dtype}"
        if dtype.is_floating_point and not tensor.to(dtype).isfinite().all():
            return f"{name} holds values that are not finite"
    return None


def _abbreviate(items: list[str], limit: int = 5) -> str:
    more = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return ", ".join([*(printable(item, 120) for item in items[:limit]), *more])
