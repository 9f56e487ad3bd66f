"""Help, a look at the config, and commands that can't be composed: answered without torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cli


@pytest.fixture
def no_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing can import torch."""
    folder = tmp_path / "no_torch"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('torch was imported')\n")
    return {"PYTHONPATH": str(folder)}


def test_cfg_job_answers_at_once(cli: Cli, no_torch: dict[str, str]) -> None:
    attempts = [
        cli("--cfg", "job", "method=kd", "dataset.root=elsewhere", env=no_torch) for _ in range(2)
    ]
    assert min(attempt.seconds for attempt in attempts) < 2
    assert "temperature: 5.0" in attempts[0].out
    assert "root: elsewhere" in attempts[0].out
    assert not list(cli.folder.iterdir()), "looking leaves nothing behind"


def test_help_shows_commands_and_groups(cli: Cli, no_torch: dict[str, str]) -> None:
    out = cli("--help", env=no_torch).out
    commands = [line for line in out.splitlines() if line.strip().startswith("python run.py")]
    assert len(commands) == 5
    for group in (
        "dataset", "ood", "teacher", "student", "method", "generator", "discriminator", "train",
        "tracker", "experiment", "sweep", "pair",
    ):  # fmt: skip
        assert f"{group}" in out
    for option in ("quickstart", "cifar_mini", "wrn40_2", "vgg11", "mosaic", "strokes"):
        assert option in out


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("methd=kd", "did you mean method?"),
        ("method=mosiac", "did you mean mosaic?"),
        ("teacher=wrn402", "wrn40_2"),
        ("ood=cifar_10", "cifar10"),
        ("sweep=quickstrat", "quickstart"),
        ("experiment=quikstart", "quickstart"),
        ("train.stepz=3", "train.steps"),
        ("method.alignn=1", "method.align"),
        ("train.steps=abc", "train.steps"),
        ("train.precision=fp8", "bf16"),
        ("teacher_missing=maybe", "error"),
    ],
)
def test_what_does_not_compose_is_explained(
    cli: Cli, no_torch: dict[str, str], argument: str, said: str
) -> None:
    outcome = cli(argument, code=2, env=no_torch)
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1
    assert argument in outcome.err
    assert said in outcome.err.replace(argument, "")
    assert not list(cli.folder.iterdir())


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("hydra/launcher=ray", 'needs the plugin, pip install "mosaickd[ray]"'),
        ("hydra/launcher=jobblib", "did you mean joblib?"),
        ("hydra.launcher.n_jobs=2", "hydra/launcher=NAME chooses another: joblib, "),
    ],
)
def test_a_launcher_that_is_not_there_is_explained(
    cli: Cli, no_torch: dict[str, str], argument: str, said: str
) -> None:
    outcome = cli("-m", argument, "seed=0,1", code=2, env=no_torch)
    assert outcome.err.startswith(f"error: {argument}: ")
    assert len(outcome.err.splitlines()) == 1
    assert said in outcome.err
    assert not list(cli.folder.iterdir())


def test_a_slip_in_the_override_itself_names_it(cli: Cli, no_torch: dict[str, str]) -> None:
    outcome = cli("method=kd", "dataset.classes=[0,1", code=2, env=no_torch)
    assert "dataset.classes=[0,1" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["hydra.job.chdir=true"], 1, "hydra.job.chdir=true would have relative paths"),
        (["-m", "seed=0,1", "hydra.sweeper.max_batch_size=0"], 1, "must be at least 1, got 0"),
    ],
)
def test_settings_of_hydra_that_cannot_be_meant(
    cli: Cli, arguments: list[str], code: int, said: str
) -> None:
    outcome = cli(*arguments, "experiment=quickstart", "tracker=none", code=code)
    assert said in outcome.err


def test_a_package_that_does_not_load_is_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: no such file')\n")
    outcome = cli("experiment=quickstart", env={"PYTHONPATH": str(tmp_path)}, code=1)
    assert "a package can't be loaded: libtorch.so: no such file" in outcome.err


def test_a_sweep_without_cells_is_no_success(cli: Cli, no_torch: dict[str, str]) -> None:
    outcome = cli("-m", "experiment=quickstart", "method=glob(mosiac*)", code=1, env=no_torch)
    assert outcome.err == (
        "error: the sweep has no cells: method=glob(mosiac*) stands for no value\n"
    )


def test_methods_fit_into_the_quickstart(cli: Cli, no_torch: dict[str, str]) -> None:
    """A newcomer's second command."""
    for method in ("kd", "scratch"):
        cli("--cfg", "job", "experiment=quickstart", f"method={method}", env=no_torch)
