"""Tables from result files alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mosaickd import report
from mosaickd.report.results import collect

Made = dict[str, Any]


def write(folder: Path, **changes: Any) -> Made:
    """A run's result.json, as the launcher writes it. last=, best=: its accuracy."""
    last, best = changes.pop("last", 70.0), changes.pop("best", 71.25)
    result = {
        "status": "finished", "method": "mosaic", "dataset": "cifar100", "ood": "cifar10",
        "teacher": "wrn40_2", "student": "wrn16_1", "seed": 0,
        "accuracy": {"last": last, "best": best, "best_step": 40, "top5_last": 91.0},
        "teacher_accuracy": 75.83, "steps": 50, "seconds": 12.3, "seconds_per_step": 0.2,
        "device": "a CPU, fp32", "versions": {}, "config_hash": "0" * 12, "error": None,
        "variant": None, "ood_subset": False,
    } | changes  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    return result


def rows(root: Path) -> list[list[str]]:
    """The cells of the sweep's table."""
    table = report.sweep_table(root)
    columns = [list(column.cells) for column in table.columns]
    return [[str(cell) for cell in row] for row in zip(*columns, strict=True)]


def test_seeds_stand_side_by_side_with_their_mean(tmp_path: Path) -> None:
    for seed, last in ((0, 60.0), (1, 61.0), (2, 65.0)):
        write(tmp_path / f"seed{seed}", seed=seed, last=last)
    table = report.sweep_table(tmp_path)
    headers = [str(column.header) for column in table.columns][-4:]
    assert headers == ["seed 0", "seed 1", "seed 2", "mean"]
    teacher, student = rows(tmp_path)
    assert teacher[0] == "teacher wrn40_2"
    assert teacher[-4:] == ["75.83 %"] * 4
    assert student[0] == "student wrn16_1"
    assert student[-4:] == ["60.00 %", "61.00 %", "65.00 %", "62.00 ± 2.65 % (3)"]


@pytest.mark.parametrize(
    ("settings", "made_of", "said"),
    [
        ({"method": {"temperature": 1.0}}, {}, "method.temperature is 5.0 there, 1.0 here"),
        ({"train": {"steps": 3, "precision": "bf16"}, "ood": {"root": "elsewhere"}}, {}, None),
        ({}, {"data_fingerprint": {"ood/train": "b"}}, "other images"),
        ({}, {"teacher_fingerprint": "other"}, "another teacher"),
    ],
)
def test_runs_of_a_row_that_are_more_than_seeds_apart_are_named(
    tmp_path: Path, settings: Made, made_of: Made, said: str | None
) -> None:
    usual = {"method": {"temperature": 5.0}, "train": {"steps": 3, "precision": "fp32"},
             "ood": {"root": "here"}}  # fmt: skip
    fingerprints = {"data_fingerprint": {"ood/train": "a"}, "teacher_fingerprint": "usual"}
    write(tmp_path / "seed0", seed=0, **fingerprints)
    write(tmp_path / "seed1", seed=1, **fingerprints | made_of)
    for seed, own in ((0, usual), (1, usual | settings)):
        (tmp_path / f"seed{seed}" / "config.json").write_text(json.dumps(own | {"seed": seed}))
    table = report.sweep_table(tmp_path)
    if said is None:
        assert "another seed" not in str(table.caption or "")
    else:
        assert "seed1 stands in one row with" in str(table.caption)
        assert f"has more than another seed: {said}" in str(table.caption)


def test_the_last_evaluation_is_compared_not_the_best(tmp_path: Path) -> None:
    write(tmp_path / "run", last=60.0, best=80.0)
    assert "80.00 %" not in str(rows(tmp_path))


def test_methods_and_images_are_rows_of_their_own_teachers_first(tmp_path: Path) -> None:
    write(tmp_path / "kd", method="kd", last=40.0)
    write(tmp_path / "original", method="kd", ood="cifar100", last=73.0)
    write(tmp_path / "mosaic", last=61.0)
    write(tmp_path / "scratch", method="scratch", ood=None, teacher=None, last=65.0,
          teacher_accuracy=None)  # fmt: skip
    table = rows(tmp_path)
    assert table[0][0].startswith("teacher")
    assert [row[-1] for row in table[1:]] == ["73.00 %", "65.00 %", "61.00 %", "40.00 %"]


