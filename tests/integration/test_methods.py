"""Each method for a few steps on small glyphs, from its config to its result."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import choices, compose_config, composing
from conftest import losses
from omegaconf import OmegaConf
from safetensors.torch import load_file

from mosaickd import metric_names, teachers
from mosaickd.config.schema import CONF, required_inputs, training_source
from mosaickd.config.validation import validate
from mosaickd.engine.checkpoint import load_checkpoint
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.errors import UserError
from mosaickd.launch import launch
from mosaickd.run_dir import Result, RunDir

METHODS = choices(CONF / "method")
LETTERS = [  # four of the 24, a thousand images: seconds suffice to tell these apart
    "dataset.classes=[0,6,11,18]", "dataset.reader.train_images=6000",
    "dataset.reader.test_images=1440",
]  # fmt: skip
#: Settings that make whatever method has them small.
SMALL = {
    "generator.width": 8, "generator.latent_dim": 16, "discriminator.width": 8,
    "method.student_steps": 2, "method.inversion_steps": 2, "method.negatives": 100,
    "method.head_fraction": 0.5,
}  # fmt: skip
#: By method, what docs/metrics.md says that it logs.
DOCUMENTED = {
    method: set(re.findall(r"\w+/\w+", names))
    for method, names in re.findall(
        r"^\| `(\w+)` \| (`\w+/\w+`(?:, `\w+/\w+`)*) \|$",
        (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(),
        re.MULTILINE,
    )
}
#: What any metric may be called.
METRIC_NAMES = re.compile(
    "|".join(re.sub("PLAYER|NAME", r"[a-z0-9_]+", name) for name in metric_names.METRICS)
)


@pytest.fixture(autouse=True, scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


@cache
def small(method: str) -> list[str]:
    """Return overrides that make a method's iteration short."""
    cfg = compose_config(f"method={method}")
    own = [f"{k}={v}" for k, v in SMALL.items() if OmegaConf.select(cfg, k) is not None]
    return [f"method={method}", "train.sync_batch_norm=[]", *own]


