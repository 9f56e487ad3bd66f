"""Who may import whom: read from the source, so that the house stays as it was drawn."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
METHODS = {m for m in MODULES if m.startswith("mosaickd.methods.") and m != "mosaickd.methods.base"}

#: Parts of the house, and the only other parts that each may know. What a module's own part has
#: is allowed to it, except where a test below says otherwise.
ALLOWED = {
    "errors": set[str](),
    "bounds": set[str](),
    "metric_names": set[str](),
    "durations": set[str](),
    "programs": {"errors"},
    "account": set[str](),
    "files": {"errors"},
    "locks": {"errors"},
    "provenance": set[str](),
    "unpickling": set[str](),
    "torch_pickle": {"unpickling"},
    "torch_file": {"errors", "torch_pickle", "unpickling"},
    "losses": {"errors"},
    "data": {"errors", "files", "locks", "bounds", "unpickling"},
    "models": {"errors", "files", "bounds", "torch_file"},
    "methods": {"losses", "bounds", "errors"},
    "engine": {
        *("methods.base", "metric_names", "durations", "account", "run_dir"),
        *("bounds", "errors", "files", "locks", "torch_file"),
    },
    "report": {"errors", "programs", "locks", "metric_names", "durations"},
    "figures": {"errors", "programs", "files", "report", "metric_names", "revive"},
    "status": {"errors", "programs", "report", "metric_names", "locks", "durations"},
    "dashboard": {"errors", "programs", "report.paper", "report.words", "metric_names", "account"},
}
#: Above all others: what reads commands and configs, and what builds a run by them.
ABOVE = {
    *("command_line", "task", "cells", "parallel", "trust", "targets"),
    *("config", "validation", "identity", "launch", "run_folder"),
    *("fit", "gallery", "build", "parts", "teachers", "tracking", "revive"),
}
#: All that `report` and `figures` need in order to read files and to show what they found.
DRAWING = {"rich", "matplotlib", "numpy", "PIL", "yaml"}


def imports(module: str) -> Iterator[str]:
    """Dotted names that a module imports anywhere in its source, also inside of functions."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import; write it in full"
            assert node.module
            for alias in node.names:  # `from mosaickd import report` imports a module too
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def part(module: str) -> str:
    """mosaickd.data.loader -> data"""
    return module.split(".")[1] if "." in module else ""


def test_the_reader_of_imports_reads_them() -> None:
    """The other tests pass on an empty list as well: make sure that it isn't one."""
    assert len(MODULES) > 20
    found = set(imports("mosaickd.fit"))
    assert {"torch", "mosaickd.teachers", "mosaickd.engine.loop", "omegaconf"} <= found
    assert "wandb" in set(imports("mosaickd.engine.trackers")), "inside of functions too"
    assert {"mosaickd.methods.kd", "mosaickd.methods.mosaic"} <= METHODS


@pytest.mark.parametrize("module", MODULES)
def test_each_part_knows_only_what_it_may(module: str) -> None:
    own = part(module)
    if own not in ALLOWED:
        assert own in ABOVE | {""}, f"{own} is a new part: say here what it may know"
        return
    for name in imports(module):
        if name.split(".")[0] != "mosaickd" or part(name) in ("", own):
            continue
        allowed = ALLOWED[own]
        known = part(name) in allowed or name.removeprefix("mosaickd.") in allowed
        assert known, f"{module} imports {name}; {own} may know {sorted(allowed)}"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_launcher_and_its_kin_know_hydra(module: str) -> None:
    if part(module) in ABOVE:
        return
    known = {name.split(".")[0] for name in imports(module)}
    assert not known & {"hydra", "omegaconf"}, module


@pytest.mark.parametrize("module", [m for m in MODULES if m != "mosaickd.task"])
def test_nothing_knows_the_launcher(module: str) -> None:
    assert "mosaickd.launch" not in set(imports(module)), module


@pytest.mark.parametrize("method", sorted(METHODS))
def test_methods_never_import_each_other(method: str) -> None:
    assert not set(imports(method)) & (METHODS - {method}), method


@pytest.mark.parametrize(
    "module", [m for m in MODULES if part(m) in ("report", "figures", "status")]
)
def test_reports_read_files_only(module: str) -> None:
    import sys

    outside = {name.split(".")[0] for name in imports(module)}
    outside -= {"mosaickd", *sys.stdlib_module_names}
    extra = {"sklearn", "imageio_ffmpeg"} if part(module) == "figures" else set()
    assert outside <= DRAWING | extra, f"{module} imports {sorted(outside - DRAWING)}"


@pytest.mark.parametrize(
    "module",
    [
        *("mosaickd.config.schema", "mosaickd.cli", "mosaickd.report"),
        "mosaickd.status.__main__",
    ],
)
def test_help_and_cfg_answer_without_torch(module: str) -> None:
    """What these import, and what that imports, down to the last."""
    seen: set[str] = set()
    ahead = [module]
    while ahead:
        name = ahead.pop()
        if name in seen or name not in MODULES:
            assert name.split(".")[0] not in ("torch", "torchvision", "wandb"), f"{seen}"
            continue
        seen.add(name)
        parents = [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)]
        ahead += [*imports(name), *parents]


@pytest.mark.parametrize("module", MODULES)
def test_a_file_fits_on_a_few_screens(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= 500, module