def test_students_of_two_teachers_are_two_rows(tmp_path: Path) -> None:
    """The table's columns resnet34 to resnet18 and vgg11 to resnet18."""
    write(tmp_path / "a", student="resnet18", teacher="resnet34", last=77.0)
    write(tmp_path / "b", student="resnet18", teacher="vgg11", last=68.0)
    text = str(rows(tmp_path))
    assert "77.00 %" in text
    assert "68.00 %" in text


def test_a_run_that_failed_early_does_not_hide_its_teacher(tmp_path: Path) -> None:
    write(tmp_path / "a", last=61.0)
    write(tmp_path / "b", method="kd", status="failed", last=None, best=None,
          teacher_accuracy=None)  # fmt: skip
    assert rows(tmp_path)[0][-1] == "75.83 %"


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_unfinished_runs_have_no_number(tmp_path: Path, status: str) -> None:
    write(tmp_path / "seed0", seed=0, last=60.0)
    write(tmp_path / "seed1", seed=1, last=20.0, status=status)
    assert rows(tmp_path)[1][-3:] == ["60.00 %", "-", "60.00 %"]


def test_other_settings_of_a_method_are_rows_of_their_own_with_a_legend(tmp_path: Path) -> None:
    long = "train.epochs=3, ood.limit=10000, dataset.classes=[0, 10, 20]"
    write(tmp_path / "a", last=60.0)
    write(tmp_path / "b", last=50.0, variant=long)
    table = report.sweep_table(tmp_path)
    assert [row[3] for row in rows(tmp_path)] == ["", "", "a"]
    assert f"a: {long}" in str(table.caption)


def test_many_seeds_stand_in_one_column(tmp_path: Path) -> None:
    for seed in range(12):
        write(tmp_path / f"seed{seed}", seed=seed, last=50.0 + seed)
    *_, seeds, mean = rows(tmp_path)[1]
    assert seeds.splitlines()[11] == "11: 61.00 %"
    assert mean == "55.50 ± 3.61 % (12)"


def test_of_one_cell_and_seed_the_longer_run_counts_and_the_table_says_so(tmp_path: Path) -> None:
    write(tmp_path / "first", last=60.0, steps=100)
    write(tmp_path / "second", last=70.0, steps=50)
    assert rows(tmp_path)[1][-1] == "60.00 %"
    assert str(tmp_path / "second") in str(report.sweep_table(tmp_path).caption)


def test_a_sweeps_table_names_a_result_that_it_could_not_read(tmp_path: Path) -> None:
    write(tmp_path / "run")
    write(tmp_path / "broken", accuracy="high")
    caption = str(report.sweep_table(tmp_path).caption)
    assert f'{tmp_path / "broken" / "result.json"}: accuracy is "high"' in caption


def test_teachers_that_runs_trained_for_themselves_are_two_rows(tmp_path: Path) -> None:
    write(tmp_path / "a", teacher_accuracy=75.0)
    write(tmp_path / "b", teacher_accuracy=30.0, variant="train.steps=2")
    shown = [row[-1] for row in rows(tmp_path) if row[0] == "teacher wrn40_2"]
    assert sorted(shown) == ["30.00 %", "75.00 %"]


def test_teachers_own_runs_and_broken_files_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "seed0")
    write(tmp_path / "seed0" / "teacher" / "wrn40_2-training", method="scratch")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text('{"status": "fini')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text("[1, 2]")
    assert list(report.find_results(tmp_path)) == [tmp_path / "seed0"]


def test_a_run_in_a_folder_called_teacher_is_a_run_like_any_other(tmp_path: Path) -> None:
    write(tmp_path / "teacher", method="scratch", student="wrn40_2", teacher=None)
    assert list(report.find_results(tmp_path)) == [tmp_path / "teacher"]


