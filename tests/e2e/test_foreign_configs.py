"""YAML files from elsewhere: they choose settings, not code.

Most files below would make `marker` if what they name were called, or its module only imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from conftest import Cli, Outcome, Tiny, read_json
from forked import Forked

EVIL = """
import pathlib, logging
from torch import nn

MARKER = pathlib.Path(__file__).with_name("marker")
MARKER.touch()


def run(*args, **kwargs):
    return 0.1


class Handler(logging.Handler):
    pass


class Net(nn.Module):
    def __init__(self, *, num_classes):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.fc(self.body(images).relu().mean(dim=(2, 3)))
"""
TOUCH = "_target_: subprocess.check_output, args: [touch, marker]"
CALLBACK = "hydra: {callbacks: {mine: {_target_: evil.run}}}"
HANDLER = "hydra: {job_logging: {handlers: {console: {class: evil.Handler}}}}"
LAUNCHER = """
defaults:
  - override /hydra/launcher: submitit_local
hydra: {mode: MULTIRUN, launcher: {stderr_to_stdout: true}}
"""
SLURM = """
defaults:
  - override /hydra/launcher: submitit_slurm
hydra: {mode: MULTIRUN, launcher: {setup: ["touch marker"]}}
"""
SLURM_NAME = r"""
defaults:
  - override /hydra/launcher: submitit_slurm
