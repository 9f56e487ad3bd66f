"""Every choice of every group, every experiment, every cell of every sweep: composed, validated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mosaickd import config
from mosaickd.config import CONF, SWEEPS, options, validate
from mosaickd.errors import UserError

ROOTS = {"folder", "parquet"}  # sources that have no root of their own


@pytest.fixture(autouse=True, scope="module")
def _hydra() -> Iterator[None]:
    config.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    HydraConfig.instance().cfg = None


def composed(*overrides: str) -> DictConfig:
    """The config, with Hydra's own beside it where validation looks for the command line."""
    cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def check(*overrides: str) -> DictConfig:
    cfg = composed(*overrides)
    folder = cfg.hydra.sweep.subdir if cfg.hydra.mode == RunMode.MULTIRUN else cfg.hydra.run.dir
    assert folder
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    OmegaConf.resolve(own)
    validate(own)
    return cfg


def choices(folder: Path) -> list[str]:
    found = options(folder)
    assert found, f"{folder} is empty"
    return found


def aliased() -> Iterator[tuple[str, str]]:
    for alias, group in (("teacher", "model"), ("student", "model"), ("ood", "dataset")):
        for name in choices(CONF / group):
            yield alias, name


# ------------------------------------------------------------------------------------- every choice


@pytest.mark.parametrize(("alias", "name"), list(aliased()))
def test_every_model_and_data_set_can_be_chosen_under_each_of_its_names(
    alias: str, name: str
) -> None:
    root = [f"{alias}.root=somewhere"] if name in ROOTS else []
    assert check(f"{alias}={name}", *root)[alias].name == name


@pytest.mark.parametrize("name", choices(CONF / "dataset"))
@pytest.mark.parametrize("method", ["scratch", "mosaic"])
def test_every_data_set_can_be_the_domain(name: str, method: str) -> None:
    root = ["dataset.root=somewhere"] if name in ROOTS else []
    assert check(f"dataset={name}", f"method={method}", *root).dataset.name == name


@pytest.mark.parametrize("group", ["method", "train", "tracker", "generator", "discriminator"])
def test_every_choice_of_the_other_groups(group: str) -> None:
    for name in choices(CONF / group):
        check(f"{group}={name}")


def test_no_group_is_forgotten_here() -> None:
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    known = {"model", "dataset", "method", "train", "tracker", "generator", "discriminator"}
    assert groups == known | {"experiment"}
    sweeps = {folder.name for folder in SWEEPS.iterdir() if any(folder.glob("*.yaml"))}
    assert sweeps <= {"sweep", "pair"}


@pytest.mark.parametrize("name", choices(CONF / "experiment"))
def test_every_experiment(name: str) -> None:
    check(f"experiment={name}")


@pytest.mark.parametrize("name", choices(SWEEPS / "pair"))
def test_every_pair_is_what_its_name_says(name: str) -> None:
    teacher, student = name.split("-")
    for method in ("kd", "mosaic"):
        cfg = check(f"pair={name}", f"method={method}")
        assert (cfg.teacher.name, cfg.student.name) == (teacher, student)


@pytest.mark.parametrize("given", ["teacher=wrn40_2", "student=wrn16_1"])
def test_a_pair_beside_a_teacher_or_student_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="pair="):
        check("pair=wrn40_2-wrn16_1", given)


@pytest.mark.parametrize("given", ["teacher=wrn40_2", "ood=svhn", "ood.limit=5"])
def test_what_a_method_would_ignore_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="no effect"):
        check("method=scratch", given)


# -------------------------------------------------------------------------------------- every sweep


