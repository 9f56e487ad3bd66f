"""Every choice of every group, every experiment, every cell of every sweep: composed, validated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from composing import cells, check, choices, composed, composing, own

from mosaickd.analysis.labels import images
from mosaickd.analysis.table1 import DATA_FREE, DATASET, ORIGINAL, table1
from mosaickd.config.run_key import run_key, variant
from mosaickd.config.schema import CONF, SWEEPS, training_source
from mosaickd.errors import UserError

ROOTS = {"folder", "parquet"}  # sources that have no root of their own


@pytest.fixture(autouse=True, scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


# ------------------------------------------------------------------------------------- every choice


@pytest.mark.parametrize("alias", ["teacher", "student", "ood", "dataset"])
def test_every_model_and_data_set_can_be_chosen_under_each_of_its_names(alias: str) -> None:
    group = "model" if alias in ("teacher", "student") else "dataset"
    for name in choices(CONF / group):
        root = [f"{alias}.root=somewhere"] if name in ROOTS else []
        assert check(f"{alias}={name}", *root)[alias].name == name


@pytest.mark.parametrize("group", ["method", "train", "tracker", "generator", "discriminator"])
def test_every_choice_of_the_other_groups(group: str) -> None:
    for name in choices(CONF / group):
        check(f"{group}={name}")


def test_no_group_is_forgotten_here() -> None:
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    known = {"model", "dataset", "method", "train", "tracker", "generator", "discriminator"}
    assert groups == known | {"experiment"}
    sweeps = {folder.name for folder in SWEEPS.iterdir() if any(folder.glob("*.yaml"))}
    assert sweeps == {"sweep", "pair", "ablation", "wandb"}  # wandb: test_wandb_sweeps.py


@pytest.mark.parametrize("name", choices(CONF / "experiment"))
def test_every_experiment(name: str) -> None:
    check(f"experiment={name}")


def test_a_quickstart_can_be_played_with_another_method() -> None:
    """The first thing that a newcomer tries."""
    for method in choices(CONF / "method"):
        check("experiment=quickstart", f"method={method}")


@pytest.mark.parametrize("name", choices(SWEEPS / "pair"))
def test_every_pair_is_what_its_name_says(name: str) -> None:
    cfg = check(f"pair={name}")
    assert f"{cfg.teacher.name}-{cfg.student.name}" == name


# ------------------------------------------------------------ what a command says and a run ignores


@pytest.mark.parametrize("override", ["teacher=wrn40_2", "student=wrn16_1"])
def test_a_pair_beside_a_teacher_or_student_is_refused(override: str) -> None:
    with pytest.raises(UserError, match="pair="):
        check("pair=wrn40_2-wrn16_1", override)


@pytest.mark.parametrize(
    ("method", "override"),
    [
        ("scratch", "ood=svhn"), ("scratch", "teacher=wrn40_2"), ("dfq", "ood.limit=5"),
        ("dfq", "ood_subset=true"), ("dfq", "ood_subset_size=9"), ("kd", "ood_subset_size=9"),
        ("kd", "ablation"),
    ],
)  # fmt: skip
def test_what_a_method_would_ignore_is_refused(method: str, override: str) -> None:
    name = override.partition("=")[0]
    with pytest.raises(UserError, match=rf"{name}(= changes the game| has no effect)"):
        check(f"method={method}", "ablation=no_adv" if override == "ablation" else override)


# -------------------------------------------------------------------------------------- every sweep

TABLE1 = [name for name in choices(SWEEPS / "sweep") if name.startswith("table1_")]


@pytest.fixture(params=["some", pytest.param("all", marks=pytest.mark.slow)])
def every_cell(request: pytest.FixtureRequest) -> bool:
    """Whether all cells are composed, or, of a table, one for each row and each column."""
    return bool(request.param == "all")


def some_cells(sweep: str, every_cell: bool) -> list[list[str]]:
    jobs = cells(sweep)
    if every_cell or not sweep.startswith("table1_"):
        return jobs
    methods, pairs = ({job[place]: None for job in jobs} for place in (1, 2))
    count = max(len(methods), len(pairs))
    diagonal = zip(itertools.cycle(methods), itertools.cycle(pairs), range(count), strict=False)
    return [[f"sweep={sweep}", method, pair] for method, pair, _ in diagonal]


@pytest.mark.parametrize("sweep", choices(SWEEPS / "sweep"))
def test_every_cell_of_a_sweep_has_a_folder_of_its_own(sweep: str, every_cell: bool) -> None:
    assert f"python run.py -m sweep={sweep}" in (SWEEPS / "sweep" / f"{sweep}.yaml").read_text()
    runs: dict[str, Any] = {}
    for job in some_cells(sweep, every_cell):
        cfg = check(*job)
        assert cfg.hydra.sweep.dir == f"outputs/{sweep}"
        assert cfg.hydra.sweep.subdir.endswith("/seed0")
        key = run_key(own(cfg))
        assert runs.setdefault(cfg.hydra.sweep.subdir, key) == key, "two runs in one folder"
        if sweep in TABLE1:
            assert variant(cfg) is None, "not the recipe, so not a number of the table"
            assert data_of(cfg) == block_of(sweep) or cfg.method.name == "scratch"
            assert f"pair={cfg.teacher.name}-{cfg.student.name}" == job[2]
    assert len(runs) >= 2


@pytest.mark.parametrize("sweep", TABLE1)
def test_a_table_sweep_covers_its_block_of_the_papers_table(sweep: str) -> None:
    # Rows of the original data: a teacher is measured as it teaches, a student alone is scratch.
    methods = {"teacher": "kd", "student": "scratch"}
    rows = {methods.get(row, row) for row, data in table1().rows if data == block_of(sweep)}
    expected = {(f"method={row}", f"pair={pair}") for row in rows for pair in table1().pairs}
    assert {(job[1], job[2]) for job in cells(sweep)} == expected


def test_table_sweeps_cover_the_papers_table() -> None:
    assert sorted(block_of(sweep) for sweep in TABLE1) == sorted(table1().blocks)


def block_of(sweep: str) -> str:
    """The block of the paper's table whose numbers the sweep's file opens with."""
    text = (SWEEPS / "sweep" / f"{sweep}.yaml").read_text()
    lines = [line.strip("# |").split(" | ") for line in text.splitlines() if line.startswith("# |")]
    header, _, *rows = lines
    table = table1()
    assert [pair.strip().replace(" to ", "-") for pair in header] == list(table.pairs)
    printed = {method: [float(number) for number in numbers] for method, *numbers in rows}
    (block,) = [
        data
        for data in table.blocks
        if {m: [*row.values()] for (m, d), row in table.rows.items() if d == data} == printed
    ]
    return block


def data_of(cfg: Any) -> str:
    """The block of the paper's table that a job's images belong to."""
    data = images(cfg.ood.name, cfg.ood_subset) if training_source(cfg) == "ood" else DATA_FREE
    return ORIGINAL if data == DATASET else str(data)


def test_a_sweep_is_narrowed_widened_and_multiplied_on_the_command_line() -> None:
    whole = cells("table1_svhn")
    assert len(whole) == 5 * 5
    assert len(cells("table1_svhn", "seed=0,1,2")) == 3 * len(whole)
    narrowed = cells("table1_svhn", "method=kd,mosaic", "pair=wrn40_2-wrn16_1", "seed=0,1")
    chosen = [{o for o in cell if not o.startswith("sweep=")} for cell in narrowed]
    assert chosen == [
        {f"method={method}", "pair=wrn40_2-wrn16_1", f"seed={seed}"}
        for method in ("kd", "mosaic") for seed in range(2)
    ]  # fmt: skip
    assert len({composed(*cell).hydra.sweep.subdir for cell in narrowed}) == 4
    widened = cells("table1_svhn", "method=dfq,sskd", "pair=wrn40_2-wrn16_1")
    assert [check(*cell).method.name for cell in widened] == ["dfq", "sskd"]
