"""Each method's YAML states the numbers of its paper's recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from composing import check, choices, composed, composing
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write

from mosaickd.config.run_key import variant
from mosaickd.config.schema import CONF

SGD, ADAM = "torch.optim.SGD", "torch.optim.Adam"
VANILLA: dict[str, Any] = {  # KD's schedule, also for those that the table compares with it
    "players.student.optimizer._target_": SGD,
    "players.student.optimizer.lr": 0.1,
    "players.student.optimizer.momentum": 0.9,
    "players.student.optimizer.weight_decay": 1e-4,
    "players.student.schedule._target_": "mosaickd.engine.schedules.cosine",
    "train.epochs": 200,
    "train.batch_size": 128,
    "train.epoch_steps": None,  # an epoch is one pass over the images
    "train.steps": None,
    "train.clip": None,
    "method.temperature": 5,
    "method.ood_statistics": "dataset",
}
DATA_FREE: dict[str, Any] = {"train.epochs": 200, "train.steps": None}

RECIPES: dict[str, dict[str, Any]] = {
    "scratch": {
        "players.student.optimizer._target_": SGD,
        "players.student.optimizer.lr": 0.1,
        "players.student.optimizer.momentum": 0.9,
        "players.student.schedule._target_": "mosaickd.engine.schedules.cosine",
        "train.epochs": 200,
        "train.batch_size": 256,
    },
    "kd": VANILLA,
    "balanced": VANILLA,
    "fitnet": VANILLA | {"method.hint": 100, "method.stage": 2},
    "rkd": VANILLA | {"method.distance": 25, "method.angle": 50},
    "crd": VANILLA
    | {
        "method.contrast": 0.8,
        "method.dim": 128,
        "method.negatives": 16384,
        "method.contrast_temperature": 0.07,
        "method.momentum": 0.5,
    },
    "sskd": VANILLA
    | {
        "method.kd": 1,
        "method.tf": 2.7,
        "method.ss": 10,
        "method.temperature": 4,
        "method.ss_temperature": 0.5,
        "train.epochs": 260,  # 60 for the teacher's head, 200 for the student
    },
    "mosaic": {
        "method.adv": 1,
        "method.align": 1,
        "method.local": 1,
        "method.balance": 10,
        "method.temperature": 1,
        "method.student_steps": 5,
        "method.ood_in_student_batch": True,
        "method.ood_statistics": "ood",
        "generator.latent_dim": 100,
        "generator.width": 64,
        "generator.output": "sigmoid",
        "discriminator.width": 128,
        "discriminator.patch_size": 10,
        "players.generator.optimizer": {"_target_": ADAM, "lr": 1e-3, "betas": [0.5, 0.999]},
        "players.discriminator.optimizer": {"_target_": ADAM, "lr": 1e-3, "betas": [0.5, 0.999]},
        "players.student.optimizer": {
            "_target_": SGD, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
        },
        "train.epochs": 200,
        "train.batch_size": 256,
        "train.steps": None,
    },
    "dfq": DATA_FREE
    | {
        "method.adv": 1,
        "method.oh": 1,
        "method.ie": 20,
        "method.bn": 1,
        "method.log_base": 10,
        "method.student_steps": 5,
        "generator.latent_dim": 100,
        "players.generator.optimizer": {"_target_": ADAM, "lr": 1e-3},
        "players.student.optimizer": {"_target_": ADAM, "lr": 1e-3, "weight_decay": 1e-4},
        "players.generator.schedule.stairs": 200,  # the rate falls once an epoch
        "players.student.schedule.stairs": 200,
        "train.epoch_steps": 200,
        "train.batch_size": 128,
    },
    "dafl": DATA_FREE
    | {
        "method.oh": 1,
        "method.balance": 20,
        "method.act": 1e-3,
        "method.student_steps": 5,
        "generator.latent_dim": 512,
        "players.generator.optimizer": {"_target_": ADAM, "lr": 1e-3, "betas": [0.5, 0.999]},
        "players.student.optimizer": {
            "_target_": SGD, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
        },
        "train.epoch_steps": 400,
        "train.batch_size": 256,
    },
    "zskt": DATA_FREE
    | {
        "method.attention": 250,
        "method.student_steps": 10,
        "method.fresh": False,  # on the same batch
        "generator.latent_dim": 100,
        "generator.output": "batch_norm",
        "players.generator.optimizer": {"_target_": ADAM, "lr": 1e-3},
        "players.student.optimizer": {"_target_": ADAM, "lr": 2e-3},
        "players.generator.schedule._target_": "mosaickd.engine.schedules.cosine",
        "players.student.schedule._target_": "mosaickd.engine.schedules.cosine",
        "train.epoch_steps": 400,  # 80,000 in all
        "train.batch_size": 128,
        "train.clip": 5,
    },
    "deepinv": DATA_FREE
    | {
        "method.oh": 1,
        "method.bn": 10,
        "method.tv": 1e-3,
        "method.adv": 1,
        "method.adv_temperature": 3,
        "method.temperature": 20,
        "method.inversion_steps": 1000,
        "players.images.optimizer": {"_target_": ADAM, "lr": 0.1, "betas": [0.5, 0.99]},
        "players.student.optimizer._target_": SGD,
        "train.batch_size": 256,
    },
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


def stated(cfg: DictConfig, path: str) -> Any:
    """A setting; of an optimizer, what it states itself."""
    value = OmegaConf.select(cfg, path, throw_on_missing=True)
    if OmegaConf.is_dict(value):
        value = {k: v for k, v in value.items() if k != "_partial_"}
    return value


def differing(cfg: DictConfig, recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not the recipe's."""
    return {path: stated(cfg, path) for path in recipe if stated(cfg, path) != recipe[path]}


