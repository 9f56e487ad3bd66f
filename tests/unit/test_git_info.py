"""Which code computed a number: the commit, and whether files differ from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

PRINT_VERSION = "from mosaickd.utils.git_info import code_version; print(code_version())"


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def version_in(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRINT_VERSION], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A work tree with the files that `code_version` looks at, and others beside them."""
    if not shutil.which("git"):
        pytest.skip("needs git")
    package = tmp_path / "mosaickd"
    (package / "utils").mkdir(parents=True)
    for name in ("__init__.py", "utils/__init__.py", "utils/git_info.py"):
        shutil.copy(REPO / "mosaickd" / name, package / name)
    for name in ("conf", "sweeps"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text("a: 1")
    (tmp_path / "run.py").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".gitignore").write_text("__pycache__")
    return tmp_path


def test_the_commit_and_whether_files_differ_from_it(project: Path) -> None:
    assert version_in(project) == "{'commit': None, 'dirty': None}"
    git(project, "init", "-q")
    assert version_in(project) == "{'commit': None, 'dirty': None}", "in a work tree, but not of it"
    git(project, "add", ".")
    git(project, "commit", "-qm", "all")
    commit = git(project, "rev-parse", "HEAD")
    (project / "notes.txt").write_text("mine")
    assert version_in(project) == f"{{'commit': '{commit}', 'dirty': False}}"
    (project / "conf" / "a.yaml").write_text("a: 2")
    assert version_in(project) == f"{{'commit': '{commit}', 'dirty': True}}"
    git(project, "checkout", "-q", "conf")
    (project / "mosaickd" / "new.py").touch()
    assert version_in(project) == f"{{'commit': '{commit}', 'dirty': True}}"
