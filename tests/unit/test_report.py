"""`python -m mosaickd.report` and the tables after a run and a sweep: the paper beside what was
measured, in all formats."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from run_folders import append, evaluated, owned, write

from mosaickd.analysis import show_run, show_sweep
from mosaickd.analysis.labels import short, signed
from mosaickd.analysis.runs import load_runs
from mosaickd.analysis.table1 import ORIGINAL, table1
from mosaickd.report import main

Capture = pytest.CaptureFixture[str]
PAIRS = ["resnet34-resnet18", "vgg11-resnet18", "wrn40_2-wrn16_1", "wrn40_2-wrn40_1",
         "wrn40_2-wrn16_2"]  # fmt: skip
HERE = "wrn40_2-wrn16_1"


def as_json(capsys: Capture, *arguments: object) -> Any:
    main([*map(str, arguments), "--format", "json"])
    return json.loads(capsys.readouterr().out)


def cell(content: Any, method: str, data: str, column: str = HERE) -> Any:
    key = (method, data, column)
    (found,) = [c for c in content["cells"] if (c["method"], c["data"], c["column"]) == key]
    return found


def students(content: Any) -> list[Any]:
    return [row for row in content["other"] if row["model"] == "student"]


def failing(*arguments: object) -> str:
    err = io.StringIO()
    with pytest.raises(SystemExit, match="1"), redirect_stderr(err):
        main([*map(str, arguments)])
    return err.getvalue()


# --------------------------------------------------------------------------------------- the cells


def test_mean_spread_and_difference_over_seeds(tmp_path: Path, capsys: Capture) -> None:
    for seed, last in ((0, 60.0), (1, 61.0), (2, 65.0)):
        write(tmp_path / f"{seed}", seed=seed, last=last, best=90.0)
    found = cell(as_json(capsys, tmp_path), "mosaic", "cifar10")
    assert found["paper"] == 61.01
    assert found["ours"] == [{"seed": 0, "accuracy": 60.0}, {"seed": 1, "accuracy": 61.0},
                             {"seed": 2, "accuracy": 65.0}]  # fmt: skip
    assert (found["mean"], found["n"]) == (62.0, 3)
    assert found["sd"] == pytest.approx(7**0.5, abs=1e-4), "of a sample: 14 / (3 - 1)"
    assert found["difference"] == pytest.approx(0.99)


def test_last_unless_best_is_asked_for_and_the_title_says_which(
    tmp_path: Path, capsys: Capture
) -> None:
    write(tmp_path / "0", last=60.0, best=62.5)
    write(tmp_path / "other", last=60.0, best=62.5, dataset="letters")
    for arguments, here, elsewhere, words in (
        ([], "60.00", "62.50", "last"),
        (["--best"], "62.50", "60.00", "best"),
    ):
        main([str(tmp_path), *arguments])
        shown = capsys.readouterr().out
        assert f"the {words} evaluation" in shown
        assert f"at the {words} step" in shown
        assert here in shown
        assert elsewhere not in shown
        assert signed(float(here) - 61.01) in shown, "the difference"


@pytest.mark.parametrize(
    ("settings", "method", "data"),
    [
        ({}, "mosaic", "cifar10"),
        ({"method": "kd", "ood": "cifar100"}, "kd", ORIGINAL),
        ({"method": "dfq", "ood": None}, "dfq", "data-free"),
        ({"ood": "imagenet32", "ood_subset": True}, "mosaic", "imagenet32 (OOD subset)"),
        ({"method": "rkd", "ood": "svhn"}, "rkd", "svhn"),
    ],
)
def test_where_a_run_stands(
    tmp_path: Path, capsys: Capture, settings: Any, method: str, data: str
) -> None:
    write(tmp_path / "run", last=40.0, **settings)
    content = as_json(capsys, tmp_path)
    found = cell(content, method, data)
    assert (found["mean"], found["paper"]) == (40.0, table1().rows[method, data][HERE])
    assert content["other"] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "train.steps=600, ood.limit=10000"},
        {"ood": "imagenet32"},  # the paper's is a subset
        {"ood_subset": True},  # and its cifar10 is none
        {"method": "crd", "ood": "svhn"},  # not in the paper
        {"method": "dfq"},
        {"method": "student", "ood": "cifar100"},
        {"student": "wrn16_3"},
        {"dataset": "cifar_mini"},
        {"teacher": "vgg11"},
    ],
)
def test_what_is_not_the_papers_never_stands_beside_its_numbers(
    tmp_path: Path, capsys: Capture, settings: Any
) -> None:
    write(tmp_path / "run", last=40.0, **settings)
    content = as_json(capsys, tmp_path)
    assert content["cells"] == []
    (student,) = students(content)
    assert (student["mean"], student["variant"]) == (40.0, settings.get("variant"))


def test_other_settings_are_grouped_by_what_differs(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "paper")
    for i, (last, variant) in enumerate(((50, "method.balance=0"), (30, "train.steps=9"))):
        write(tmp_path / f"mosaic{i}", last=last, variant=variant)
        write(tmp_path / f"kd{i}", last=last - 15, method="kd", variant=variant)
    rows = students(as_json(capsys, tmp_path))
    assert [(row["variant"], row["method"]) for row in rows] == [
        ("method.balance=0", "mosaic"), ("method.balance=0", "kd"),
        ("train.steps=9", "mosaic"), ("train.steps=9", "kd"),
    ]  # fmt: skip


def test_a_student_from_scratch_stands_in_each_of_its_columns(
    tmp_path: Path, capsys: Capture
) -> None:
    scratch: Any = {"method": "scratch", "ood": None, "teacher": None, "teacher_accuracy": None}
    write(tmp_path / "run", student="resnet18", last=77.0, **scratch)
    content = as_json(capsys, tmp_path)
    assert {c["column"] for c in content["cells"]} == set(PAIRS[:2])
    for pair in PAIRS[:2]:
        assert cell(content, "student", ORIGINAL, pair)["difference"] == pytest.approx(-0.1)


def test_the_teacher_is_the_one_that_taught_and_is_counted_once(
    tmp_path: Path, capsys: Capture
) -> None:
    for seed in (0, 1):
        write(tmp_path / f"{seed}", seed=seed, teacher_accuracy=75.5 + seed / 100)
    found = cell(as_json(capsys, tmp_path), "teacher", ORIGINAL)
    assert (found["mean"], found["n"], found["sd"]) == (75.5, 1, None)

    # ---- The run that trained it, and another teacher with another seed.
    for seed, last in ((0, 75.5), (1, 76.5)):
        write(tmp_path / f"teacher{seed}", method="scratch", ood=None, teacher=None, seed=seed,
              student="wrn40_2", teacher_accuracy=None, last=last, best=99.0)  # fmt: skip
    content = as_json(capsys, tmp_path, "--best")
    found = cell(content, "teacher", ORIGINAL)
    assert [one["seed"] for one in found["ours"]] == [0, 1]
    assert found["mean"] == 76.0, "after its last step, as it teaches"
    assert {c["column"] for c in content["cells"]} == {HERE}
    assert any("teachers" in note for note in content["notes"])


def test_teachers_that_cut_short_runs_trained_for_themselves_are_two_rows(
    tmp_path: Path, capsys: Capture
) -> None:
    write(tmp_path / "a", dataset="letters", teacher_accuracy=75.0)
    write(tmp_path / "b", dataset="letters", teacher_accuracy=30.0, variant="train.steps=2")
    rows = [row for row in as_json(capsys, tmp_path)["other"] if row["model"] == "teacher"]
    assert [row["mean"] for row in rows] == [75.0, 30.0]


def test_an_average_of_ours_needs_all_five_columns(tmp_path: Path, capsys: Capture) -> None:
    for i, pair in enumerate(PAIRS):
        if i == 4:
            content = as_json(capsys, tmp_path)
            assert "average" not in {c["column"] for c in content["cells"]}
        teacher, student = pair.split("-")
        write(tmp_path / pair, teacher=teacher, student=student, last=60.0 + i)
    content = as_json(capsys, tmp_path)
    average = cell(content, "mosaic", "cifar10", "average")
    assert average["mean"] == 62.0
    assert average["paper"] == pytest.approx(69.626), "of the row; the paper prints 69.55"
    assert average["difference"] == pytest.approx(62.0 - 69.626)
    assert any("69.55" in note for note in content["notes"])


def test_only_what_the_folders_hold_unless_all_is_asked_for(
    tmp_path: Path, capsys: Capture
) -> None:
    write(tmp_path / "run")
    shown = {(c["method"], c["data"], c["column"]) for c in as_json(capsys, tmp_path)["cells"]}
    assert shown == {("teacher", ORIGINAL, HERE), ("mosaic", "cifar10", HERE)}
    content = as_json(capsys, tmp_path, "--all")
    assert len(content["cells"]) == len(table1().rows) * 6
    assert [c["column"] for c in content["cells"][:6]] == [*PAIRS, "average"], "the paper's order"
    empty = cell(content, "kd", "cifar10")
    assert empty["paper"] == 47.47
    assert [empty[name] for name in ("mean", "sd", "n", "difference")] == [None] * 4, "not zero"


def test_the_papers_numbers_are_whole() -> None:
    table = table1()
    assert list(table.pairs) == PAIRS
    assert len(table.rows) == 29
    assert table.rows["mosaic", "cifar10"][HERE] == 61.01
    assert {row for row, _ in table.misprints()} == {
        ("kd", ORIGINAL), ("fitnet", "cifar10"), ("mosaic", "cifar10"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "+0.50"), (-0.5, "−0.50"), (-0.001, "0.00"), (None, "")]
)
def test_differences_have_a_sign(value: float | None, text: str) -> None:
    assert signed(value) == text


# ----------------------------------------------------------------------- what else is to be known


def test_of_two_runs_of_a_cell_and_seed_the_longer_counts(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "a" / "run", last=50.0, steps=10)
    write(tmp_path / "b" / "run", last=60.0, steps=20)
    content = as_json(capsys, tmp_path / "a", tmp_path / "b", tmp_path / "b" / "run")
    found = cell(content, "mosaic", "cifar10")
    assert (found["mean"], found["n"]) == (60.0, 1)
    (note,) = content["notes"]
    assert str(tmp_path / "a" / "run") in note


@pytest.mark.parametrize(
    ("settings", "result", "words"),
    [
        ({"method": {"temperature": 1.0}}, {}, "method.temperature is 5.0 there, 1.0 here"),
        ({"train": {"steps": 3, "precision": "bf16"}, "ood": {"root": "elsewhere"}}, {}, None),
        ({}, {"data_fingerprint": {"ood/train": "b"}}, "other images"),
        ({}, {"teacher_fingerprint": "other"}, "another teacher"),
    ],
)
def test_runs_of_a_row_that_are_more_than_seeds_apart_are_named(
    tmp_path: Path, capsys: Capture, settings: Any, result: Any, words: str | None
) -> None:
    usual = {"method": {"temperature": 5.0}, "train": {"steps": 3, "precision": "fp32"},
             "ood": {"root": "here"}}  # fmt: skip
    fingerprints = {"data_fingerprint": {"ood/train": "a"}, "teacher_fingerprint": "usual"}
    for seed, own, more in ((0, usual, {}), (1, usual | settings, result)):
        folder = tmp_path / f"seed{seed}"
        write(folder, seed=seed, **fingerprints | more)
        (folder / "config.json").write_text(json.dumps(own | {"seed": seed}))
    notes = as_json(capsys, tmp_path)["notes"]
    if words is None:
        assert notes == []
    else:
        assert f"has more than another seed: {words}" in notes[0]
        assert "seed1 stands in one row with" in notes[0]


def test_unfinished_runs_do_not_count_and_are_named(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "done", last=60.0)
    write(tmp_path / "failed", seed=1, last=10.0, status="failed", error="RuntimeError: no [/b]")
    write(tmp_path / "stopped", seed=2, last=10.0, status="interrupted", steps=7)
    for name, mark in (("going", {"process": os.getpid(), "host": socket.gethostname()}),
                       ("killed", {"process": 1, "host": "elsewhere", "ago": 3600.0})):  # fmt: skip
        write(tmp_path / name, seed=3, last=None, best=None, status="running")
        owned(tmp_path / name, **mark)  # type: ignore[arg-type]
        append(tmp_path / name, evaluated(12, 3.0))
        with (tmp_path / name / "metrics.jsonl").open("a") as file:
            file.write('{"st')  # cut by a kill
    content = as_json(capsys, tmp_path)
    assert cell(content, "mosaic", "cifar10")["n"] == 1
    unfinished = {Path(run["folder"]).name: run for run in content["unfinished"]}
    assert {name: (run["status"], run["steps"]) for name, run in unfinished.items()} == {
        "failed": ("failed", 50), "stopped": ("interrupted", 7),
        "going": ("running", 12), "killed": ("killed", 12),
    }  # fmt: skip
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert "RuntimeError: no [/b]" in shown
    assert str(tmp_path / "stopped") in shown


def test_a_sweep_of_failures_is_shown(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "run", status="failed", last=None, best=None, error="out of memory")
    for form in (None, "md", "csv", "latex", "json"):
        main([str(tmp_path), *(["--format", form] if form else [])])
        printed = capsys.readouterr()
        assert "out of memory" in printed.out + printed.err
    show_sweep(tmp_path)
    assert "out of memory" in capsys.readouterr().out


BROKEN: dict[str, Any] = {
    "cut": b'{"status": "fini', "binary": b"\xff\xfe\x00" * 1000, "deep": b"[" * 100_000,
    "list": b"[1, 2]", "empty": b"{}", "text": {"accuracy": {"last": "high", "best": 70.0}},
    "nan": {"accuracy": {"last": float("nan"), "best": 70.0}}, 
    "beyond": {"teacher_accuracy": 101.0}, "negative": {"steps": -5},
}  # fmt: skip


def test_a_broken_result_is_named_and_the_others_are_shown(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "good", last=60.0)
    for name, content in BROKEN.items():
        write(tmp_path / name, **(content if isinstance(content, dict) else {}))
        if isinstance(content, bytes):
            (tmp_path / name / "result.json").write_bytes(content)
    content = as_json(capsys, tmp_path)
    assert cell(content, "mosaic", "cifar10")["mean"] == 60.0
    problems = {Path(one["file"]).parent.name: one["problem"] for one in content["problems"]}
    assert set(problems) == set(BROKEN)
    assert "not valid JSON" in problems["cut"]
    assert "teacher_accuracy" in problems["beyond"]
    main([str(tmp_path)])
    assert str(tmp_path / "cut" / "result.json") in capsys.readouterr().out


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    write(tmp_path / "runs" / "run")
    assert "there is no such folder" in failing(tmp_path / "runs", tmp_path / "none")
    assert "not a folder" in failing(tmp_path / "file")
    assert f"no run below {tmp_path / 'empty'}" in failing(tmp_path / "empty")


def test_teachers_own_runs_are_no_runs_of_a_sweep(tmp_path: Path) -> None:
    write(tmp_path / "seed0")
    write(tmp_path / "seed0" / "teacher" / "wrn40_2-training", method="scratch")
    write(tmp_path / "teacher", method="scratch", student="wrn40_2", teacher=None)
    names = [run.folder.name for run in load_runs([tmp_path])]
    assert names == ["seed0", "teacher"]


# ------------------------------------------------------------------------------------------ formats

ODD: dict[str, Any] = {
    "method": "a&b|c_d%e#f{g}h~i^j\\k$l",
    "dataset": "<script>alert(1)</script>",
    "ood": "[x](y)`*",
    "student": "wrn[bold]",
    "variant": "method.x=[/bold]",
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write(tmp_path / "0", last=60.0)
    write(tmp_path / "1", last=61.0, seed=1)
    write(tmp_path / "odd", **ODD)
    write(tmp_path / "failed", status="failed")
    return tmp_path


def test_markdown(runs: Path, capsys: Capture) -> None:
    main([str(runs), "--format", "md"])
    shown = capsys.readouterr()
    assert f"| {short('mosaic')} | 61.01 / **60.50 ± 0.71** (2) / −0.51 |" in shown.out
    assert "<script>" not in shown.out
    for table in re.findall(r"(?:^\|.*\n)+", shown.out, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, "a name with a bar makes no column"
    assert str(runs / "failed") in shown.err, "what is no table"


def test_csv_has_a_line_a_cell(runs: Path, capsys: Capture) -> None:
    main([str(runs), "--format", "csv"])
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["table"] for line in lines] == ["paper", "paper", "other", "other"]
    mosaic = lines[1]
    assert (mosaic["column"], mosaic["data"]) == (HERE, "cifar10")
    assert (float(mosaic["paper"]), float(mosaic["mean"]), mosaic["n"]) == (61.01, 60.5, "2")
    assert mosaic["ours"] == "0=60.0 1=61.0"
    assert lines[-1]["method"] == ODD["method"]


def test_latex_is_escaped(runs: Path, capsys: Capture) -> None:
    main([str(runs), "--format", "latex"])
    shown = capsys.readouterr().out
    text = "\n".join(line for line in shown.splitlines() if not line.startswith("%"))
    assert rf"{short('mosaic')} & 61.01 & 60.50 $\pm$ 0.71 (2) & $-$0.51 \\" in text
    assert r"\multicolumn{3}{c}{wrn40\_2-wrn16\_1}" in text
    assert r"a\&b|c\_d\%e\#f\{g\}h" in text
    assert not re.search(r"(?<!\\)[%#_]", text)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2


def test_json_is_strict_and_holds_all(runs: Path, capsys: Capture) -> None:
    content = as_json(capsys, runs)
    assert set(content) == {"evaluation", "cells", "other", "unfinished", "problems", "notes"}
    assert content["evaluation"] == "last"
    assert content["other"][-1]["method"] == ODD["method"]


# ----------------------------------------------------------------------------------- the terminal


def test_after_a_run_last_best_and_teacher_are_shown(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    write(run, last=60.5, best=62.25, seed=3, variant="dataset.classes=[bold]", method="[/red]")
    (run / "student.safetensors").touch()
    show_run(run)
    shown = capsys.readouterr().out
    for words in ("60.50 %", "62.25 %", "at step 40", "75.83 %", "seed 3", "finished",
                  str(run / "student.safetensors"), "dataset.classes=[bold]",
                  "[/red] on cifar10"):  # fmt: skip
        assert words in shown, shown
    (tmp_path / "none").mkdir()
    show_run(tmp_path / "none")
    assert capsys.readouterr().out == "", "of a folder without a result"


def test_after_a_sweep_seeds_stand_side_by_side_and_the_paper_below(
    tmp_path: Path, capsys: Capture
) -> None:
    for seed, last in ((0, 60.0), (1, 61.0), (2, 65.0)):
        write(tmp_path / f"seed{seed}", seed=seed, last=last, best=99.0)
    write(tmp_path / "kd", method="kd", last=40.0, variant="train.epochs=3")
    show_sweep(tmp_path)
    shown = capsys.readouterr().out
    assert re.search(r"75.83 % │ 75.83 % │ 75.83 % │\s+75.83 % │", shown)
    assert re.search(r"60.00 % │ 61.00 % │ 65.00 % │ 62.00 ± 2.65 % \(3\) │", shown)
    assert re.search(r"\(1\) +│ 40.00 % │ +- │ +- │ +40.00 % │", shown)
    assert "(1): train.epochs=3" in shown
    assert "99.00" not in shown, "the last evaluation is compared"
    assert shown.index("62.00") < shown.index("Table 1") < shown.index("61.01")
    show_sweep(tmp_path / "none")
    assert capsys.readouterr().out == ""


def test_many_seeds_stand_in_one_column(tmp_path: Path, capsys: Capture) -> None:
    for seed in range(12):
        write(tmp_path / f"seed{seed}", dataset="letters", seed=seed, last=50.0 + seed)
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert "│ 11: 61.00 % │" in shown
    assert "55.50 ± 3.61 % (12)" in shown


def test_the_command_fits_into_eighty_columns_and_needs_no_torch(tmp_path: Path) -> None:
    for i, pair in enumerate(PAIRS):
        teacher, student = pair.split("-")
        for seed in (0, 1):
            write(tmp_path / f"{pair}{seed}", teacher=teacher, student=student, seed=seed,
                  last=60.0 + i + seed)  # fmt: skip
    env = os.environ | {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "dumb"}
    code = (
        f"import sys; from mosaickd.report import main; main([{str(tmp_path)!r}]);"
        "assert not {'torch', 'hydra'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    plain = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    table = plain[: plain.index("± over seeds")].splitlines()
    assert max(map(len, table)) <= 80
    assert any("0.71 (2)" in line for line in table)


def test_commands_that_show_nothing_yet_load_no_pandas() -> None:
    code = (
        "import sys, mosaickd.analysis, mosaickd.report;"
        "sys.exit(str({'torch', 'numpy', 'pandas', 'altair', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
