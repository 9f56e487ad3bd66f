"""Pickled dicts of numpy arrays, as CIFAR and downsampled ImageNet are published.

A pickle names functions and calls them. Here it may name only those that rebuild an array.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from mosaickd.errors import UserError, printable

ADVICE = "get the file again from where it was published"

#: What numpy arrays are pickled with; the modules that hold it have changed their names.
MODULES = {"numpy"} | {f"numpy.{core}.{name}" for core in ("core", "_core")
                       for name in ("multiarray", "numeric")}  # fmt: skip
RECONSTRUCTORS: dict[str, Any] = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "scalar": np.float64(0).__reduce__()[0],
    "_reconstruct": np.empty(0).__reduce__()[0],
    "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
}


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for _codecs.encode, with which protocols 0 to 2 hold bytes."""
    return text.encode("latin1")


class ArrayUnpickler(pickle.Unpickler):
    """Builds plain values and numpy arrays; refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may call. Raises UnpicklingError."""
        if module in MODULES and name in RECONSTRUCTORS:
            return RECONSTRUCTORS[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"it names {module}.{name}, which was not executed")


def load_arrays(path: Path) -> dict[str, Any]:
    """Return the pickled dict in a file. Raises UserError where it holds something else."""
    try:
        with open(path, "rb") as file:
            content = ArrayUnpickler(file, encoding="latin1").load()  # written by Python 2
    except Exception as error:  # a damaged pickle surfaces as nearly anything
        raise UserError(
            f"cannot read {path} ({type(error).__name__}: {printable(str(error), 200)}); it is "
            f"damaged, incomplete or no pickle of images: {ADVICE}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of images and "
                        f"labels; {ADVICE}")  # fmt: skip
    return content
