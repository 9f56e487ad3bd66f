"""Each method for a few steps on small glyphs, from its config to its result."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import losses
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from safetensors.torch import load_file

from mosaickd import metric_names, teachers
from mosaickd.config import schema as config
from mosaickd.config.validation import validate
from mosaickd.engine.checkpoint import load_checkpoint
from mosaickd.engine.interruption import Interrupted, Interruption
from mosaickd.errors import UserError
from mosaickd.launch import run


@pytest.fixture(autouse=True, scope="module")
def _hydra() -> Iterator[None]:
    config.register()
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        yield


# Four of the 24 letters, a thousand images: seconds suffice to tell these apart.
LETTERS = [
    "dataset.classes=[0,6,11,18]", "dataset.reader.train_images=6000",
    "dataset.reader.test_images=1440",
]  # fmt: skip


class House:
    """Small letters and strokes, and runs with them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def settings(self, *overrides: str) -> list[str]:
        return [
            "dataset=letters", "ood=strokes", "teacher=wrn16_1", "student=wrn16_1",
            "teacher.depth=10", "student.depth=10", "train.batch_size=32", "train.precision=fp32",
            "device=cpu", "tracker=none", f"teachers_dir={self.root}/teachers",
            *LETTERS, f"dataset.root={self.root}/glyphs", f"ood.root={self.root}/glyphs",
            "ood.reader.train_images=512", *overrides,
        ]  # fmt: skip

    def run(
        self, folder: str, *overrides: str, interruption: Interruption | None = None
    ) -> dict[str, Any]:
        cfg = compose("config", overrides=self.settings(*overrides))
        validate(cfg)
        path = self.root / folder
        return run(cfg, path, interruption or Interruption())

    def metrics(self, folder: str) -> list[dict[str, Any]]:
        lines = (self.root / folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def student(self, folder: str) -> dict[str, torch.Tensor]:
        return load_file(self.root / folder / "student.safetensors")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """With a teacher of the letters, trained for seconds."""
    house = House(tmp_path_factory.mktemp("house"))
    result = house.run(
        "teacher-run", "method=scratch", "train.batch_size=64", "train.epochs=12",
        "train.eval_every=192",
    )  # fmt: skip
    assert result["accuracy"]["last"] > 80, "chance is 25 %: no teacher, nothing to test"
    teachers.install(house.root / "teacher-run", house.root / "teacher.safetensors")
    return house


SMALL = [
    "generator=small", "discriminator=small", "generator.width=8", "discriminator.width=8",
    "method.student_steps=2",
]  # fmt: skip
GENERATES = ["generator.width=8", "generator.latent_dim=16", "method.student_steps=2",
             "train.epoch_steps=4"]  # fmt: skip
SLOW = [pytest.mark.slow]
METHODS = {
    "scratch": [],
    "kd": ["method=kd"],
    "mosaic": ["method=mosaic", *SMALL],
    "dfq": ["method=dfq", *GENERATES],
    "dafl": ["method=dafl", *GENERATES],
    "zskt": ["method=zskt", *GENERATES],
    "deepinv": ["method=deepinv", "method.inversion_steps=2", "method.student_steps=1"],
    "balanced": ["method=balanced"],
    "fitnet": ["method=fitnet"],
    "rkd": ["method=rkd"],
    "crd": ["method=crd", "method.negatives=100"],
    "sskd": ["method=sskd", "method.head_fraction=0.5"],
}
LOSSES = {
    "dfq": {"generator/adv", "generator/oh", "generator/ie", "generator/bn", "student/kd"},
    "dafl": {"generator/oh", "generator/balance", "generator/act", "student/kd"},
    "zskt": {"generator/adv", "student/kd", "student/attention"},
    "deepinv": {"images/oh", "images/bn", "images/tv", "images/adv", "student/kd"},
    "balanced": {"student/kd"},
    "fitnet": {"student/kd", "student/hint"},
    "rkd": {"student/kd", "student/distance", "student/angle"},
    "crd": {"student/kd", "student/contrast"},
    "sskd": {"head/contrast", "student/kd", "student/tf", "student/ss"},
    "scratch": {"student/cross_entropy"},
    "kd": {"student/kd"},
    "mosaic": {
        "discriminator/fake", "discriminator/real", "generator/local", "generator/align",
        "generator/adv", "generator/balance", "student/kd",
    },
}  # fmt: skip


#: What any metric may be called.
VOCABULARY = re.compile(
    "|".join(re.sub("PLAYER|NAME", r"[a-z0-9_]+", name) for name in metric_names.METRICS)
)


def test_the_docs_say_which_losses_a_method_logs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (`\w+/\w+`(?:, `\w+/\w+`)*) \|$", text, re.MULTILINE)
    assert {m: set(re.findall(r"\w+/\w+", names)) for m, names in listed} == LOSSES
    assert set(LOSSES) == set(config.options(config.CONF / "method"))


def taught(house: House, method: str) -> list[str]:
    if method == "scratch":
        return ["method=scratch"]
    return [*METHODS[method], f"teacher.checkpoint={house.root}/teacher.safetensors"]


def drawn_by(method: str) -> int:
    """How many sample grids two evaluations give."""
    if method == "scratch":
        return 0  # no teacher to sort by
    makes_images = any(name.startswith(("generator", "images")) for name in LOSSES[method])
    return 2 if makes_images else 1


@pytest.mark.parametrize("method", METHODS)
def test_a_few_steps_of_each_method(house: House, method: str) -> None:
    folder = f"steps-{method}"
    result = house.run(
        folder, *taught(house, method), "train.steps=4", "train.log_every=1", "train.eval_every=2"
    )
    assert (result["status"], result["error"], result["steps"]) == ("finished", None, 4)
    assert result["method"] == method
    assert set(result["accuracy"]) == {"last", "best", "best_step", "top5_last"}
    assert 0 <= result["accuracy"]["last"] <= result["accuracy"]["best"] <= 100
    assert json.loads((house.root / folder / "result.json").read_text()) == result
    assert find_results(house.root / folder) == {house.root / folder: result}

    records = [r for r in house.metrics(folder) if losses(r)]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert {name for record in records for name in losses(record)} == LOSSES[method]
    for record in records:
        assert all(abs(value) < 1e4 for value in losses(record).values()), record
    evaluations = [r for r in house.metrics(folder) if metric_names.TOP1 in r]
    assert [r["step"] for r in evaluations] == [2, 4]
    players = {name.split("/")[0] for name in LOSSES[method]}
    logged = {name for record in house.metrics(folder) for name in record}
    assert {name for name in logged if name.startswith("lr/")} == {f"lr/{p}" for p in players}
    unknown = logged - {metric_names.STEP, metric_names.TIME}
    assert not {name for name in unknown if not VOCABULARY.fullmatch(name)}
    assert (metric_names.FAKE_CLASSES in logged) == (drawn_by(method) == 2)
    assert (house.root / folder / "checkpoints" / "last.pt").exists()
    assert (house.root / folder / "checkpoints" / "best.safetensors").exists()
    drawn = sorted(p.name for p in (house.root / folder).glob("samples/*.png"))
    assert len(drawn) == drawn_by(method), drawn


def test_weights_of_a_finished_run_are_trained_ones(house: House) -> None:
    house.run("one", *taught(house, "kd"), "train.steps=1")
    house.run("three", *taught(house, "kd"), "train.steps=3")
    one, three = house.student("one"), house.student("three")
    assert all(torch.isfinite(v.float()).all() for v in three.values())
    moved = [k for k in one if not torch.equal(one[k], three[k])]
    assert len(moved) == len(one), "every weight and statistic moves"


def test_logged_weights_are_the_methods(house: House) -> None:
    settings = ["method.adv=2", "method.align=3", "method.local=0.5", "method.balance=7"]
    house.run("weighted", *taught(house, "mosaic"), *settings, "train.steps=1")
    (record,) = [r for r in house.metrics("weighted") if losses(r)]
    ratios = {k: record[f"weighted/{k}"] / losses(record)[k] for k in losses(record)}
    assert ratios == pytest.approx({
        "discriminator/fake": 0.25, "discriminator/real": 0.25, "generator/local": 0.5,
        "generator/align": 3, "generator/adv": 2, "generator/balance": 7, "student/kd": 1,
    })  # fmt: skip


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=[] if m in ("scratch", "mosaic", "deepinv", "crd") else SLOW)
        for m in METHODS
    ],
)
def test_the_seed_decides_everything(house: House, method: str) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        house.run(f"seed-{method}-{folder}", *taught(house, method), "train.steps=3",
                  f"seed={seed}")  # fmt: skip
    a, b, c = (house.student(f"seed-{method}-{folder}") for folder in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


@pytest.mark.slow
def test_kd_on_letters_learns_the_letters(house: House) -> None:
    result = house.run(
        "kd-letters", *taught(house, "kd"), "ood=letters",
        *[setting.replace("dataset", "ood") for setting in LETTERS],
        "train.batch_size=64", "train.epochs=9", "train.eval_every=144",
    )  # fmt: skip
    assert result["ood"] == "letters"
    assert result["accuracy"]["last"] > 60, "chance is 25 %"
    curve = [losses(r)["student/kd"] for r in house.metrics("kd-letters") if losses(r)]
    assert curve[-1] < curve[0] / 2


def test_the_teacher_is_measured_and_one_below_its_record_is_refused(house: House) -> None:
    taught_by = house.run("measured", *taught(house, "kd"), "train.steps=1")
    trained = json.loads((house.root / "teacher-run" / "result.json").read_text())
    assert taught_by["teacher_accuracy"] == pytest.approx(trained["accuracy"]["last"], abs=0.5)
    with pytest.raises(UserError, match="its record says"):
        house.run("other-images", *taught(house, "kd"), "train.steps=1", "dataset.std=[0.01,9,9]")
    failed = json.loads((house.root / "other-images" / "result.json").read_text())
    assert failed["status"] == "failed"
    assert "its record says" in failed["error"]


@pytest.mark.parametrize("product", ["student.safetensors", "checkpoints/best.safetensors"])
def test_what_one_run_leaves_can_teach_the_next(house: House, product: str) -> None:
    path = house.root / "teacher-run" / product
    result = house.run(
        f"taught-by-{path.stem}", "method=kd", f"teacher.checkpoint={path}", "train.steps=1"
    )
    assert result["teacher_accuracy"] > 80


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


# A run of four steps that evaluates 240 images at steps 2 and 4, in three batches: asked at
# step 1 (1), step 2 (2), three times in the evaluation (3 to 5), step 3 (6), 4 (7), (8 to 10).
@pytest.mark.parametrize(
    ("method", "number"),
    [*[("mosaic", number) for number in (1, 2, 4, 6, 7, 9)], ("kd", 1), ("kd", 4), ("kd", 7),
     ("scratch", 2), ("scratch", 6), ("scratch", 9),
     *[("deepinv", number) for number in (1, 2, 6, 7)], ("sskd", 1), ("sskd", 2), ("sskd", 6),
     ("crd", 2), ("crd", 6), ("dfq", 2), ("dafl", 6), ("zskt", 2), ("balanced", 2),
     ("balanced", 6), ("fitnet", 2), ("rkd", 6)],
)  # fmt: skip
def test_wherever_a_run_is_stopped_it_ends_with_the_same_weights(
    house: House, method: str, number: int
) -> None:
    settings = [
        *taught(house, method), "train.steps=4", "train.eval_every=2", "train.eval_batch_size=100",
        "train.batch_size=16",
    ]  # fmt: skip
    if not (house.root / f"whole-{method}").exists():
        house.run(f"whole-{method}", *settings)
    folder = f"stopped-{method}-{number}"
    with pytest.raises(Interrupted):
        house.run(folder, *settings, interruption=AtCheck(number))
    stopped = json.loads((house.root / folder / "result.json").read_text())
    assert stopped["status"] == "interrupted"
    assert not (house.root / folder / "student.safetensors").exists()

    result = house.run(folder, *settings)
    assert (result["status"], result["steps"]) == ("finished", 4)
    whole = house.student(f"whole-{method}")
    for name, value in house.student(folder).items():
        assert torch.equal(value, whole[name]), name
    before = json.loads((house.root / f"whole-{method}" / "result.json").read_text())
    assert result["accuracy"] == before["accuracy"]


def test_a_finished_run_is_skipped_and_force_runs_it_anew(house: House) -> None:
    settings = ["method=scratch", "train.steps=2"]
    first = house.run("again", *settings)
    path = house.root / "again" / "student.safetensors"
    written = path.stat().st_mtime_ns
    assert house.run("again", *settings) == first | {"skipped": True}
    assert path.stat().st_mtime_ns == written
    house.run("again", *settings, "force=true")
    assert path.stat().st_mtime_ns > written


def test_other_settings_in_the_same_folder_are_refused(house: House) -> None:
    house.run("mine", "method=scratch", "train.steps=2")
    with pytest.raises(UserError, match=r"seed: 0 -> 1.*force=true"):
        house.run("mine", "method=scratch", "train.steps=2", "seed=1")
    watched = house.run("mine", "method=scratch", "train.steps=2", "train.log_every=1")
    assert watched["status"] == "finished", "how a run is watched makes it no other"


def test_force_helps_where_the_message_says_so(house: House) -> None:
    house.run("broken", "method=scratch", "train.steps=1")
    (house.root / "broken" / "result.json").write_text('{"status": ')
    with pytest.raises(UserError, match=r"result\.json.*force=true"):
        house.run("broken", "method=scratch", "train.steps=1")
    result = house.run("broken", "method=scratch", "train.steps=1", "force=true")
    assert result["status"] == "finished"


# ------------------------------------------------------------------------------------ bad settings


def test_a_learning_rate_that_the_optimizer_refuses_is_the_users_mistake(house: House) -> None:
    with pytest.raises(UserError, match="learning rate"):
        house.run("lr", "method=scratch", "train.steps=1", "players.student.optimizer.lr=-1")


def test_a_loss_that_explodes_stops_the_run_and_keeps_its_checkpoint(house: House) -> None:
    settings = ["method=scratch", "train.steps=30", "train.checkpoint_every=1", "train.log_every=1",
                "train.eval_every=100", "players.student.optimizer.lr=1e18"]  # fmt: skip
    with pytest.raises(UserError, match=r"student's .* (at|after) step"):
        house.run("explodes", *settings)
    result = json.loads((house.root / "explodes" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "last good checkpoint is kept" in result["error"]
    state = load_checkpoint(house.root / "explodes" / "checkpoints" / "last.pt")
    weights = state["trainer"]["players"]["student"]["module"].values()
    assert all(torch.isfinite(value.float()).all() for value in weights)


def test_a_game_without_ood_images_is_refused_in_words_or_played(house: House) -> None:
    """Neither the discriminator nor the student sees any: the game becomes data-free."""
    settings = ["method.local=0", "method.ood_in_student_batch=false", "train.steps=1"]
    try:
        result = house.run("dry", *taught(house, "mosaic"), *settings)
    except UserError as error:
        assert "ood" in str(error)  # noqa: PT017  (both answers are right)
    else:
        assert result["status"] == "finished"