hydra: {mode: MULTIRUN, job: {name: "x\ntouch marker"}}
"""

#: A YAML, and what the command that is given it says.
HOSTILE = {
    "a reader": ("dataset: {reader: {_target_: evil.run}}", ["dataset.reader._target_", "evil"]),
    "a tracker": (f"tracker: {{{TOUCH}}}", ["tracker._target_", "allow_targets=[subprocess]"]),
    "a part": (f"student: {{depth: {{{TOUCH}}}}}", ["student.depth._target_", "subprocess"]),
    "a part of a list": (
        f"student: {{_target_: torch.nn.Sequential, _args_: [{{{TOUCH}}}]}}",
        ["student._args_.0._target_"],
    ),
    "a part that is not built": (f"dataset: {{recipe: {{lr: {{{TOUCH}}}}}}}", ["recipe.lr"]),
    "a part that is handed on": (
        f"student: {{_recursive_: false, depth: {{{TOUCH}}}}}",
        ["student.depth._target_"],
    ),
    "a section that is not used": (f"generator: {{{TOUCH}}}", ["generator._target_"]),
    "a name from elsewhere": ("cell: evil.run\nstudent: {_target_: '${cell}'}", ["evil.run"]),
    "a section from a text": (
        """student: '${oc.create:"{name: x, _target_: evil.run}"}'""",
        ["student._target_", "evil"],
    ),
    "a section from a text that is resolved twice": (
        f"student: {{depth: '\\${{oc.create:\"{{{TOUCH}}}\"}}'}}",
        ["student.depth", "must not hold ${"],
    ),
    "what torch imports": (
        "student: {_target_: torch.nn.modules.module.functools.partial}",
        ["student._target_", "functools"],
    ),
    "what torch can do": ("student: {_target_: torch.hub.load}", ["torch.hub.load", "torch.nn"]),
    "what torchvision can do": (
        "student: {_target_: torchvision.models.get_model}",
        ["torchvision.models.get_model", "nothing that a config may build"],
    ),
    "what this package can do": (
        "student: {_target_: mosaickd.launch.clear}",
        ["mosaickd.launch.clear", "nothing that a config may build"],
    ),
    "what its modules import": (
        "student: {_target_: mosaickd.data.pictures.os.system}",
        ["student._target_", "os"],
    ),
    "trust in itself": (
        "allow_targets: [evil]\ndataset: {reader: {_target_: evil.run}}",
        ["allow_targets", "command line"],
    ),
    "trust in itself, as if it were typed": (
        "allow_targets: [evil]\nhydra: {overrides: {task: ['allow_targets=[evil]']}}",
        ["hydra.overrides"],
    ),
    "trust in itself, from a sweep": (
        "hydra: {mode: MULTIRUN, sweeper: {params: {allow_targets: '[evil]'}}}",
        ["hydra.sweeper.params", "allow_targets", "command line"],
    ),
    "Hydra's settings from a sweep": (
        "hydra: {mode: MULTIRUN, sweeper: {params: {+hydra.callbacks.x._target_: evil.run}}}",
        ["hydra.sweeper.params", "hydra.callbacks"],
    ),
    "a callback": (CALLBACK, ["hydra.callbacks.mine._target_", "evil"]),
    "a handler": (
        HANDLER,
        ["hydra.job_logging.handlers.console.class", "evil"],
    ),
    "a factory of handlers": (
        "hydra: {job_logging: {handlers: {console: {(): evil.run}}}}",
        ["hydra.job_logging.handlers.console.()", "evil"],
    ),
    "a formatter": (
        "hydra: {job_logging: {formatters: {plain: {(): evil.run}}}}",
        ["hydra.job_logging.formatters.plain.()", "evil"],
    ),
    "an object of logging's": (
        "hydra: {job_logging: {handlers: {console: {stream: 'ext://evil.run'}}}}",
        ["hydra.job_logging.handlers.console.stream", "evil"],
    ),
    "logging, from another setting": (
        "cell: evil.Handler\nhydra: {job_logging: {handlers: {console: {class: '${cell}'}}}}",
        ["hydra.job_logging.handlers.console.class"],
    ),
    "a log elsewhere": (
        "hydra: {job_logging: {handlers: {file: {filename: marker}}}}",
        ["hydra.job_logging.handlers.file.filename", "run's folder"],
    ),
    "a log elsewhere, by and by": (
        "hydra: {job_logging: {handlers: {file: {delay: true, .: {baseFilename: marker}}}}}",
        ["hydra.job_logging.handlers.file", "baseFilename"],
    ),
    "a sweep's handler": (
        "hydra: {mode: MULTIRUN, hydra_logging: {handlers: {console: {(): evil.run}}}}",
        ["hydra.hydra_logging.handlers.console.()", "evil"],
    ),
    "a sweeper": (
        "hydra: {mode: MULTIRUN, sweeper: {_target_: evil.run}}",
        ["hydra.sweeper._target_", "command line"],
    ),
    "a launcher's settings": (LAUNCHER, ["hydra.launcher.stderr_to_stdout", "command line"]),
    "a cluster's commands": (SLURM, ["hydra.launcher.setup", "command line"]),
    "a cluster's script": (SLURM_NAME, ["hydra.launcher.name", "one line"]),
    "an environment": (
        "hydra: {job: {env_set: {CXX: touch marker}}}",
        ["hydra.job.env_set.CXX", "command line"],
    ),
    "a place to import from": ("hydra: {searchpath: ['pkg://evil']}", ["hydra.searchpath"]),
}


#: One of each kind; the others take longer than they tell.
QUICK = {
    *("a reader", "a section from a text that is resolved twice", "what its modules import"),
    *("trust in itself", "trust in itself, as if it were typed", "trust in itself, from a sweep"),
    *("a callback", "a handler", "a log elsewhere", "a cluster's commands", "an environment"),
}
assert HOSTILE.keys() >= QUICK


@pytest.fixture
def forked(cli: Cli) -> Forked:
    (cli.folder / "evil.py").write_text(EVIL)
    return Forked(cli.folder, cli.logs)


def write(folder: Path, name: str, content: str) -> list[str]:
    path = folder / "conf" / "experiment" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# @package _global_\n" + content)
    return ["--config-dir", "conf"]


def own_packages() -> None:
    """As PYTHONPATH=. does for a process that starts anew."""
    sys.path.insert(0, os.getcwd())


def assert_refused(outcome: Outcome, folder: Path, *words: str) -> None:
    assert outcome.code in (1, 2), outcome.text
    assert "Traceback" not in outcome.text
    message = outcome.err[outcome.err.index("error: ") :]
    for word in words:
        assert word in message, message
    assert not (folder / "marker").exists()


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in HOSTILE],
)
def test_a_yaml_chooses_no_code(forked: Forked, name: str) -> None:
    content, words = HOSTILE[name]
    arguments = write(forked.folder, "theirs", content)
    outcome = forked.start(*arguments, "experiment=theirs", before=own_packages).wait()
    assert_refused(outcome, forked.folder, *words)


def test_nor_does_one_of_a_sweeps_cells(forked: Forked) -> None:
    write(forked.folder, "fine", "seed: -1")
    arguments = write(forked.folder, "theirs", HANDLER)
    cells = ["-m", *arguments, "experiment=theirs,fine"]
    outcome = forked.start(*cells, before=own_packages).wait()
    assert_refused(outcome, forked.folder, "hydra.job_logging.handlers.console.class", "evil")


def test_the_primary_config_stays_ours(forked: Forked) -> None:
    (forked.folder / "config.yaml").write_text("hydra: {searchpath: ['pkg://evil']}")
    for option in (f"--config-path={forked.folder}", "--config-name=theirs", "--config-n=theirs"):
        outcome = forked.start(option, before=own_packages).wait()
        assert_refused(outcome, forked.folder, "--config-dir")
    (forked.folder / "config.pickle").write_bytes(b"cevil\nrun\n.")
    outcome = forked.start("--experimental-rerun=config.pickle", before=own_packages).wait()
    assert_refused(outcome, forked.folder, "pickled code")


def test_trust_in_a_package_is_none_in_what_it_imports(forked: Forked) -> None:
    content = "hydra: {callbacks: {mine: {_target_: evil.pathlib.Path}}}"
    arguments = [*write(forked.folder, "theirs", content), "experiment=theirs"]
    outcome = forked.start(*arguments, "allow_targets=[evil]", before=own_packages).wait()
    assert outcome.code == 1, outcome.text
    assert "evil.pathlib.Path is from pathlib, and that is not from mosaickd" in outcome.err


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["run", "sweep"])
def test_what_the_user_trusts_is_built(forked: Forked, tmp_path: Path, multirun: list[str]) -> None:
    model = forked.folder / "conf" / "model" / "net.yaml"
    model.parent.mkdir(parents=True)
    model.write_text("{_target_: evil.Net, name: net, checkpoint: null}")
    arguments = ["--config-dir", "conf"]
    chosen = Tiny(tmp_path / "glyphs").scratch("student=net", "train.steps=1", "hydra.run.dir=run")
    trusting = [*multirun, *arguments, *chosen, "allow_targets=[evil]"]
    outcome = forked.start(*trusting, before=own_packages).wait()
    assert outcome.code == 0, outcome.text
    assert (forked.folder / "marker").exists(), "it ran, so the tests above would see it"
    (result,) = forked.folder.rglob("result.json")
    assert "allow_targets" not in read_json(result)["variant"], "it makes no other experiment"
