"""How methods play: turns of one loop. `base` states the contract; one file a method."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def display_name(name: str) -> str:
    """Return what the class in `methods/NAME.py` calls itself, or the name where it doesn't.

    Reads the source: to import a method would load torch.
    """
    path = Path(__file__).parent / f"{name}.py"
    if not name.isidentifier() or not path.exists():
        return name
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = any(isinstance(t, ast.Name) and t.id == "display_name" for t in targets)
            if named and isinstance(node.value, ast.Constant):
                return str(node.value.value)
    return name
