"""Whether a setting's value fits the annotation of its parameter, and what to say if not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mosaickd.errors import UserError, nearest

#: By pydantic's names of errors: what a value must be, in the words of a YAML's reader.
EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    **dict.fromkeys(("list_type", "tuple_type", "iterable_type"), "a list"),
    "missing": "a longer list",
    "too_long": "a shorter list",
    "dict_type": "a section",
    "callable_type": "a section with a _target_",
    "none_required": "null",
    "greater_than": "> {gt:g}",
    "greater_than_equal": ">= {ge:g}",
    "less_than": "< {lt}",
    "less_than_equal": "<= {le:g}",
}
#: The errors of annotations that only Python objects fit: tensors, modules, protocols.
UNJUDGED = ("needs_python_object", "is_instance_of")


def check_value(value: Any, hint: Any, path: str) -> None:
    """Raise a UserError where a value does not fit an annotation. path: the setting.

    An annotation that no value of a YAML file could fit (Tensor, nn.Module) excuses every value,
    unless it is one of several that some could fit (float | Tensor).
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            validator = TypeAdapter[Any](hint, config=ConfigDict(arbitrary_types_allowed=True))
        # As JSON, because YAML has its types: lists do for tuples, strings for enums.
        validator.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as invalid:
        for error in invalid.errors():
            if error["type"] in UNJUDGED:
                continue
            if error["type"] in EXPECTED:
                expected = EXPECTED[error["type"]].format(**error.get("ctx", {}))
            else:
                expected = error["msg"].removeprefix("Input should be ")
            raise UserError(f"{path} must be {expected}, got {value!r}") from invalid
    except Exception:  # of an annotation that pydantic can't judge
        return


def describe_unknown(path: str, accepted: Iterable[str]) -> str:
    """Return the message for a setting that nothing reads, with the nearest accepted names."""
    key = path.rpartition(".")[2]
    names = sorted(accepted)
    return f"{path} is unknown{nearest(key, names)}; accepted here: {', '.join(names)}"
