"""How methods play: turns of one loop. `base` states the contract; one file a method.

Importing this package imports no torch.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path


@functools.cache
def display_name(name: str) -> str:
    """Return what tables and plots call the method of `mosaickd/methods/<name>.py`.

    That is the class attribute `display_name`, read from the source, so that reports need no
    torch. A method without one, or of another package, goes by `name`.
    """
    path = Path(__file__).parent / f"{name}.py"
    if not name.isidentifier() or not path.is_file():
        return name
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.AnnAssign(
                target=ast.Name(id="display_name"), value=ast.Constant(value=str(text))
            ):
                return text
    return name
