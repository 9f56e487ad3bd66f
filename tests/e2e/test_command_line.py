"""Help, configs, exit codes; commands that can't be composed are answered without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO, Cli, Tiny, read_json
from forked import Forked


@pytest.fixture
def no_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing can import torch."""
    folder = tmp_path / "no_torch"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('libtorch.so: no such file')\n")
    return {"PYTHONPATH": str(folder)}


def test_cfg_job_shows_the_config_and_leaves_nothing_behind(
    cli: Cli, no_torch: dict[str, str]
) -> None:
    out = cli("--cfg", "job", "experiment=quickstart", "method=kd", "dataset.root=elsewhere",
              env=no_torch).out  # fmt: skip
    assert "temperature: 5.0" in out
    assert "root: elsewhere" in out
    assert not list(cli.folder.iterdir())


def test_help_shows_commands_and_groups(cli: Cli, no_torch: dict[str, str]) -> None:
    out = cli("--help", env=no_torch).out
    commands = [line for line in out.splitlines() if line.strip().startswith("python run.py")]
    assert len(commands) == 5
    for word in (
        "dataset", "ood", "teacher", "student", "method", "generator", "discriminator", "train",
        "tracker", "experiment", "sweep", "pair", "quickstart", "wrn40_2", "mosaic", "strokes",
    ):  # fmt: skip
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["methd=kd"], "did you mean method?"),
        (["method=mosiac"], "did you mean mosaic?"),
        (["teacher=wrn402"], "wrn40_2"),
        (["ood=cifar_10"], "cifar10"),
        (["ood=cifar10,null"], "give it alone"),
        (["sweep=quickstrat"], "quickstart"),
        (["sweep=figure6,quickstart"], "one sweep at a time"),
        (["train.stepz=3"], "train.steps"),
        (["train.precision=fp8"], "bf16"),
        (["teacher_missing=maybe"], "error"),
        (["dataset.classes=[0,1"], "not an override"),
        (["--config-name=mine"], "--config-dir DIR"),
        (["-m", "seed=0,1", "--cfg", "job"], "Only one of"),
        (["hydra/launcher=ray", "-m"], 'needs the plugin, pip install "mosaickd[ray]"'),
        (["hydra/launcher=jobblib", "-m"], "did you mean joblib?"),
        (["hydra.launcher.n_jobs=2", "-m"], "hydra/launcher=NAME chooses another: joblib, "),
    ],
)
def test_what_does_not_compose_is_explained(
    forked: Forked, arguments: list[str], words: str
) -> None:
    outcome = forked.start(*arguments).wait()
    assert outcome.code == 2, outcome.text
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1
    assert arguments[0].partition("=")[0] in outcome.err or "--cfg" in arguments
    assert words in outcome.err
    assert not list(forked.folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hydra.job.chdir=true"], "hydra.job.chdir=true would have relative paths"),
        (["-m", "method=glob(mosiac*)"], "no jobs: method=glob(mosiac*) stands for no value"),
    ],
)
def test_what_composes_but_cannot_be_meant_is_a_mistake(
    cli: Cli, arguments: list[str], words: str
) -> None:
    assert words in cli(*arguments, "experiment=quickstart", "tracker=none", code=1).err


def test_a_package_that_does_not_load_is_named(cli: Cli, no_torch: dict[str, str]) -> None:
    assert "method=mosiac" in cli("method=mosiac", env=no_torch, code=2).err, "it needs none"
    outcome = cli("experiment=quickstart", env=no_torch, code=1)
    assert outcome.err == "error: a package can't be loaded: libtorch.so: no such file\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_run_in_order(
    forked: Forked, tiny: Tiny, number: signal.Signals, code: int
) -> None:
    long = ["train.steps=100000", "train.checkpoint_every=2", "hydra.run.dir=run"]
    run = forked.start(*tiny.distil("kd", *long))
    run.until((forked.folder / "run" / "checkpoints" / "last.pt").exists)
    outcome = run.send(number)
    assert (outcome.code, outcome.err) == (code, "")
    assert f"stopped by {number.name} at step" in outcome.out
    assert read_json(forked.folder / "run" / "result.json")["status"] == "interrupted"


def test_other_commands_end_in_the_same_way(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mosaickd.report", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: no run below {tmp_path}\n"
