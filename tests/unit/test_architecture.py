"""Who may import whom, as docs/architecture.md says: read from the source."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import mosaickd

PACKAGE = Path(mosaickd.__file__).parent
MODULES = {
    ".".join(("mosaickd", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

#: Rooms, and what of the others each may import. Leaves know nothing of the others.
LEAVES = ("errors", "constraints", "metric_names")
ALLOWED = {
    **{leaf: set[str]() for leaf in LEAVES},
    "utils": {"errors"},
    "run_dir": {"errors", "utils", "metric_names"},
    "losses": {"errors"},
    "data": {"errors", "utils", "constraints"},
    "models": {"errors", "utils", "constraints"},
    "methods": {"errors", "constraints", "losses"},
    "engine": {
        *("errors", "utils", "constraints", "metric_names", "run_dir"),
        *("methods.base", "models.weights"),
    },
    "analysis": {"errors", "utils", "metric_names", "run_dir", "methods"},
    "config": {"errors", "constraints", "engine.settings", "methods.inputs"},
}
#: These build runs, or read commands, and see everything; of the others, only `config` knows Hydra.
TOP = {"launch", "load_data", "components", "teachers", "tracking", "loaded_run", "cli"}
#: Programs for people: they read run folders, by `analysis`.
PROGRAMS = {
    "report": {"analysis", "errors", "utils", "cli"},
    "figures": {"analysis", "errors", "utils", "cli", "loaded_run"},
    "status": {"analysis", "errors", "cli"},
    "dashboard": {"analysis", "errors", "cli", "utils", "metric_names", "run_dir"},
}
ROOMS = ALLOWED | PROGRAMS


@cache
def imports(module: str) -> frozenset[str]:
    """Return the dotted names that a module imports anywhere in its source, also in functions."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import; write it in full"
            for alias in node.names:  # `from mosaickd import losses` imports a module too
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in MODULES else str(node.module))
    return frozenset(names)


def room(module: str) -> str:
    """mosaickd.data.loader -> data"""
    return module.split(".")[1] if "." in module else ""


def within(*rooms: str) -> list[str]:
    return [module for module in MODULES if room(module) in rooms]


def test_imports_are_read() -> None:
    assert {"torch", "omegaconf", "mosaickd.engine.loop"} <= imports("mosaickd.launch")
    assert "wandb" in imports("mosaickd.engine.trackers"), "inside of functions too"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) not in ("", *TOP)])
def test_each_room_imports_only_what_it_may(module: str) -> None:
    own = room(module)
    assert own in ROOMS, f"{own} is a new room: say here what it may import"
    for name in imports(module):
        if name.split(".")[0] == "mosaickd" and room(name) not in ("", own):
            allowed = {room(name), name.removeprefix("mosaickd.")} & ROOMS[own]
            assert allowed, f"{module} imports {name}; {own} may import {sorted(ROOMS[own])}"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) not in ("config", *TOP)])
def test_only_what_reads_configs_knows_hydra(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(module)} & {"hydra", "omegaconf"}


@pytest.mark.parametrize("module", within("methods"))
def test_methods_import_the_base_and_never_each_other(module: str) -> None:
    others = {name for name in imports(module) if room(name) == "methods"}
    assert others <= {"mosaickd.methods.base"}


@pytest.mark.parametrize("module", within("analysis"))
def test_reports_read_run_folders_only(module: str) -> None:
    outside = {name.split(".")[0] for name in imports(module)}
    assert not outside & {"torch", "torchvision", "wandb"}


def test_help_configs_and_reports_do_without_torch(tmp_path: Path) -> None:
    """These modules, and all that they import: where one wants torch, the traceback shows which."""
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    names = ["mosaickd.config.schema", "mosaickd.cli", "mosaickd.report", "mosaickd.status",
             *within("analysis")]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(names)}"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_a_file_fits_on_a_few_screens(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= 500
