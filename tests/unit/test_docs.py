"""What the docs say exists: pages, links, files of the project, and commands that compose."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from composing import choices, composed, composing, own
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from mosaickd.config.schema import CONF
from mosaickd.config.validation import validate

REPO = Path(__file__).parents[2]
README = REPO / "README.md"
PAGES = [README, REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]
#: Words of the docs that a reader replaces.
PLACEHOLDERS = {"DIR": "somewhere", "FILE": __file__, "METHOD": "rkd"}


def name(page: Path) -> str:
    return str(page.relative_to(REPO))


@pytest.mark.skipif(
    any(importlib.util.find_spec(each) is None for each in ("mkdocs", "material")),
    reason='needs mkdocs and mkdocs-material: pip install -e ".[docs]"',
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "decisions" / "index.html").exists()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_of_the_pages_outside_of_docs_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", (REPO / page).read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith("https://"):
            continue
        linked = REPO / (path or page)
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    folders = "mosaickd|conf|sweeps|tests|benchmarks|docs"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text())
    made_up = {"conf/dataset/pets.yaml", "conf/model/tiny.yaml", "tests/unit/test_methods_sure.py"}
    assert not [path for path in {*named} - made_up if not (REPO / path).exists()]


@pytest.mark.parametrize("page", ["README.md", "docs/runs.md"])
def test_the_table_of_methods_lists_what_there_is(page: str) -> None:
    table = (REPO / page).read_text().partition("| `method=` |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert len(rows) >= 12
    assert {*rows} <= {*choices(CONF / "method")}  # a new one needs no row


# ------------------------------------------------------------------------------------- commands


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each `run.py` command in a page that can be composed as it stands."""
    text = page.read_text().replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL))
    inline = "\n".join(re.findall(r"`(python run\.py [^`\n]+)`", text))
    for line in f"{blocks}\n{inline}".splitlines():
        arguments = shlex.split(line.partition(" run.py")[2], comments=True)
        elsewhere = {"--config-dir", "--help", "...", "method=sure"} & {*arguments}
        if "run.py" in line and not elsewhere:
            yield [argument for argument in arguments if argument not in ("--cfg", "job")]


IN_README = sorted({tuple(each) for each in commands(README)})
ELSEWHERE = sorted({tuple(each) for page in PAGES for each in commands(page)} - {*IN_README})


@pytest.fixture(scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


@pytest.mark.usefixtures("_composing")
@pytest.mark.parametrize(
    "arguments",
    [*IN_README, *(pytest.param(each, marks=pytest.mark.slow) for each in ELSEWHERE)],
    ids=lambda each: " ".join(each),
)
def test_a_command_of_the_docs_composes(arguments: tuple[str, ...]) -> None:
    overrides = [
        re.sub(r"=([A-Z]+)$", lambda word: f"={PLACEHOLDERS[word[1]]}", argument)
        for argument in arguments
        if argument != "-m" and not re.match(r"\+?hydra[./]launcher", argument)  # of plugins
    ]
    for job in jobs(overrides) if "-m" in arguments else [overrides]:
        cfg = own(composed(*job))
        OmegaConf.resolve(cfg)
        validate(cfg)


def jobs(overrides: list[str]) -> list[list[str]]:
    """Return the first and the last job of a sweep."""
    sweeps = [each for each in overrides if each.startswith("sweep=")]
    params = (composed(*sweeps).hydra.sweeper.params or {}).items()
    lines = [*(f"{key}={value}" for key, value in params), *overrides]
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(lines), None)
    every = [list(job) for job in batch]
    return [every[0], every[-1]]


def test_commands_are_found() -> None:
    """The test above passes on an empty list as well: make sure that it isn't one."""
    assert ("experiment=quickstart",) in IN_README
    assert len(ELSEWHERE) > 20
