"""YAML files from elsewhere: the parts that they name are checked before they are built."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from conftest import Cli, Outcome, Tiny
from forked import Forked

#: A package that leaves a `marker` when it is imported.
EVIL = """
import pathlib
from torch import nn

pathlib.Path(__file__).with_name("marker").touch()


class Net(nn.Module):
    def __init__(self, *, num_classes):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.fc(self.body(images).relu().mean(dim=(2, 3)))
"""
TOUCH = "_target_: subprocess.check_output, args: [touch, marker]"

#: The content of an experiment, and the words of the message for it.
FOREIGN = {
    "a reader": ("dataset: {reader: {_target_: evil.Net}}", ["dataset.reader._target_", "evil"]),
    "a part": (f"student: {{depth: {{{TOUCH}}}}}", ["student.depth._target_", "subprocess"]),
    "a part that is not built": (f"generator: {{{TOUCH}}}", ["generator._target_"]),
    "a section from a text": (
        """student: '${oc.create:"{name: x, _target_: evil.Net}"}'""",
        ["student._target_", "evil"],
    ),
    "trust in itself": (
        "allow_targets: [evil]\nstudent: {_target_: evil.Net}",
        ["allow_targets", "command line"],
    ),
}


@pytest.fixture
def forked(cli: Cli) -> Forked:
    (cli.folder / "evil.py").write_text(EVIL)
    return Forked(cli.folder, cli.logs)


def import_from_here() -> None:
    """As PYTHONPATH=. does for a process that starts anew."""
    sys.path.insert(0, os.getcwd())


def assert_refused(outcome: Outcome, folder: Path, *words: str) -> None:
    assert outcome.code == 1, outcome.text
    assert "Traceback" not in outcome.text
    assert all(word in outcome.err for word in words), outcome.err
    assert not (folder / "marker").exists()


@pytest.mark.parametrize("name", FOREIGN)
def test_an_experiment_chooses_no_code(forked: Forked, name: str) -> None:
    content, words = FOREIGN[name]
    path = forked.folder / "conf" / "experiment" / "theirs.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\n" + content)
    arguments = ["--config-dir", "conf", "experiment=theirs"]
    outcome = forked.start(*arguments, before=import_from_here).wait()
    assert_refused(outcome, forked.folder, *words)


@pytest.mark.parametrize(
    "multirun", [[], pytest.param(["-m"], marks=pytest.mark.slow)], ids=["run", "sweep"]
)
def test_a_package_that_the_user_trusts_is_built(
    forked: Forked, tmp_path: Path, multirun: list[str]
) -> None:
    model = forked.folder / "conf" / "model" / "net.yaml"
    model.parent.mkdir(parents=True)
    model.write_text("{_target_: evil.Net, name: net, checkpoint: null}")
    tiny = Tiny(tmp_path / "glyphs").scratch("student=net", "train.steps=1", "hydra.run.dir=run")
    arguments = [*multirun, "--config-dir", "conf", *tiny, "allow_targets=[evil]"]
    outcome = forked.start(*arguments, before=import_from_here).wait()
    assert outcome.code == 0, outcome.text
    assert (forked.folder / "marker").exists(), "it ran, so the tests above would see it"