def cells(sweep: str, *arguments: str) -> list[list[str]]:
    """The overrides of each job that `python run.py -m sweep=NAME` launches."""
    hydra = composed(f"sweep={sweep}").hydra
    assert hydra.mode == RunMode.MULTIRUN, "hydra.mode: MULTIRUN, so that -m may be forgotten"
    params = hydra.sweeper.params or {}
    given = {argument.partition("=")[0] for argument in arguments}
    lines = [f"{key}={value}" for key, value in params.items() if key not in given]
    overrides = OverridesParser.create().parse_overrides([f"sweep={sweep}", *lines, *arguments])
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    return [list(cell) for cell in batch]


@pytest.mark.parametrize("sweep", choices(SWEEPS / "sweep"))
def test_every_cell_of_every_sweep(sweep: str) -> None:
    jobs = cells(sweep, "seed=0,1")
    assert len(jobs) >= 4, "at least two cells"
    folders = []
    for cell in jobs:
        cfg = check(*cell)
        assert Path(cfg.hydra.sweep.dir) == Path("outputs") / sweep
        folders.append(cfg.hydra.sweep.subdir)
    assert len(set(folders)) == len(folders), "two cells in one folder"


@pytest.mark.parametrize("sweep", choices(SWEEPS / "sweep"))
def test_every_sweep_opens_with_its_command(sweep: str) -> None:
    text = (SWEEPS / "sweep" / f"{sweep}.yaml").read_text()
    assert f"python run.py -m sweep={sweep}" in text


# --------------------------------------------------------------------------------- the default run


def test_no_argument_is_the_headline_cell_with_the_papers_weights() -> None:
    cfg = check()
    names = [cfg[part].name for part in ("method", "dataset", "ood", "teacher", "student")]
    assert names == ["mosaic", "cifar100", "cifar10", "wrn40_2", "wrn16_1"]
    method = cfg.method
    assert (method.adv, method.align, method.local, method.balance) == (1, 1, 1, 10)
    assert (method.temperature, method.student_steps) == (1, 5)
    assert (method.ood_in_student_batch, method.ood_statistics) == (True, "ood")
    assert (cfg.generator.latent_dim, cfg.generator.width) == (100, 64)
    assert cfg.discriminator.width == 128
    assert (cfg.train.epochs, cfg.train.batch_size, cfg.train.steps) == (200, 256, None)
    for player in ("generator", "discriminator"):
        adam = cfg.players[player].optimizer
        assert (adam._target_, adam.lr) == ("torch.optim.Adam", 1e-3)
        assert list(adam.betas) == [0.5, 0.999]
    sgd = cfg.players.student.optimizer
    assert (sgd._target_, sgd.lr) == ("torch.optim.SGD", 0.1)
    assert (sgd.momentum, sgd.weight_decay) == (0.9, 1e-4)
    assert {node.schedule._target_.split(".")[-1] for node in cfg.players.values()} == {"cosine"}
    assert cfg.hydra.run.dir == "outputs/mosaic/cifar100-cifar10/wrn40_2-wrn16_1/seed0"


def test_kd_is_the_authors_recipe() -> None:
    cfg = check("method=kd")
    sgd = cfg.players.student.optimizer
    assert (cfg.method.temperature, cfg.method.ood_statistics) == (5, "dataset")
    assert (cfg.train.epochs, cfg.train.batch_size) == (200, 128)
    assert (sgd.lr, sgd.momentum, sgd.weight_decay) == (0.1, 0.9, 1e-4)
    assert cfg.players.keys() == {"student"}


def test_the_statistics_of_the_paper_tables_images() -> None:
    half = [0.5, 0.5, 0.5]
    expected = {
        "cifar100": ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
        "cifar10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
        "svhn": (half, half), "imagenet32": (half, half), "places365_32": (half, half),
    }  # fmt: skip
    for name, (mean, std) in expected.items():
        ood = composed(f"ood={name}").ood
        assert (list(ood.mean), list(ood.std)) == (mean, std), name


def test_a_quickstart_can_be_played_with_another_method() -> None:
    """The first thing that a newcomer tries."""
    for method in ("kd", "scratch"):
        check("experiment=quickstart", f"method={method}")
