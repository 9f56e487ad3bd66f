"""What makes two runs the same run."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
from composing import asked, composing

from mosaickd.config.run_key import config_hash, differences, identity


@pytest.fixture(autouse=True, scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


WATCHED = [
    "train.eval_every=7", "train.checkpoint_every=7", "train.log_every=7",
    "train.eval_batch_size=7", "tracker=none", "force=true", "device=cpu",
    "teacher_missing=error", "allow_targets=[timm]", "dataset.max_broken=0.5", "ood.max_broken=0",
]  # fmt: skip
COMPUTED = [
    "seed=1", "train.steps=7", "train.epochs=7", "train.batch_size=7", "train.precision=fp32",
    "method.adv=0.5", "student=wrn40_1", "teacher=wrn40_1", "teacher.checkpoint=x.pth",
    "ood.limit=7", "dataset.classes=[1,2]", "generator.width=8", "discriminator.width=8",
    "players.student.optimizer.lr=0.2", "method=kd", "ood=cifar100",
]  # fmt: skip


def test_how_a_run_is_watched_does_not_make_it_another() -> None:
    headline = identity(asked())
    for override in WATCHED:
        assert identity(asked(override)) == headline, override


def test_following_links_makes_another_run_and_not_to_is_as_before() -> None:
    own = ("ood=folder", "ood.root=here")
    usual = identity(asked(*own))
    assert "follow_links" not in usual["ood"]["reader"]
    assert identity(asked(*own, "ood.reader.follow_links=true")) != usual


def test_what_a_run_computes_makes_it_another() -> None:
    hashes = {o: config_hash(identity(asked(o))) for o in ["seed=0", *COMPUTED]}
    assert hashes["seed=0"] == config_hash(identity(asked())), "0 is the default"
    assert len(set(hashes.values())) == len(hashes), hashes


def test_what_the_method_does_not_use_is_no_part_of_it() -> None:
    scratch = identity(asked("method=scratch"))
    assert identity(asked("method=scratch", "teacher=wrn16_1", "ood=svhn")) == scratch


def test_hashes_are_short_and_do_not_depend_on_the_order_of_keys() -> None:
    chosen = {"seed": 0, "train": {"steps": 3, "batch_size": None}}
    backwards = {"train": {"batch_size": None, "steps": 3}, "seed": 0}
    assert config_hash(chosen) == config_hash(backwards)
    # A hash in an old result.json must still mean the same settings.
    assert config_hash(chosen) == "840ca20f42ff"


def test_differences_name_each_setting_with_old_and_new() -> None:
    old = {"seed": 0, "train": {"steps": 3, "clip": None}, "method": {"adv": 1.0}}
    assert differences(old, deepcopy(old)) == []
    new = {"seed": 1, "train": {"steps": 3, "clip": 0.5}, "method": {"adv": 1.0, "local": 2}}
    assert differences(old, new) == [
        "method.local: None -> 2", "seed: 0 -> 1", "train.clip: None -> 0.5",
    ]  # fmt: skip
