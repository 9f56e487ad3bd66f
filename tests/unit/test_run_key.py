"""What makes two runs the same run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from composing import compose_config, composing

from mosaickd.config.run_key import config_hash, run_key
from mosaickd.run_dir import differences


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
    "players.student.optimizer.lr=0.2", "method=kd", "ood=cifar100", "ood_subset=true",
]  # fmt: skip


def test_how_a_run_is_watched_does_not_make_it_another() -> None:
    headline = run_key(compose_config())
    for override in WATCHED:
        assert run_key(compose_config(override)) == headline, override


def test_what_a_run_computes_makes_it_another() -> None:
    hashes = {o: config_hash(run_key(compose_config(o))) for o in ["seed=0", *COMPUTED]}
    assert len(set(hashes.values())) == len(hashes), hashes


def test_what_the_method_does_not_use_is_no_part_of_it() -> None:
    scratch = run_key(compose_config("method=scratch"))
    assert run_key(compose_config("method=scratch", "teacher=wrn16_1", "ood=svhn")) == scratch


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("", "f09f073d1bae"),
        ("method=kd", "2100763789f0"),
        ("method=scratch", "79f1101683a0"),
        ("experiment=quickstart", "6f02c4ea6537"),
        ("ood=folder ood.root=x", "1504be946a0e"),
        ("ood=folder ood.root=x ood.reader.follow_links=true", "3ac5a878872b"),
    ],
)
def test_hashes_in_old_results_still_mean_the_same_settings(overrides: str, expected: str) -> None:
    assert config_hash(run_key(compose_config(*overrides.split()))) == expected


def test_differences_name_each_setting_with_old_and_new() -> None:
    old = {"seed": 0, "train": {"steps": 3, "clip": None}, "method": {"adv": 1.0}}
    assert differences(old, old) == []
    new = {"seed": 1, "train": {"steps": 3, "clip": 0.5}, "method": {"adv": 1.0, "local": 2}}
    assert differences(old, new) == [
        "method.local: None -> 2", "seed: 0 -> 1", "train.clip: None -> 0.5",
    ]  # fmt: skip
