"""Every choice of every group, every experiment, every cell of every sweep: composed, validated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from composing import cells, check, choices, composed, composing, own
from omegaconf import DictConfig

from mosaickd.config.run_key import run_key, variant
from mosaickd.config.schema import CONF, SWEEPS, required_inputs, training_source
from mosaickd.errors import UserError
from mosaickd.report.paper import ORIGINAL, Place, places, table1
from mosaickd.report.results import Run, to_run

ROOTS = {"folder", "parquet"}  # sources that have no root of their own


@pytest.fixture(autouse=True, scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


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
    assert sweeps == {
        "sweep",
        "pair",
        "ablation",
        "wandb",
    }  # wandb: test_wandb_sweeps.py


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


@pytest.mark.parametrize(
    ("method", "given"),
    [
        *itertools.product(
            ["scratch", "dfq"], ["ood=svhn", "ood.limit=5", "ood_subset=true", "ood_subset_size=9"]
        ),
        ("scratch", "teacher=wrn40_2"),
        ("kd", "ood_subset_size=9"),
    ],
)
def test_what_a_method_would_ignore_is_refused(method: str, given: str) -> None:
    with pytest.raises(UserError, match=rf"{given.partition('=')[0]} has no effect"):
        check(f"method={method}", given)


def test_a_quickstart_can_be_played_with_another_method() -> None:
    """The first thing that a newcomer tries."""
    for method in choices(CONF / "method"):
        check("experiment=quickstart", f"method={method}")


# -------------------------------------------------------------------------------------- every sweep

TABLE1 = [name for name in choices(SWEEPS / "sweep") if name.startswith("table1_")]
WAYS = ["cross", pytest.param("all", marks=pytest.mark.slow)]


class Cell(NamedTuple):
    """One job of a sweep, composed and valid."""

    overrides: list[str]
    cfg: DictConfig
    variant: str | None


@pytest.fixture(scope="module", params=WAYS)
def swept(request: pytest.FixtureRequest) -> dict[str, list[Cell]]:
    """By sweep, its cells. In a cross, of a table's cells only the first row and column: each
    choice is composed, but not with every other."""
    found = {}
    for sweep in choices(SWEEPS / "sweep"):
        jobs = cells(sweep)
        if request.param == "cross":
            jobs = [job for job in jobs if sum(a != b for a, b in zip(job, jobs[0])) < 2]  # noqa: B905
        found[sweep] = [Cell(job, cfg := check(*job), variant(cfg)) for job in jobs]
    return found


def test_every_cell_of_every_sweep_has_a_folder_of_its_own(swept: dict[str, list[Cell]]) -> None:
    for sweep, jobs in swept.items():
        assert len(jobs) >= 2
        runs: dict[str, Any] = {}
        for _, cfg, _ in jobs:
            assert Path(cfg.hydra.sweep.dir) == Path("outputs") / sweep
            assert cfg.hydra.sweep.subdir.endswith("/seed0")
            same = run_key(own(cfg))
            assert runs.setdefault(cfg.hydra.sweep.subdir, same) == same, "two runs in one folder"


def test_table_sweeps_cover_the_papers_table(swept: dict[str, list[Cell]]) -> None:
    """Every number of the paper has its cell, run by its recipe, in the sweep of its block."""
    table = table1()
    everything = {(row, pair) for row in table.rows for pair in table.pairs}
    assert len(everything) == 145
    covered: list[Place] = []
    for sweep in TABLE1:
        rows: dict[str, tuple[str, str]] = {}
        for (_, method, chosen), cfg, differing in swept[sweep]:
            pair = f"{cfg.teacher.name}-{cfg.student.name}"
            assert chosen == f"pair={pair}"
            assert differing is None, "not the recipe, so not a number of the table"
            (rows[method],) = (row for row, column in places(result(cfg)) if column == pair)
        assert len({data for _, data in rows.values()}) == 1, "a sweep, a block"
        jobs = [(rows[method], pair.removeprefix("pair=")) for _, method, pair in cells(sweep)]
        if ("kd", ORIGINAL) in rows.values():  # teachers are measured as they teach
            jobs += [(("teacher", ORIGINAL), pair) for row, pair in jobs if row[0] == "kd"]
        covered += jobs
    assert sorted(covered) == sorted(everything)


@pytest.mark.parametrize("sweep", TABLE1)
def test_a_table_sweep_opens_with_the_papers_numbers(sweep: str) -> None:
    text = (SWEEPS / "sweep" / f"{sweep}.yaml").read_text()
    lines = [line.strip("# |").split(" | ") for line in text.splitlines() if line.startswith("# |")]
    header, _, *rows = lines
    table = table1()
    assert [pair.strip().replace(" to ", "-") for pair in header] == list(table.pairs)
    printed = {method: [float(number) for number in numbers] for method, *numbers in rows}
    (expected,) = [
        block
        for data in table.blocks
        if (block := {m: list(row.values()) for (m, d), row in table.rows.items() if d == data})
        == printed
    ]
    assert expected


@pytest.mark.parametrize("sweep", choices(SWEEPS / "sweep"))
def test_every_sweep_opens_with_its_command(sweep: str) -> None:
    text = (SWEEPS / "sweep" / f"{sweep}.yaml").read_text()
    assert f"python run.py -m sweep={sweep}" in text


def test_a_sweep_is_narrowed_widened_and_multiplied_on_the_command_line() -> None:
    whole = cells("table1_svhn")
    assert len(whole) == 5 * 5
    assert len(cells("table1_svhn", "seed=0,1,2")) == 3 * len(whole)
    narrowed = cells("table1_svhn", "method=kd,mosaic", "pair=wrn40_2-wrn16_1", "seed=0,1,2")
    chosen = [{o for o in cell if not o.startswith("sweep=")} for cell in narrowed]
    assert chosen == [
        {f"method={method}", "pair=wrn40_2-wrn16_1", f"seed={seed}"}
        for method in ("kd", "mosaic") for seed in range(3)
    ]  # fmt: skip
    folders = [composed(*cell).hydra.sweep.subdir for cell in narrowed]
    assert len(set(folders)) == 6
    widened = cells("table1_svhn", "method=dfq,sskd", "pair=wrn40_2-wrn16_1")
    assert [check(*cell).method.name for cell in widened] == ["dfq", "sskd"]


def result(cfg: DictConfig) -> Run:
    """What a report knows of a cell once it is finished."""
    images = training_source(cfg) == "ood"
    return to_run(
        Path(),
        {
            **{"status": "finished", "method": cfg.method.name, "dataset": cfg.dataset.name},
            **{"ood": cfg.ood.name if images else None, "ood_subset": images and cfg.ood_subset},
            **{"teacher": cfg.teacher.name if "teacher" in required_inputs(cfg) else None},
            **{"student": cfg.student.name},
            **{"seed": cfg.seed, "variant": variant(cfg), "steps": 1, "seconds": 1.0},
            **{"accuracy": {"last": 1.0, "best": 1.0}, "teacher_accuracy": None},
        },
    )  # fmt: skip