def test_every_method_has_a_recipe_here() -> None:
    assert set(choices(CONF / "method")) == set(RECIPES)


@pytest.mark.parametrize("method", RECIPES)
def test_the_recipe_of(method: str) -> None:
    cfg = check(f"method={method}")
    assert differing(cfg, RECIPES[method]) == {}
    optimizers = {path.split(".")[1] for path in RECIPES[method] if path.startswith("players.")}
    assert set(cfg.players) - {"head"} == optimizers


def test_no_argument_is_the_headline_cell_with_the_papers_weights() -> None:
    cfg = check()
    names = [cfg[part].name for part in ("method", "dataset", "ood", "teacher", "student")]
    assert names == ["mosaic", "cifar100", "cifar10", "wrn40_2", "wrn16_1"]
    assert differing(cfg, RECIPES["mosaic"]) == {}
    assert {node.schedule._target_.split(".")[-1] for node in cfg.players.values()} == {"cosine"}
    assert cfg.hydra.run.dir == "outputs/mosaic/cifar100-cifar10/wrn40_2-wrn16_1/seed0"


def test_the_head_of_sskd_learns_for_60_of_260_epochs() -> None:
    cfg = check("method=sskd")
    assert cfg.method.head_fraction * cfg.train.epochs == pytest.approx(60, abs=0.01)


@pytest.mark.parametrize("method", ["fitnet", "rkd", "crd"])
def test_repdistillers_schedule_is_an_option(method: str) -> None:
    cfg = check("experiment=rd_schedule", f"method={method}")
    own = {
        "players.student.optimizer": {
            "_target_": SGD, "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4,
        },
        "train.epochs": 240,
        "train.batch_size": 64,
    }  # fmt: skip
    assert differing(cfg, own) == {}
    milestones = [round(part * 240) for part in cfg.players.student.schedule.milestones]
    assert milestones == [150, 180, 210]


def test_cmis_dfq_is_an_option() -> None:
    cfg = check("experiment=dfq_cmi")
    own = {
        "method.name": "dfq",
        "method.log_base": math.e,
        "method.student_steps": 10,
        "players.student.optimizer._target_": SGD,
        "players.student.optimizer.lr": 0.1,
        "train.batch_size": 256,
    }
    assert differing(cfg, own) == {}


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


def test_a_subset_for_cifar100_has_as_many_images_as_cifar100() -> None:
    for sweep in ("table1_imagenet32", "table1_places365"):
        cfg = composed(f"sweep={sweep}", "method=kd", "pair=wrn40_2-wrn16_1")
        assert (cfg.ood_subset, cfg.ood_subset_size, cfg.dataset.train_size) == (True, None, 50000)


# ------------------------------------------------------------------------------ departures from it

PLAIN = [
    "method=kd", "pair=wrn40_2-wrn16_1", "teacher=vgg11", "student=resnet18", "dataset=cifar100",
    "ood=svhn", "ood_subset=true", "seed=2", "device=cuda:1", "force=true", "tracker=none",
    "tracker.project=mine", "sweep=table1_svhn", "teacher_missing=error", "teachers_dir=elsewhere",
    "teacher.checkpoint=mine.pth", "dataset.root=/data", "+ood.root=/data", "++dataset.root=/data",
    "ood.reader.download=false", "hydra.run.dir=here", "hydra.sweep.dir=here",
    "hydra/launcher=joblib", "train=default", "train.precision=bf16", "train.compile=true",
    "train.cuda_graph=true", "train.channels_last=false", "train.deterministic=true",
    "train.eval_every=5", "train.checkpoint_every=5", "train.log_every=5",
    "train.eval_batch_size=5", "train.steps=null", "ood.limit=null", "experiment=null",
    "~experiment", "ablation=null", "~ood", "~ood=null",
]  # fmt: skip
DEPARTURES = [
    "experiment=quickstart", "ablation=no_adv", "ablation=full", "train.steps=5", "train.epochs=5",
    "train.batch_size=5", "train.epoch_steps=5", "train.clip=1", "train.clip=null", "train=cpu",
    "train=smoke", "train=mine", "method.temperature=4", "method.adv=0", "ood.limit=5",
    "ood.classes=[1,2]", "ood.image_size=16", "dataset.classes=[1]", "dataset.limit=5",
    "dataset.recipe.lr=0.2", "ood_subset_size=5", "players.student.optimizer.lr=0.2",
    "generator=small", "generator.width=8", "discriminator=image", "student.depth=10",
    "student.features=[block1]", "student.embedding=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def commanded(_composing: None) -> Callable[..., str | None]:
    """What a run of a command would record as its variant."""
    cfg = composed()

    def recorded(*overrides: str) -> str | None:
        with read_write(cfg.hydra):
            cfg.hydra.overrides.task = list(overrides)
        HydraConfig.instance().cfg = cfg
        return variant(cfg)

    return recorded


def test_a_cell_however_it_is_computed_and_watched_is_by_the_recipe(
    commanded: Callable[..., str | None],
) -> None:
    assert commanded() is None
    assert commanded(*PLAIN) is None, "none of these makes it another experiment"


@pytest.mark.parametrize("override", DEPARTURES)
def test_anything_else_departs_from_the_recipe(
    commanded: Callable[..., str | None], override: str
) -> None:
    assert commanded("method=kd", override, "seed=1") == override
    assert commanded(f"++{override}") == override


def test_departures_are_listed_in_the_same_order_whatever_the_commands(
    commanded: Callable[..., str | None],
) -> None:
    some = ["train.steps=5", "ood.limit=5", "experiment=quickstart"]
    listed = "experiment=quickstart, ood.limit=5, train.steps=5"
    assert commanded(*some, "seed=1") == commanded("method=kd", *reversed(some)) == listed