class House:
    """Small letters and strokes, and runs with them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, folder: str, *overrides: str, interruption: Interruption | None = None) -> Result:
        settings = [
            "dataset=letters", "ood=strokes", "teacher=wrn16_1", "student=wrn16_1",
            "teacher.depth=10", "student.depth=10", "train.batch_size=32", "train.precision=fp32",
            "device=cpu", "tracker=none", f"teachers_dir={self.root}/teachers",
            *LETTERS, f"dataset.root={self.root}/glyphs", f"ood.root={self.root}/glyphs",
            "ood.reader.train_images=512", *overrides,
        ]  # fmt: skip
        cfg = compose_config(*settings)
        validate(cfg)
        return launch(cfg, self.root / folder, interruption or Interruption())

    def taught(self, method: str) -> list[str]:
        """Return overrides of a small run, with the teacher where the method has one."""
        if "teacher" not in required_inputs(compose_config(f"method={method}")):
            return small(method)
        return [*small(method), f"teacher.checkpoint={self.root}/teacher.safetensors"]

    def at(self, folder: str) -> RunDir:
        return RunDir(self.root / folder)

    def student(self, folder: str) -> dict[str, torch.Tensor]:
        return load_file(self.at(folder).student)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """With a teacher of the letters, trained for seconds."""
    house = House(tmp_path_factory.mktemp("house"))
    result = house.run(
        "teacher-run", "method=scratch", "train.batch_size=64", "train.epochs=12",
        "train.eval_every=192",
    )  # fmt: skip
    assert (result.last or 0) > 80, "chance is 25 %: no teacher, nothing to test"
    teachers.install(house.root / "teacher-run", house.root / "teacher.safetensors")
    return house


def test_the_docs_describe_no_method_that_there_is_not() -> None:
    assert set(DOCUMENTED) <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_few_steps_of_each_method(house: House, method: str) -> None:
    folder = f"steps-{method}"
    result = house.run(
        folder, *house.taught(method), "train.steps=4", "train.log_every=1", "train.eval_every=2"
    )
    assert (result.status, result.error, result.steps) == ("finished", None, 4)
    assert result.method == method
    assert set(result.accuracy) == {"last", "best", "best_step", "top5_last"}
    assert 0 <= (result.last or 0) <= (result.best or 0) <= 100
    run = house.at(folder)
    assert run.read_result() == result

    records = [r for r in run.read_metrics() if losses(r)]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    names = {name for record in records for name in losses(record)}
    assert names == DOCUMENTED.get(method, names), "as docs/metrics.md says"
    for record in records:
        assert all(abs(value) < 1e4 for value in losses(record).values()), record
    assert [r["step"] for r in run.read_metrics() if metric_names.TOP1 in r] == [2, 4]
    logged = {name for record in run.read_metrics() for name in record}
    players = {name.split("/")[0] for name in names}
    assert {name for name in logged if name.startswith("lr/")} == {f"lr/{p}" for p in players}
    unknown = logged - {metric_names.STEP, metric_names.TIME}
    assert not {name for name in unknown if not METRIC_NAMES.fullmatch(name)}
    assert run.checkpoint.exists()
    assert run.best_student.exists()

    cfg = compose_config(f"method={method}")
    makes_images = bool({"generator", "images"} & players)
    assert (metric_names.FAKE_CLASSES in logged) == makes_images
    grids = 0  # without a teacher to sort images by
    if "teacher" in required_inputs(cfg):
        grids = 2 if makes_images else 1
        assert makes_images or training_source(cfg)
    assert len(list(run.sample_paths())) == grids


def test_weights_of_a_finished_run_are_trained_ones(house: House) -> None:
    house.run("one", *house.taught("kd"), "train.steps=1")
    house.run("three", *house.taught("kd"), "train.steps=3")
    one, three = house.student("one"), house.student("three")
    assert all(torch.isfinite(v.float()).all() for v in three.values())
    moved = [k for k in one if not torch.equal(one[k], three[k])]
    assert len(moved) == len(one), "every weight and statistic moves"


def test_logged_weights_are_the_methods(house: House) -> None:
    settings = ["method.adv=2", "method.align=3", "method.local=0.5", "method.balance=7"]
    house.run("weighted", *house.taught("mosaic"), *settings, "train.steps=1")
    (record,) = [r for r in house.at("weighted").read_metrics() if losses(r)]
    ratios = {k: record[f"weighted/{k}"] / losses(record)[k] for k in losses(record)}
    assert ratios == pytest.approx({
        "discriminator/fake": 0.25, "discriminator/real": 0.25, "generator/local": 0.5,
        "generator/align": 3, "generator/adv": 2, "generator/balance": 7, "student/kd": 1,
    })  # fmt: skip


IN_ONE_PROCESS = ("scratch", "mosaic", "deepinv", "crd")  # each draws in a way of its own


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=[] if m in IN_ONE_PROCESS else pytest.mark.slow) for m in METHODS],
)
def test_the_seed_decides_everything(house: House, method: str) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        house.run(f"seed-{method}-{folder}", *house.taught(method), "train.steps=3", f"seed={seed}")
    a, b, c = (house.student(f"seed-{method}-{folder}") for folder in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


@pytest.mark.slow
def test_kd_on_letters_learns_the_letters(house: House) -> None:
    result = house.run(
        "kd-letters", *house.taught("kd"), "ood=letters",
        *[setting.replace("dataset", "ood") for setting in LETTERS],
        "train.batch_size=64", "train.epochs=9", "train.eval_every=144",
    )  # fmt: skip
    assert result.ood == "letters"
    assert (result.last or 0) > 60, "chance is 25 %"
    records = house.at("kd-letters").read_metrics()
    curve = [losses(r)["student/kd"] for r in records if losses(r)]
    assert curve[-1] < curve[0] / 2


def test_the_teacher_is_measured_and_one_below_its_record_is_refused(house: House) -> None:
    result = house.run("measured", *house.taught("kd"), "train.steps=1")
    trained = house.at("teacher-run").read_result()
    assert trained is not None
    assert result.teacher_accuracy == pytest.approx(trained.last, abs=0.5)
    with pytest.raises(UserError, match="its record says"):
        house.run("other-images", *house.taught("kd"), "train.steps=1", "dataset.std=[0.01,9,9]")
    assert house.at("other-images").read_result() is None, "before its first step: no run"


@pytest.mark.parametrize("product", ["student.safetensors", "checkpoints/best.safetensors"])
def test_what_one_run_leaves_can_teach_the_next(house: House, product: str) -> None:
    path = house.root / "teacher-run" / product
    result = house.run(
        f"taught-by-{path.stem}", "method=kd", f"teacher.checkpoint={path}", "train.steps=1"
    )
    assert (result.teacher_accuracy or 0) > 80


# ------------------------------------------------------------------------------ stopped and resumed


class AtCheck(Interruption):
    """Is asked to stop at the n-th time that someone asks."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def check(self, agree: Callable[[int], int] = int) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted(15)


