"""Which `_target_`s a config may name: parts of this project, of torch and of torchvision.

A `_target_` is a function to call, and YAML files are passed around. Names are checked before
anything is imported. What they resolve to is checked as well, because modules hold what they
import: torch.nn.modules.module.functools.partial is not torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra._internal.utils import _locate  # Hydra's public get_object logs errors as well

from mosaickd.errors import UserError, nearest

#: How a name must begin. Packages in `allow_targets` come in addition.
PREFIXES = (
    *("mosaickd.data.", "mosaickd.models.", "mosaickd.methods."),
    *("mosaickd.engine.schedules.", "mosaickd.engine.trackers."),
    *("torch.nn.", "torch.optim.", "torchvision.models.", "torchvision.ops."),
)


def check_targets(content: Any, allowed: Sequence[str]) -> None:
    """Raise a UserError for the first `_target_` that may not be built.

    content: a resolved config, nested dicts and lists. allowed: packages that the user trusts.
    """
    targets = list(find_targets(content))
    for path, name in targets:
        _check_name(name, name, path, allowed)
    for path, name in targets:
        target = resolve(name, path)
        if not callable(target):
            raise UserError(f"{path}: {name} is a {type(target).__name__}, which can't be called")
        module = getattr(target, "__module__", None) or type(target).__module__
        _check_name(f"{module}.", name, path, allowed)


def find_targets(content: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the place and the name of each `_target_` that has a value, wherever it stands."""
    if isinstance(content, dict):
        for key, value in content.items():
            place = f"{path}.{key}".lstrip(".")
            if key != "_target_":
                yield from find_targets(value, place)
            elif not isinstance(value, str):
                raise UserError(f"{place} must be a dotted name, got {value!r}")
            elif value != "???":
                yield place, value
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from find_targets(value, f"{path}.{index}")
    elif isinstance(content, str) and "${" in content:  # it would be resolved again when built
        raise UserError(f"{path} must not hold ${{ once it is resolved, got {content!r}")


def _check_name(module: str, name: str, path: str, allowed: Sequence[str]) -> None:
    """Refuse a `_target_` by where it lies. module: the name itself, or its owner's."""
    package = module.partition(".")[0]
    if package in allowed or module.startswith(PREFIXES):
        return
    owner = "" if module == name else f" (it belongs to {module.rstrip('.')})"
    known = sorted({prefix.partition(".")[0] for prefix in PREFIXES})
    raise UserError(
        f"{path}: a config may not build {name}{owner}{nearest(package, known)}; accepted: "
        f"{', '.join(f'{prefix}*' for prefix in PREFIXES)}. If you trust the package: "
        f"allow_targets=[{','.join([*allowed, package])}]"
    )


def resolve(name: str, path: str) -> Callable[..., Any]:
    """Return what a dotted name stands for. path: the setting, for the message."""
    try:
        return _locate(name)
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{path}: {name} can't be imported ({reason}){_suggest(name)}") from error


def _suggest(name: str) -> str:
    """Return `, did you mean ...?` with names of the same module that are alike, or nothing."""
    module, _, last = name.rpartition(".")
    try:
        return nearest(last, [known for known in dir(_locate(module)) if known[0] != "_"])
    except Exception:  # the module can't be imported either
        return ""
