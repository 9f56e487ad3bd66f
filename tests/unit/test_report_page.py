"""`--html`: one page of a run or a sweep that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import os
import re
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from run_folders import append, evaluated, logged, owned, whole_run, write

from mosaickd.analysis.charts import thin
from mosaickd.analysis.labels import short
from mosaickd.report import main

VOID = {"meta", "br", "img", "input"}


class Page(HTMLParser):
    """Tags and text of a page; asserts that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def charts(self) -> list[str]:
        """Return what is said of the charts to whoever doesn't see them."""
        return [str(a["aria-label"]) for a in self.all("div") if a.get("role") == "img"]


def page_of(folder: Path) -> Page:
    main([str(folder), "--html"])
    return Page((folder / "report.html").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------ a run


def test_a_finished_runs_page_says_all_there_is(tmp_path: Path) -> None:
    page = page_of(whole_run(tmp_path / "run"))
    for words in (
        f"{short('mosaic')} on strokes, wrn40_2 to wrn16_1, seed 0",
        "finished", "30 of 30", "40.00 %", "75.83 %",
        "python run.py experiment=quickstart 'name=a b'", "name: mosaic",
        "abc123 and files that differ from it", "python 3.11.7, torch 2.14.1", "900 MB",
        "From 0.0 % (A) to 60.0 % (D)", "3 of 5",
    ):  # fmt: skip
        assert words in page.text, words
    for words in (
        "top-1 from 20 at step 10 to 40 at step 30",
        "Losses of the generator: local from 0.1 at step 10 to 0.03333 at step 30",
        "Weighted losses of the generator: local",
        "Learning rates: generator from 0.001",
        "2 of 4 classes seen in 40 synthetic images at step 30; the most, 30, are taken for A",
        "peak memory, MB from 900",
    ):
        assert words in "\n".join(page.charts()), words
    assert "last words" not in page.text, "the log of a run that ended well is not needed"


def test_a_slider_goes_over_all_steps_and_the_last_is_there_without_a_script(
    tmp_path: Path,
) -> None:
    page = page_of(whole_run(tmp_path / "run", steps=(10, 20, 200)))
    (slider,) = page.all("input")
    assert (slider["max"], slider["value"]) == ("2", "2")
    assert page.all("label")[0]["for"] == slider["id"]
    shown = [(a["data-step"], "hidden" in a) for a in page.all("figure") if "data-step" in a]
    assert shown == [("10", True), ("20", True), ("200", False)]
    last = page.all("img")[-1]
    assert last["alt"] == (
        "Synthetic images beside images it trains on, step 200; the teacher sees 2 classes"
    )
    data = base64.b64decode(str(last["src"]).removeprefix("data:image/webp;base64,"))
    with Image.open(io.BytesIO(data)) as image:
        pixel = np.asarray(image.convert("RGB"))[16, 16].astype(int)
    assert np.abs(pixel - (200, 0, 0)).max() < 20


def test_many_pictures_are_thinned_and_the_page_says_so(tmp_path: Path) -> None:
    whole_run(tmp_path / "a", steps=range(1, 41))
    whole_run(tmp_path / "b", seed=1)
    page = page_of(tmp_path)
    steps = [a["data-step"] for a in page.all("figure") if "data-step" in a][:12]
    assert (len(set(steps)), steps[-1]) == (12, "40")
    assert "12 of 40 pictures" in page.text


def test_a_run_in_progress_says_how_far_it_is(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run", status="running")
    owned(run, process=os.getpid(), host=socket.gethostname())
    page = page_of(run)
    assert "status running" in page.text
    assert "30 of 60" in page.text
    assert "40.00 %" in page.text, "of its metrics: result.json has none yet"
    assert [a["aria-label"] for a in page.all("progress")] == ["step 30 of 60"]


def test_runs_that_were_killed_or_failed_say_why_and_show_their_log(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "killed", status="running")
    owned(run, process=1, host="elsewhere", ago=3600.0)
    page = page_of(run)
    assert "status killed" in page.text
    assert "The same command goes on" in page.text
    error = "NonFiniteLoss: the generator's loss is nan"
    run = whole_run(tmp_path / "failed", status="failed", error=error, last=None, best=None)
    (run / "run.log").write_text("\n".join(f"line {i}." for i in range(1000)))
    page = page_of(run)
    for words in ("status failed", error, "line 999."):
        assert words in page.text, words
    assert "line 900." not in page.text


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text("method:\n  name: mosaic\n")
    page = page_of(tmp_path / "run")
    for words in ("status killed", "has not been evaluated", "Nothing has been logged"):
        assert words in page.text, words
    assert "0.00 %" not in page.text
    (tmp_path / "run" / "result.json").write_bytes(b"\x00\xff" * 1000)
    append(tmp_path / "run", logged(1, **{"loss/student/kd": float("nan")}))
    (tmp_path / "run" / "samples").mkdir()
    (tmp_path / "run" / "samples" / "step0000001.png").write_bytes(b"GIF89a")
    page = page_of(tmp_path / "run")
    for words in ("status unreadable", "not valid JSON", "step0000001.png can't be shown"):
        assert words in page.text, words
    assert not any("kd" in words for words in page.charts()), "a NaN is no number"


def test_thinning_keeps_spikes_and_ends() -> None:
    curve = pd.DataFrame({"step": range(10_000), "value": 1.0})
    curve.loc[5003, "value"], curve.loc[77, "value"] = 9.0, -4.0
    few = thin(curve, 100)
    assert len(few) <= 102
    assert {0, 77, 5003, 9999} <= set(few["step"])
    assert few["step"].is_monotonic_increasing
    assert len(thin(curve[:50], 100)) == 50


# ---------------------------------------------------------------------------------------- a sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for seed in (0, 1):
        write(root / f"mosaic{seed}", seed=seed, last=60.0 + seed)
        append(root / f"mosaic{seed}", logged(10), evaluated(10, 60.0 + seed))
    write(root / "kd", method="kd", last=44.0)
    write(root / "short", variant="train.steps=5", last=33.0)
    write(root / "failed", seed=5, status="failed", error="OutOfMemoryError: 2 GiB")
    write(root / "broken")
    (root / "broken" / "result.json").write_text("{")
    return root


def test_a_sweeps_page_says_what_the_terminal_says_and_folds_its_runs(sweep: Path) -> None:
    page = page_of(sweep)
    for words in (
        "60.50 ± 0.71", "2 seeds", "paper 61.01", "−0.51", "the last evaluation",
        "train.steps=5", "33.00 %", "OutOfMemoryError: 2 GiB", str(sweep / "failed"),
        str(sweep / "broken" / "result.json"), "not valid JSON",
    ):  # fmt: skip
        assert words in page.text, words
    assert any(re.search(r"Accuracy by row: .* 60.50 \(paper 61.01\)", w) for w in page.charts())
    folded = [a for a in page.all("details") if a.get("class") == "run"]
    assert len(folded) == 6
    assert not any("open" in a for a in folded)
    names = [a["id"] for _, a in page.tags if "id" in a]
    assert len(names) == len(set(names)) > 10
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), levels


def test_a_page_loads_nothing_and_runs_its_own_script_only(sweep: Path) -> None:
    page = page_of(sweep)
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policies = [str(a["content"]) for a in page.all("meta") if "http-equiv" in a]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    ]
    for _, attributes in page.tags:
        assert not {"href", "srcset", "action"} & set(attributes)
        assert str(attributes.get("src", "data:")).startswith("data:")
        assert not any(name.startswith("on") for name in attributes)