# A run of four steps that evaluates at steps 2 and 4 is asked after each step.
@pytest.mark.parametrize(
    ("method", "number"),
    [("mosaic", 3), ("sskd", 2),  # tests/unit/test_methods_all.py resumes each method
     *[pytest.param("mosaic", n, marks=pytest.mark.slow) for n in (1, 2, 4)],
     *[pytest.param(m, 3, marks=pytest.mark.slow) for m in METHODS if m != "mosaic"],
     pytest.param("deepinv", 2, marks=pytest.mark.slow)],
)  # fmt: skip
def test_wherever_a_run_is_stopped_it_ends_with_the_same_weights(
    house: House, method: str, number: int
) -> None:
    settings = [
        *house.taught(method), "train.steps=4", "train.eval_every=2", "train.eval_batch_size=100",
        "train.batch_size=16",
    ]  # fmt: skip
    whole = house.run(f"whole-{method}", *settings)
    folder = f"stopped-{method}-{number}"
    with pytest.raises(Interrupted):
        house.run(folder, *settings, interruption=AtCheck(number))
    stopped = house.at(folder).read_result()
    assert stopped is not None
    assert stopped.status == "interrupted"
    assert not house.at(folder).student.exists()

    result = house.run(folder, *settings)
    assert (result.status, result.steps) == ("finished", 4)
    expected = house.student(f"whole-{method}")
    for name, value in house.student(folder).items():
        assert torch.equal(value, expected[name]), name
    assert result.accuracy == whole.accuracy


def test_a_finished_run_is_skipped_and_force_runs_it_anew(house: House) -> None:
    settings = ["method=scratch", "train.steps=2"]
    first = house.run("again", *settings)
    path = house.at("again").student
    written = path.stat().st_mtime_ns
    again = house.run("again", *settings)
    assert again.skipped
    assert again.accuracy == first.accuracy
    assert path.stat().st_mtime_ns == written
    house.run("again", *settings, "force=true")
    assert path.stat().st_mtime_ns > written


def test_other_settings_in_the_same_folder_are_refused(house: House) -> None:
    house.run("mine", "method=scratch", "train.steps=2")
    with pytest.raises(UserError, match=r"seed: 0 -> 1.*force=true"):
        house.run("mine", "method=scratch", "train.steps=2", "seed=1")
    watched = house.run("mine", "method=scratch", "train.steps=2", "train.log_every=1")
    assert watched.status == "finished", "how a run is watched makes it no other"


# ------------------------------------------------------------------------------------ bad settings


def test_a_learning_rate_that_the_optimizer_refuses_is_the_users_mistake(house: House) -> None:
    with pytest.raises(UserError, match="learning rate"):
        house.run("lr", "method=scratch", "train.steps=1", "players.student.optimizer.lr=-1")


def test_a_loss_that_explodes_stops_the_run_and_keeps_its_checkpoint(house: House) -> None:
    settings = ["method=scratch", "train.steps=30", "train.checkpoint_every=1", "train.log_every=1",
                "train.eval_every=100", "players.student.optimizer.lr=1e18"]  # fmt: skip
    with pytest.raises(UserError, match=r"student's .* (at|after) step"):
        house.run("explodes", *settings)
    result = json.loads(house.at("explodes").result.read_text())
    assert result["status"] == "failed"
    assert "last good checkpoint is kept" in result["error"]
    state: Any = load_checkpoint(house.at("explodes").checkpoint)
    weights = state["trainer"]["players"]["student"]["module"].values()
    assert all(torch.isfinite(value.float()).all() for value in weights)
