"""The paper's cells, and what departs from them. (A method's own recipe is in its unit tests.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from composing import check, composed, composing
from hydra.core.hydra_config import HydraConfig
from omegaconf import read_write

from mosaickd.config.run_key import variant


@pytest.fixture(autouse=True, scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


def test_no_argument_is_the_headline_cell() -> None:
    cfg = check()
    names = [cfg[part].name for part in ("method", "dataset", "ood", "teacher", "student")]
    assert names == ["mosaic", "cifar100", "cifar10", "wrn40_2", "wrn16_1"]
    assert cfg.hydra.run.dir == "outputs/mosaic/cifar100-cifar10/wrn40_2-wrn16_1/seed0"


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
