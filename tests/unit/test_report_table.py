"""`python -m mosaickd.report`: the paper beside what was measured, in all formats."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_report import write

from mosaickd.report.__main__ import main
from mosaickd.report.labels import signed
from mosaickd.report.paper import ORIGINAL, table1

Capture = pytest.CaptureFixture[str]
PAIRS = ["resnet34-resnet18", "vgg11-resnet18", "wrn40_2-wrn16_1", "wrn40_2-wrn40_1",
         "wrn40_2-wrn16_2"]  # fmt: skip


def as_json(capsys: Capture, *arguments: object) -> Any:
    main([*map(str, arguments), "--format", "json"])
    return json.loads(capsys.readouterr().out)


def cell(content: Any, method: str, data: str, column: str = "wrn40_2-wrn16_1") -> Any:
    found = [
        c
        for c in content["cells"]
        if (c["method"], c["data"], c["column"]) == (method, data, column)
    ]
    assert len(found) <= 1
    return found[0] if found else None


def failing(*arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    assert isinstance(stop.value.code, str), "a message, and so exit code 1"
    return stop.value.code


# --------------------------------------------------------------------------------------- the cells


def test_mean_spread_and_difference_over_seeds(tmp_path: Path, capsys: Capture) -> None:
    for seed, last in ((0, 60.0), (1, 61.0), (2, 65.0)):
        write(tmp_path / f"{seed}", seed=seed, last=last, best=90.0)
    found = cell(as_json(capsys, tmp_path), "mosaic", "cifar10")
    assert found["paper"] == 61.01
    assert found["ours"] == [
        {"seed": 0, "accuracy": 60.0},
        {"seed": 1, "accuracy": 61.0},
        {"seed": 2, "accuracy": 65.0},
    ]
    assert (found["mean"], found["n"]) == (62.0, 3)
    assert found["sd"] == pytest.approx(7**0.5, abs=1e-4), "of a sample: 14 / (3 - 1)"
    assert found["difference"] == pytest.approx(0.99)


def test_one_seed_has_no_spread(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "0", last=60.0)
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    numbers = re.findall(r"│\s+([\d.+−±() ]+?)\s+│$", shown, re.MULTILINE)
    assert numbers[-3:] == ["61.01", "60.00", "−1.01"]


def test_last_unless_best_is_asked_for_and_the_title_says_which(
    tmp_path: Path, capsys: Capture
) -> None:
    write(tmp_path / "0", last=60.0, best=62.5)
    write(tmp_path / "other", last=60.0, best=62.5, dataset="letters")
    for arguments, number, words in (([], "60.00", "last"), (["--best"], "62.50", "best")):
        main([str(tmp_path), *arguments])
        shown = capsys.readouterr().out
        assert f"the {words} evaluation" in shown
        assert f"at the {words} step" in shown
        assert number in shown
        assert ({"60.00": "62.50", "62.50": "60.00"})[number] not in shown


@pytest.mark.parametrize(
    ("settings", "method", "data"),
    [
        ({}, "mosaic", "cifar10"),
        ({"method": "kd", "ood": "cifar100"}, "kd", ORIGINAL),
        ({"method": "kd"}, "kd", "cifar10"),
        ({"method": "sskd"}, "sskd", "cifar10"),
        ({"method": "dfq", "ood": None}, "dfq", "data-free"),
        ({"method": "deepinv", "ood": None}, "deepinv", "data-free"),
        ({"ood": "imagenet32", "ood_subset": True}, "mosaic", "imagenet32 (OOD subset)"),
        ({"ood": "places365_32", "ood_subset": True}, "mosaic", "places365_32 (OOD subset)"),
        ({"method": "rkd", "ood": "svhn"}, "rkd", "svhn"),
    ],
)
def test_where_a_run_stands(
    tmp_path: Path, capsys: Capture, settings: Any, method: str, data: str
) -> None:
    write(tmp_path / "run", last=40.0, **settings)
    content = as_json(capsys, tmp_path)
    found = cell(content, method, data)
    assert found["mean"] == 40.0
    assert found["paper"] == table1().rows[method, data]["wrn40_2-wrn16_1"]
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
    student = [row for row in content["other"] if row["model"] == "student"]
    assert [row["mean"] for row in student] == [40.0]
    assert student[0]["variant"] == settings.get("variant")


def test_other_settings_are_grouped_by_what_differs(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "paper")
    for i, (last, variant) in enumerate(((50, "method.balance=0"), (30, "train.steps=9"))):
        write(tmp_path / f"mosaic{i}", last=last, variant=variant)
        write(tmp_path / f"kd{i}", last=last - 15, method="kd", variant=variant)
    rows = [row for row in as_json(capsys, tmp_path)["other"] if row["model"] == "student"]
    assert [(row["variant"], row["method"]) for row in rows] == [
        ("method.balance=0", "mosaic"), ("method.balance=0", "kd"),
        ("train.steps=9", "mosaic"), ("train.steps=9", "kd"),
    ]  # fmt: skip


def test_older_results_count_and_a_note_says_what_they_did_not_record(
    tmp_path: Path, capsys: Capture
) -> None:
    made = write(tmp_path / "run", last=60.0)
    del made["variant"], made["ood_subset"], made["error"], made["versions"]
    (tmp_path / "run" / "result.json").write_text(json.dumps(made))
    content = as_json(capsys, tmp_path)
    assert cell(content, "mosaic", "cifar10")["mean"] == 60.0
    assert any("older version" in note and str(tmp_path) in note for note in content["notes"])


# ---------------------------------------------------------------------------- teachers and students


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
    content = as_json(capsys, tmp_path)
    found = cell(content, "teacher", ORIGINAL)
    assert (found["mean"], found["n"], found["sd"]) == (75.5, 1, None)

    # ---- The run that trained it, and another teacher with another seed.
    for seed, last in ((0, 75.5), (1, 76.5)):
        write(tmp_path / f"teacher{seed}", method="scratch", ood=None, teacher=None, seed=seed,
              student="wrn40_2", teacher_accuracy=None, last=last, best=99.0)  # fmt: skip
    content = as_json(capsys, tmp_path, "--best")
    found = cell(content, "teacher", ORIGINAL)
    assert [one["seed"] for one in found["ours"]] == [0, 1]
    assert found["mean"] == 76.0, "after its last step, as it teaches"
    assert {c["column"] for c in content["cells"]} == {"wrn40_2-wrn16_1"}
    assert any("teachers" in note for note in content["notes"])


# -------------------------------------------------------------------- what is shown, what is empty


def test_an_average_of_ours_needs_all_five_columns(tmp_path: Path, capsys: Capture) -> None:
    for i, pair in enumerate(PAIRS[:4]):
        teacher, student = pair.split("-")
        write(tmp_path / pair, teacher=teacher, student=student, last=60.0 + i)
    content = as_json(capsys, tmp_path)
    assert "average" not in {c["column"] for c in content["cells"]}
    write(tmp_path / PAIRS[4], teacher="wrn40_2", student="wrn16_2", last=64.0)
    content = as_json(capsys, tmp_path)
    average = cell(content, "mosaic", "cifar10", "average")
    assert average["mean"] == 62.0
    assert average["paper"] == pytest.approx(69.626), "of the row; the paper prints 69.55"
    assert any("69.55" in note for note in content["notes"])


def test_only_what_the_folders_hold_unless_all_is_asked_for(
    tmp_path: Path, capsys: Capture
) -> None:
    write(tmp_path / "run")
    shown = {(c["method"], c["data"], c["column"]) for c in as_json(capsys, tmp_path)["cells"]}
    pair = "wrn40_2-wrn16_1"
    assert shown == {("teacher", ORIGINAL, pair), ("mosaic", "cifar10", pair)}
    everything = as_json(capsys, tmp_path, "--all")["cells"]
    assert len(everything) == len(table1().rows) * 6
    assert [c["column"] for c in everything[:6]] == [*PAIRS, "average"], "the paper's order"


def test_a_cell_without_a_run_is_empty_not_zero(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", method="kd", student="wrn40_1")
    empty = cell(as_json(capsys, tmp_path), "kd", "cifar10")
    assert empty["paper"] == 47.47
    assert (empty["mean"], empty["sd"], empty["n"], empty["difference"]) == (None,) * 4
    main([str(tmp_path), "--format", "csv"])
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    line = next(x for x in lines if (x["method"], x["column"]) == ("kd", "wrn40_2-wrn16_1"))
    assert {line[name] for name in ("mean", "sd", "n", "difference", "ours")} == {""}


def test_the_papers_numbers_are_whole(tmp_path: Path) -> None:
    table = table1()
    assert list(table.pairs) == PAIRS
    assert len(table.rows) == 29
    assert table.rows["mosaic", "cifar10"]["wrn40_2-wrn16_1"] == 61.01
    assert {row for row, _ in table.misprints()} == {
        ("kd", ORIGINAL), ("fitnet", "cifar10"), ("mosaic", "cifar10"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "+0.50"), (-0.5, "−0.50"), (-0.001, "0.00"), (None, "")]
)
def test_differences_have_a_sign(value: float | None, text: str) -> None:
    assert signed(value) == text


# ----------------------------------------------------------------------- runs that are not as usual


def test_unfinished_runs_do_not_count_and_are_named(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "done", last=60.0)
    write(tmp_path / "failed", seed=1, last=10.0, status="failed", error="RuntimeError: no [/b]")
    write(tmp_path / "stopped", seed=2, last=10.0, status="interrupted", steps=7)
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "metrics.jsonl").write_text('{"step": 12, "losses": {}}\n{"st')
    content = as_json(capsys, tmp_path)
    assert cell(content, "mosaic", "cifar10")["n"] == 1
    unfinished = {Path(run["folder"]).name: run for run in content["unfinished"]}
    assert set(unfinished) == {"failed", "stopped", "running"}
    assert unfinished["failed"]["error"] == "RuntimeError: no [/b]"
    assert (unfinished["stopped"]["status"], unfinished["stopped"]["steps"]) == ("interrupted", 7)
    assert unfinished["running"]["steps"] == 12
    main([str(tmp_path)])
    shown = capsys.readouterr().out
    assert "RuntimeError: no [/b]" in shown
    assert str(tmp_path / "stopped") in shown


BROKEN: dict[str, tuple[Any, str]] = {
    "cut": ('{"status": "fini', "not valid JSON"),
    "binary": (b"\xff\xfe\x00", "not valid JSON"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "list": ("[1, 2]", "a list where"),
    "empty": ("{}", "no status, method"),
    "text": ({"accuracy": {"last": "high", "best": 70.0}}, 'accuracy.last is "high", not a number'),
    "older": ({"accuracy": 70.0, "versions": {"mosaickd": "0.0.1"}}, "written by version 0.0.1"),
    "seed": ({"seed": True}, "seed is true, not a whole number"),
    "nan": ({"accuracy": {"last": float("nan"), "best": 70.0}}, "accuracy.last is nan"),
    "beyond": ({"teacher_accuracy": 101.0}, "teacher_accuracy is 101.0"),
    "null": ({"accuracy": {"last": None, "best": None}}, "said to be finished"),
    "variant": ({"variant": ["a"]}, "variant is"),
    "endless": ({"seconds": 1e999}, "seconds is inf"),
}


def test_a_broken_result_is_named_and_the_others_are_shown(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "good", last=60.0)
    for name, (what, _) in BROKEN.items():
        folder = tmp_path / name
        if isinstance(what, dict):
            write(folder, **what)
            continue
        folder.mkdir()
        (folder / "result.json").write_bytes(what if isinstance(what, bytes) else what.encode())
    content = as_json(capsys, tmp_path)
    assert cell(content, "mosaic", "cifar10")["mean"] == 60.0
    problems = {Path(one["file"]).parent.name: one["problem"] for one in content["problems"]}
    assert set(problems) == set(BROKEN)
    for name, (_, words) in BROKEN.items():
        assert words in problems[name]
    main([str(tmp_path)])
    assert str(tmp_path / "cut" / "result.json") in capsys.readouterr().out


def test_of_two_runs_of_a_cell_and_seed_the_longer_counts(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "a" / "run", last=50.0, steps=10)
    write(tmp_path / "b" / "run", last=60.0, steps=20)
    content = as_json(capsys, tmp_path / "a", tmp_path / "b")
    found = cell(content, "mosaic", "cifar10")
    assert (found["mean"], found["n"]) == (60.0, 1)
    assert any(str(tmp_path / "a" / "run") in note for note in content["notes"])


def test_a_folder_given_twice_is_read_once(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "a" / "run")
    content = as_json(capsys, tmp_path, tmp_path / "a", tmp_path)
    assert cell(content, "mosaic", "cifar10")["n"] == 1
    assert content["notes"] == []


def test_folders_that_hold_nothing(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    write(tmp_path / "runs" / "run")
    assert str(tmp_path / "none") in failing(tmp_path / "runs", tmp_path / "none")
    assert "not a folder" in failing(tmp_path / "file")
    assert f"no result.json below {tmp_path / 'empty'}" in failing(tmp_path / "empty")
    content = as_json(capsys, tmp_path / "runs", tmp_path / "empty")
    assert any(str(tmp_path / "empty") in note for note in content["notes"])
    (tmp_path / "empty" / "result.json").write_text("{}")
    assert "no result.json that can be read" in failing(tmp_path / "empty")
    assert "no status" in capsys.readouterr().err


def test_a_sweep_of_failures_is_shown(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "run", status="failed", last=None, best=None, error="out of memory")
    main([str(tmp_path)])
    assert "out of memory" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ formats

HOSTILE: dict[str, Any] = {
    "method": "a&b|c_d%e#f{g}h~i^j\\k$l",
    "dataset": "<script>alert(1)</script>",
    "ood": "[x](y)`*",
    "student": "=cmd()\n\x1b[31m",
    "variant": "method.x=[bold]",
}


def test_markdown(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "0", last=60.0)
    write(tmp_path / "1", last=61.0, seed=1)
    write(tmp_path / "hostile", **HOSTILE)
    write(tmp_path / "failed", status="failed")
    main([str(tmp_path), "--format", "md"])
    shown = capsys.readouterr()
    assert "| MosaicKD | 61.01 / **60.50 ± 0.71** (2) / −0.51 |" in shown.out
    assert "<script>" not in shown.out
    assert "\x1b" not in shown.out
    assert "\\[x\\](y)\\`\\*" in shown.out
    for table in re.findall(r"(?:^\|.*\n)+", shown.out, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, "a name with a bar makes no column"
    assert str(tmp_path / "failed") in shown.err, "what is no table"


def test_csv_has_a_line_a_cell(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "0", last=60.0)
    write(tmp_path / "1", last=61.0, seed=1)
    write(tmp_path / "hostile", **HOSTILE)
    main([str(tmp_path), "--format", "csv"])
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["table"] for line in lines] == ["paper", "paper", "other", "other"]
    mosaic = lines[1]
    assert (mosaic["column"], mosaic["data"]) == ("wrn40_2-wrn16_1", "cifar10")
    assert (float(mosaic["paper"]), float(mosaic["mean"])) == (61.01, 60.5)
    assert mosaic["ours"] == "0=60.0 1=61.0"
    assert lines[-1]["method"] == HOSTILE["method"]
    assert lines[-1]["student"].startswith("'="), "a spreadsheet would compute it"


def test_latex_is_escaped(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "0", last=60.0)
    write(tmp_path / "1", last=61.0, seed=1)
    write(tmp_path / "hostile", **HOSTILE)
    main([str(tmp_path), "--format", "latex"])
    shown = capsys.readouterr().out
    text = "\n".join(line for line in shown.splitlines() if not line.startswith("%"))
    assert r"MosaicKD & 61.01 & 60.50~{\scriptsize $\pm$ 0.71 (2)}" in text
    assert r"\multicolumn{2}{c}{wrn40\_2-wrn16\_1}" in text
    assert r"a\&b\textbar{}c\_d\%e\#f\{g\}h\textasciitilde{}i\textasciicircum{}j" in text
    assert text.isascii()
    assert not re.search(r"(?<!\\)[%#_]", text)
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    for tabular in text.split(r"\begin{tabular}")[1:]:
        columns = {
            len(re.findall(r"(?<!\\)&", line))
            for line in tabular.splitlines()
            if line.endswith(r"\\") and r"}{l}{" not in line and r"{c}" not in line
        }
        assert len(columns) == 1


def test_json_is_strict_and_holds_all(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "run")
    write(tmp_path / "hostile", **HOSTILE)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    content = as_json(capsys, tmp_path)
    assert set(content) == {"evaluation", "cells", "other", "unfinished", "problems", "notes"}
    assert content["evaluation"] == "last"
    assert content["other"][-1]["method"] == HOSTILE["method"]


def test_a_narrow_terminal_gets_a_table_that_fits(tmp_path: Path) -> None:
    for i, pair in enumerate(PAIRS):
        teacher, student = pair.split("-")
        for seed in (0, 1):
            write(tmp_path / f"{pair}{seed}", teacher=teacher, student=student, seed=seed,
                  last=60.0 + i + seed)  # fmt: skip
    env = os.environ | {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "mosaickd.report", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    plain = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    table = plain[: plain.index("± over seeds")].splitlines()
    assert max(map(len, table)) <= 80
    assert any("0.71 (2)" in line for line in table)


def test_a_terminal_without_its_characters_and_a_closed_pipe(tmp_path: Path) -> None:
    write(tmp_path / "0")
    write(tmp_path / "1", seed=1, last=60.0)
    command = f"{sys.executable} -m mosaickd.report {tmp_path}"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    ascii_only = subprocess.run(command.split(), env=env, capture_output=True, check=True)
    assert b"65.00 ? 7.07 (2)" in ascii_only.stdout
    closed = subprocess.run(f"{command} | true", shell=True, capture_output=True, text=True)
    assert "Error" not in closed.stderr