def test_the_papers_whole_table_has_a_page(sweep: Path, tmp_path: Path) -> None:
    main([str(sweep), "--all", "--html", str(tmp_path / "all.html")])
    page = Page((tmp_path / "all.html").read_text(encoding="utf-8"))
    assert "wrn40_2 wrn16_1" in page.text
    assert "average" in page.text
    assert "paper 41.38" in page.text


HOSTILE = "</script><script>alert('x')</script>\"><img src=x onerror=alert(1)>"


def test_names_never_become_markup(tmp_path: Path) -> None:
    root = tmp_path / "<u>runs"
    names = {
        name: f"{name} {HOSTILE}" for name in ("method", "dataset", "ood", "teacher", "student")
    }
    more: dict[str, Any] = {"variant": HOSTILE, "device": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    run = whole_run(root / "<i>1", **names, **more)
    append(run, logged(40, **{f"loss/{HOSTILE}/{HOSTILE}": 1.0}))
    rows = [{"class": HOSTILE, "images": 3, "right": 1}]
    (run / "per_class.json").write_text(json.dumps({"step": 3, "classes": rows}))
    (run / ".hydra" / "config.yaml").write_text(json.dumps({HOSTILE: HOSTILE}))
    write(root / "2", status=HOSTILE, error=HOSTILE)
    page = page_of(root)
    assert not {"u", "i"} & {tag for tag, _ in page.tags}
    kinds = [a.get("type") for a in page.all("script")]
    assert kinds.count(None) == 1, "the page's own"
    assert len(page.all("img")) == 3, "the run's samples"
    assert page.text.count("alert('x')") >= 8, "it is there, as text"


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_in_both_schemes(scheme: int, tmp_path: Path) -> None:
    """4.5 to 1, on the page and on its bands."""
    page = page_of(whole_run(tmp_path / "run"))
    block = re.findall(r":root \{(.*?)\}", page.source, re.DOTALL)[scheme]
    colours = dict(re.findall(r"(--\w+): (#[0-9a-f]{6})", block))

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    def contrast(text: str, below: str) -> float:
        a, b = sorted((light(colours[text]), light(colours[below])))
        return (b + 0.05) / (a + 0.05)

    lines = [name for name in colours if name.startswith("--line")]
    for name in ("--ink", "--muted", "--up", "--down", *lines):
        assert contrast(name, "--paper") >= 4.5, name
    assert contrast("--ink", "--band") >= 4.5
    assert contrast("--ink", "--track") >= 4.5


# ------------------------------------------------------------------------------------ the command


def test_html_takes_a_file_a_folder_or_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = whole_run(tmp_path / "a")
    for arguments, path in (
        ([a, "--html"], a / "report.html"),
        (["--html", a, "--best"], a / "report.html"),
        ([a, "--html", tmp_path / "new" / "page.html"], tmp_path / "new" / "page.html"),
        (["--html", tmp_path / "page.HTM", a], tmp_path / "page.HTM"),
    ):
        main([str(argument) for argument in arguments])
        assert capsys.readouterr().out.endswith(f"page: {path}\n")
        assert path.read_text().startswith("<!doctype html>"), arguments
        path.unlink()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--html", "none"], "there is no such folder"),
        (["a", "--html", "a/result.json"], "not a folder"),
        (["a", "--html", "a/result.json/page.html"], "result.json"),
    ],
)
def test_html_with_what_it_cannot_mean_is_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    write(tmp_path / "a")
    before = (tmp_path / "a" / "result.json").read_bytes()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        main(arguments)
    assert words in capsys.readouterr().err
    assert (tmp_path / "a" / "result.json").read_bytes() == before
