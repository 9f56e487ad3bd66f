"""The report on files that nobody meant: answered, or refused in a line, and never waited for."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import write

from mosaickd.report.__main__ import main
from mosaickd.report.formats import FORMATS

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40),
    st.sampled_from([[], {}, "", 10**400, "finished", "cifar100", "\x1b[31m", "[red]", "a\nb|c&"]),
    st.recursive(st.none() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)),
)  # fmt: skip
KEYS = ["status", "method", "dataset", "ood", "ood_subset", "teacher", "student", "seed",
        "accuracy", "teacher_accuracy", "steps", "seconds", "device", "versions", "error",
        "variant", "config_hash", "code", "data_fingerprint", "more"]  # fmt: skip
INNER = ["last", "best", "best_step", "top5_last"]


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Hypothesis calls a test many times, pytest's tmp_path is made once."""
    place = Path(tempfile.mkdtemp())
    try:
        yield place
    finally:
        shutil.rmtree(place)


def answered(*arguments: object) -> str:
    """What is said. Ends with a message or with none; anything else is raised."""
    out, err = io.StringIO(), io.StringIO()
    message: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            message = end.code
    assert message is None or str(message).startswith("error: ")
    return out.getvalue() + err.getvalue()


@settings(max_examples=100, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(KEYS), ODD, max_size=3),
    inner=st.dictionaries(st.sampled_from(INNER), ODD, max_size=2),
    missing=st.lists(st.sampled_from(KEYS), max_size=2),
    form=st.sampled_from([None, *FORMATS]),
)
def test_results_of_other_versions_and_of_nobody(
    changes: dict[str, Any], inner: dict[str, Any], missing: list[str], form: str | None
) -> None:
    with folder() as root:
        write(root / "good", method="kd", last=61.5)
        result = write(root / "odd", seed=1)
        result["accuracy"] |= inner
        result |= changes
        for key in missing:
            result.pop(key, None)
        (root / "odd" / "result.json").write_text(json.dumps(result))
        said = answered(root, *(["--format", form] if form else []))
        assert "61.5" in said, "the good one is there whatever stands beside it"


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200), cut=st.integers(0, 700), at=st.integers(0, 700))
def test_files_of_other_bytes(content: bytes, cut: int, at: int) -> None:
    with folder() as root:
        write(root / "good", method="kd", last=61.5)
        write(root / "odd", seed=1)
        path = root / "odd" / "result.json"
        whole = path.read_bytes()
        path.write_bytes(whole[:at] + content + whole[at + cut :])
        (root / "odd" / "metrics.jsonl").write_bytes(content)
        assert "61.5" in answered(root, "--format", "csv")


LINES = st.dictionaries(
    st.sampled_from(["step", "time", "accuracy/top1", "fakes/classes", "loss/student/kd", "loss/a",
                     "lr/student", "weighted/student/kd", "weighted/student/x", "memory/peak_mb",
                     "losses", "accuracy"])
    | st.text(max_size=9),
    ODD | st.integers(1, 50) | st.lists(st.integers(0, 9)),
)  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from([*KEYS, "total_steps", "memory_mb"]), ODD, max_size=4),
    lines=st.lists(LINES | ODD, max_size=6),
    by_class=st.fixed_dictionaries(
        {"step": ODD, "classes": st.lists(st.fixed_dictionaries(
            {"class": ODD, "images": ODD | st.integers(0, 9), "right": ODD | st.integers(0, 9)}))}
    ) | ODD,
)  # fmt: skip
def test_a_page_of_odd_numbers(changes: dict[str, Any], lines: list[Any], by_class: Any) -> None:
    with folder() as root:
        run = root / "run"
        (run / "result.json").parent.mkdir()
        result = write(run / "made") | changes
        (run / "made" / "result.json").replace(run / "result.json")
        (run / "result.json").write_text(json.dumps(result))
        (run / "per_class.json").write_text(json.dumps(by_class))
        steps = [{"step": i + 1} | line if isinstance(line, dict) else line
                 for i, line in enumerate(lines)]  # fmt: skip
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
        said = answered(root, "--html")
        assert "page: " in said
        text = (root / "report.html").read_text(encoding="utf-8")
        assert "nan" not in " ".join(re.findall(r'<path[^>]* d="([^"]*)"', text))


def test_runs_behind_a_link_are_named_not_counted(tmp_path: Path) -> None:
    outputs, disk = tmp_path / "outputs", tmp_path / "disk"
    write(outputs / "good", last=61.5)
    write(disk / "kd" / "old", last=42.5, seed=7)
    (outputs / "kd").symlink_to(disk / "kd")
    (outputs / "again").symlink_to(outputs / "good")  # counted once already
    said = answered(outputs)
    assert "61.50" in said
    assert f"not looked into, as it is a link: {outputs / 'kd'}; name it" in said
    shutil.rmtree(outputs / "good")
    assert "not looked into, as it is a link" in answered(outputs), "also where nothing else is"
    write(outputs / "good", last=61.5)
    both = answered(outputs, outputs / "kd")
    assert "52.00" in both, "the mean of both seeds"
    assert "not looked into" not in both
    shutil.rmtree(outputs / "good")
    assert "not looked into, as it is a link" in answered(outputs), "also where nothing else is"


def test_what_is_no_file_and_what_is_too_large(tmp_path: Path) -> None:
    write(tmp_path / "good", last=61.5)
    for name in ("pipe", "folder", "large", "nowhere"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "result.json")
    os.mkfifo(tmp_path / "pipe" / "metrics.jsonl")
    (tmp_path / "folder" / "result.json").mkdir()
    (tmp_path / "nowhere" / "result.json").symlink_to(tmp_path / "none")
    (tmp_path / "nowhere" / "again").symlink_to(tmp_path)
    with (tmp_path / "large" / "result.json").open("wb") as file:
        file.truncate(2**33)
    said = answered(tmp_path)
    assert "61.5" in said
    assert "too large" in said
