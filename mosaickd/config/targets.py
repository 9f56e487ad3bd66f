"""What the `_target_`s of a config may name: parts of this game, and packages the user trusts.

YAML files are passed around, and a `_target_` is a function to call: without a rule, whoever wrote
the file chooses what runs. Names are checked before anything is imported, because that runs code
too; what they turn out to be is checked afterwards, because modules hold what they import.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra._internal.utils import _locate  # what Hydra builds by; get_object logs errors too

from mosaickd.errors import UserError, nearest

#: Of each package that needs no trust: where a config's parts lie, and what they are.
PLACES = {
    "mosaickd": (
        *("mosaickd.data.", "mosaickd.models.", "mosaickd.methods."),
        *("mosaickd.engine.schedules.", "mosaickd.engine.trackers."),
    ),
    "torch": ("torch.nn.", "torch.optim."),
    "torchvision": ("torchvision.models.", "torchvision.ops."),
}
PARTS = {
    "mosaickd": "readers, models, methods, schedules and trackers",
    "torch": "layers (torch.nn), optimizers and their schedules (torch.optim)",
    "torchvision": "models and their layers (torchvision.models, torchvision.ops)",
}

#: What a part is: a class of some kind that is defined in a place, or a function that takes what
#: parts of its kind are called with. (Named, not imported: `--help` answers without torch.)
CLASSES = {
    "mosaickd.models": "torch.nn.Module",
    "mosaickd.methods": "mosaickd.methods.base.Method",
    "mosaickd.data.source": "mosaickd.data.source.Source",
    "mosaickd.engine.trackers": "builtins.object",
    "torch.nn.modules": "torch.nn.Module",
    "torch.optim": "torch.optim.Optimizer",
    "torch.optim.lr_scheduler": "torch.optim.lr_scheduler.LRScheduler",
    "torchvision.models": "torch.nn.Module",
    "torchvision.ops": "torch.nn.Module",
}
FUNCTIONS = {
    "mosaickd.data": {"root", "split", "image_size"},
    "mosaickd.engine.schedules": {"optimizer", "steps"},
}


def check_targets(content: Any, allowed: Sequence[str]) -> None:
    """Raise a UserError for the first `_target_` that is not to be built.

    content: a config, resolved: nested dicts and lists. allowed: packages that the user trusts,
    whole.
    """
    found = list(targets_in(content))
    for path, name in found:
        _check_name(path, name, allowed)
    for path, name in found:
        _check_thing(path, name, resolve(name, path), allowed)


def targets_in(content: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All `_target_`s, wherever they stand, with their places; those without a value are left out.

    A text that would be resolved once more when the section is built might become one: refused.
    """
    if isinstance(content, dict):
        for key, value in content.items():
            place = f"{path}.{key}".lstrip(".")
            if key != "_target_":
                yield from targets_in(value, place)
            elif not isinstance(value, str):
                raise UserError(f"{place} must be a dotted name, got {value!r}")
            elif value != "???":
                yield place, value
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from targets_in(value, f"{path}.{index}")
    elif isinstance(content, str) and "${" in content:
        raise UserError(f"{path} must not hold ${{ once it is resolved, got {content!r}")


def _check_name(path: str, name: str, allowed: Sequence[str]) -> None:
    """Refuse a name by its look; nothing is imported."""
    package = name.partition(".")[0]
    if package in allowed:
        return
    if package not in PLACES:
        raise UserError(_foreign(path, name, package, allowed))
    if not name.startswith(PLACES[package]):
        raise UserError(_no_part(path, name, package, allowed))


def resolve(name: str, path: str) -> Callable[..., Any]:
    """What a dotted name stands for. path: where it is said, for the message."""
    try:
        return _locate(name)
    except Exception as error:
        place, _, last = name.rpartition(".")
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(
            f"{path}: {name} can't be imported ({reason}){_alike(place, last)}"
        ) from error


def _alike(place: str, last: str) -> str:
    try:
        return nearest(last, [name for name in dir(_locate(place)) if name[0] != "_"])
    except Exception:  # the place is what can't be imported
        return ""


def _check_thing(path: str, name: str, thing: Any, allowed: Sequence[str]) -> None:
    """Refuse what a name turns out to be: torch.nn.modules.module.functools is not torch's."""
    if not callable(thing):
        raise UserError(f"{path}: {name} is a {type(thing).__name__}, which can't be called")
    function = thing.func if isinstance(thing, functools.partial) else thing
    home = str(getattr(function, "__module__", None))
    package = home.partition(".")[0]
    if package in allowed:
        return
    if package not in PLACES:
        raise UserError(_foreign(path, name, package, allowed, home))
    if not _is_part(thing, home):
        raise UserError(_no_part(path, name, package, allowed))


def _is_part(thing: Any, home: str) -> bool:
    """Whether something of mosaickd, torch or torchvision is a part that a run is made of."""
    if inspect.isclass(thing):
        return any(
            f"{home}.".startswith(f"{place}.") and issubclass(thing, _locate(kind))
            for place, kind in CLASSES.items()
        )
    if not inspect.isfunction(thing):
        return False
    if home.startswith("torchvision.models."):
        models = _locate("torchvision.models")
        return any(models.get_model_builder(name) is thing for name in models.list_models())
    parameters = set(inspect.signature(thing).parameters)
    return any(
        f"{home}.".startswith(f"{place}.") and taken <= parameters
        for place, taken in FUNCTIONS.items()
    )


def _foreign(
    path: str, name: str, package: str, allowed: Sequence[str], home: str | None = None
) -> str:
    who = f"{name} is from {home}, and that" if home else name
    return (
        f"{path}: {who} is not from {', '.join([*PLACES, *allowed][:-1])} or "
        f"{[*PLACES, *allowed][-1]}{nearest(package, PLACES)}; if you trust the package: "
        f"allow_targets=[{','.join([*allowed, package])}]"
    )


def _no_part(path: str, name: str, package: str, allowed: Sequence[str]) -> str:
    return (
        f"{path}: {name} is nothing that a config may build; of {package} these are "
        f"{PARTS[package]}. If you trust all of it: "
        f"allow_targets=[{','.join([*allowed, package])}]"
    )
