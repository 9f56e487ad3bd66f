"""Mistakes with the methods' own parts: one line that says what to do, before any training."""

from __future__ import annotations

import pytest
from conftest import Cli, Outcome, Tiny, read_json

STEPS = "train.steps=2"


def assert_one_line(outcome: Outcome, *words: str) -> None:
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line, line


Case = tuple[list[str], list[str]]  # overrides, and words of the message


def cases(default: list[Case], *, slow: list[Case]) -> pytest.MarkDecorator:
    """Parametrise a test: overrides, and words that the message must have."""
    marked = [pytest.param(*case, marks=pytest.mark.slow) for case in slow]
    ids = [" ".join(overrides) for overrides, _ in [*default, *slow]]
    return pytest.mark.parametrize(("overrides", "words"), [*default, *marked], ids=ids)


@cases(
    [
        (["method=kd", "ood=null"], ["ood is null", "svhn"]),
        (["sweep=table1_cifar11"], ["table1_cifar11", "did you mean table1_cifar10"]),
    ],
    slow=[
        (["ablation=no_locall"], ["no_locall", "did you mean no_local", "patch_image"]),
        (["teacher=null"], ["teacher is null", "wrn40_2"]),
        (["-m", "method=kd", "ood=svhn,null"], ["ood=svhn,null", "null is no choice among others"]),
        (["sweep=table1_svhn,table1_cifar10"], ["one sweep at a time"]),
    ],
)
def test_choices_that_there_are_not(cli: Cli, overrides: list[str], words: list[str]) -> None:
    assert_one_line(cli(*overrides, code=2), *words)
    assert not list(cli.folder.iterdir())


@pytest.mark.slow
def test_a_data_free_method_runs_without_images(cli: Cli, tiny: Tiny) -> None:
    own = ["method=dfq", "ood=null", "train.steps=1", "train.batch_size=8", "dataset=letters"]
    teacher = ["teacher=wrn16_2", f"teacher.checkpoint={tiny.teacher}", *tiny.source("dataset")]
    cli(*own, *teacher, "generator.width=8", "tracker=none", "hydra.run.dir=run")
    assert (cli.folder / "run" / "student.safetensors").exists()


@cases(
    [
        (
            ["method=fitnet", "student.features=[block1,nonsense]"],
            ["student.features", "'nonsense'", "block1, block2, block3", "fc"],
        ),
    ],
    slow=[
        (["method=rkd", "teacher.embedding=null"], ["teacher.embedding is missing", "method=rkd"]),
        (["method=fitnet", "method.stage=9"], ["method.stage is 9", "3 stages"]),
        (["method=zskt", "teacher=vgg11"], ["method.attention", "student has 3", "teacher 4"]),
        (["method=dfq", "train.epoch_steps=null", "train.steps=null"],
         ["method=dfq", "train.epoch_steps", "train.steps"]),
        (["method=crd", "ood.limit=1", "train.batch_size=1"], ["method=crd", "one is too few"]),
        (["method=balanced", "train.batch_size=65"], ["train.batch_size", "65", "strokes", "64"]),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(
    cli: Cli, tiny: Tiny, overrides: list[str], words: list[str]
) -> None:
    """Before a teacher is trained."""
    own = tiny.experiment(cli.folder, STEPS, "hydra.run.dir=run")
    assert_one_line(cli(*own, *overrides, code=1), *words)
    assert not list(cli.folder.rglob("*-training"))
    assert not (cli.folder / "run" / "metrics.jsonl").exists()


MODEL = """
from torch import nn


class Plain(nn.Module):
    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.fc(self.body(images).relu().mean(dim=(2, 3)))
"""
YAML = """
_target_: mypkg.nets.Plain
name: plain
checkpoint: null
features: [body]
embedding: fc
"""


@pytest.fixture
def plain_model(cli: Cli, tiny: Tiny) -> list[str]:
    """A user's own model without batch norm, in a --config-dir and a package of theirs."""
    tiny.experiment(cli.folder)
    package = cli.folder / "mypkg"
    package.mkdir()
    (package / "nets.py").write_text(MODEL)
    (cli.folder / "conf" / "model").mkdir()
    (cli.folder / "conf" / "model" / "plain.yaml").write_text(YAML)
    return tiny.experiment(
        cli.folder, "teacher=plain", "hydra.run.dir=run", "allow_targets=[mypkg]"
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dfq", "deepinv"])
def test_a_teacher_without_batch_norm(cli: Cli, plain_model: list[str], method: str) -> None:
    own = {"PYTHONPATH": str(cli.folder)}
    outcome = cli(*plain_model, f"method={method}", STEPS, code=1, env=own)
    assert_one_line(outcome, "the teacher plain", "no batch norm", "another teacher")
    assert not list(cli.folder.rglob("*-training"))


@pytest.mark.slow
def test_such_a_teacher_will_do_for_other_methods(cli: Cli, plain_model: list[str]) -> None:
    sweep = ["method=kd,rkd,crd,dafl", "train.steps=1", "hydra.sweep.dir=sweep"]
    cli("-m", *plain_model, *sweep, env={"PYTHONPATH": str(cli.folder)})
    results = [read_json(path) for path in cli.folder.glob("sweep/*/*/*/seed0/result.json")]
    finished = sorted(result["method"] for result in results if result["status"] == "finished")
    assert finished == ["crd", "dafl", "kd", "rkd"]


@pytest.mark.slow
def test_a_run_too_short_for_a_player_says_so(cli: Cli, tiny: Tiny) -> None:
    own = tiny.experiment(cli.folder, "method=deepinv", f"teacher.checkpoint={tiny.teacher}")
    out = cli(*own, STEPS, "hydra.run.dir=run").out
    assert "a run of 2 steps is too short for method=deepinv: the student never has a turn" in out