def test_a_runs_table_says_last_best_and_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run", last=60.5, best=62.25, seed=3)
    (tmp_path / "run" / "student.safetensors").touch()
    report.show_run(tmp_path / "run")
    shown = capsys.readouterr().out
    for words in ("60.50 %", "62.25 %", "at step 40", "75.83 %", "seed 3", "finished",
                  str(tmp_path / "run" / "student.safetensors")):  # fmt: skip
        assert words in shown, shown


def test_a_folder_without_a_result_shows_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.show_run(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_run_with_settings_of_its_own_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run", variant="dataset.classes=[bold]", method="[/red]")
    report.show_run(tmp_path / "run")
    shown = capsys.readouterr().out
    assert "dataset.classes=[bold]" in shown
    assert "[/red] on cifar10" in shown, "names are no markup of the terminal"


def test_a_method_without_words_of_its_own_goes_by_its_name(tmp_path: Path) -> None:
    made = write(tmp_path / "run", method="mine")
    assert report.describe(made) == "mine on cifar10"
    assert report.describe(made | {"ood": None}) == "mine"
    assert report.describe(made | {"method": "kd", "ood": None}) == "kd"


@pytest.mark.parametrize("method", report.WORDS)
def test_words_name_the_images(tmp_path: Path, method: str) -> None:
    words = report.describe(write(tmp_path / "run", method=method, ood_subset=True))
    free = ("dafl", "zskt", "deepinv", "dfq")
    expected = "cifar100" if method == "scratch" else "cifar10 (OOD subset)"
    assert "data-free" in words if method in free else expected in words


def test_a_sweep_of_the_papers_cells_also_shows_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run", last=60.5)
    report.show_sweep(tmp_path)
    shown = capsys.readouterr().out
    assert shown.index("60.50 %") < shown.index("Table 1") < shown.index("61.01")


def test_a_sweep_of_other_cells_shows_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run", dataset="letters", ood="strokes", variant="train.epochs=3")
    report.show_sweep(tmp_path)
    shown = capsys.readouterr().out
    assert len([line for line in shown.splitlines() if line.startswith("│")]) == 2
    assert "Table 1" not in shown
    report.show_sweep(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    report.show_sweep(tmp_path / "empty")
    assert capsys.readouterr().out == ""


def test_importing_it_loads_nothing_heavy() -> None:
    """Each command imports it, also `--help`."""
    heavy = "{'torch', 'matplotlib', 'numpy'}"
    code = f"import sys, mosaickd.report; sys.exit(str({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


def test_tables_are_not_folded_where_a_script_reads() -> None:
    console = report.console()
    assert isinstance(console, Console)
    assert console.width >= 100


def test_the_command(tmp_path: Path) -> None:
    write(tmp_path / "run", last=60.5)
    command = [sys.executable, "-m", "mosaickd.report"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "60.50" in done.stdout
    assert "61.01" in done.stdout, "the paper's number"
    nothing = subprocess.run(
        [*command, str(tmp_path / "none")], capture_output=True, text=True, check=False
    )
    assert nothing.returncode == 1
    assert "no result.json below" in nothing.stderr
    assert "Traceback" not in nothing.stderr


def test_packages_that_lie_beside_results_are_not_taken_for_ours(tmp_path: Path) -> None:
    """A folder of results that somebody has sent, looked at from inside of it."""
    write(tmp_path / "runs" / "run")
    for name in ("rich", "filelock", "matplotlib", "yaml", "numpy"):
        code = f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).touch()\n"
        (tmp_path / "runs" / f"{name}.py").write_text(code)
    path = str(Path(report.__file__).parent.parent.parent)
    for program in ("report", "status"):
        done = subprocess.run(
            [sys.executable, "-m", f"mosaickd.{program}", "run"], cwd=tmp_path / "runs",
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "run" in done.stdout
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": -5}, "steps is -5"),
        ({"seconds": -3.0}, "seconds is -3.0"),
        ({"total_steps": -1}, "total_steps is -1"),
    ],
)
def test_numbers_that_no_run_has_are_refused(tmp_path: Path, changes: Made, said: str) -> None:
    write(tmp_path / "run", **changes)
    ((_, problem),) = collect([tmp_path]).problems
    assert said in problem
