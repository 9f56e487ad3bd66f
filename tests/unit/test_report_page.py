"""`--html`: one page that needs nothing else, and that no result file can turn into another."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from run_folders import samples
from test_report import write

from mosaickd.report.__main__ import main
from mosaickd.report.plots import LINES, spread

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Tags, ids and text of a page; asserts that what is opened is closed."""

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

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

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


def run(folder: Path, curve: list[tuple[int, float]], **changes: Any) -> None:
    write(folder, last=curve[-1][1], steps=curve[-1][0], **changes)
    lines = [{"step": 1, "losses": {"student/kd": 1.0}}]
    lines += [{"step": step, "accuracy": accuracy, "top5": 99.0} for step, accuracy in curve]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def page_of(*folders: Path) -> Page:
    target = folders[0].parent / "pages" / "report.html"
    main([*map(str, folders), "--html", str(target)])
    return Page(target.read_text(encoding="utf-8"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for seed in (0, 1):
        run(root / f"mosaic{seed}", [(10, 30.0), (20, 50.0 + seed), (40, 60.0 + seed)], seed=seed)
    run(root / "kd", [(50, 20.0), (100, 44.0)], method="kd", device="a GPU, bf16")
    run(root / "short", [(5, 33.0)], variant="train.steps=5")
    write(root / "failed", seed=5, status="failed", error="OutOfMemoryError: 2 GiB")
    (root / "broken").mkdir()
    (root / "broken" / "result.json").write_text("{")
    return root


def test_a_page_says_what_the_terminal_says(runs: Path) -> None:
    page = page_of(runs)
    for words in (
        "60.50 ± 0.71", "2 seeds", "paper 61.01", "−0.51", "the last evaluation",  # the table
        "train.steps=5", "33.00 %",  # other settings
        "OutOfMemoryError: 2 GiB", str(runs / "failed"),
        str(runs / "broken" / "result.json"), "not valid JSON",
        "a GPU, bf16 (1 run)", "a CPU, fp32 (3 runs)",
    ):  # fmt: skip
        assert words in page.text, words


def test_each_picture_has_words_that_say_what_it_shows(runs: Path) -> None:
    page = page_of(runs)
    pictures = [a for a in page.all("div") if a.get("role") == "img"]
    assert len(pictures) == len(page.all("svg")) == len(page.all("figcaption")) > 3
    labels = [str(a["aria-label"]) for a in pictures]
    assert any("Scatter plot of 3 cells" in label for label in labels)
    assert any("MosaicKD 60.5 %" in label and "KD 44.0 %" in label for label in labels)
    for name in ("MosaicKD", "KD", "teacher", "training done, %", "the paper's accuracy, %"):
        assert name in page.text, "text of the pictures is text"


def test_a_page_loads_nothing_and_runs_its_own_script_only(runs: Path) -> None:
    samples(runs / "mosaic0", [10, 40])
    page = page_of(runs)
    assert not {"link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page.source, "and no other one"
    rest = page.source.replace(script, "").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\((?!#)|javascript:", rest)
    assert len(page.all("img")) == 3, "two steps, and what is the same at both"
    for picture in page.all("img"):
        assert str(picture.pop("src")).startswith("data:image/webp;base64,")
    page.tags = [
        (t, {k: v for k, v in a.items() if t != "img" or k != "src"}) for t, a in page.tags
    ]
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                assert str(value).startswith("#")
    policy = [a["content"] for a in page.all("meta") if "content" in a]
    assert any("default-src 'none'" in str(content) for content in policy)


def test_pictures_on_one_page_do_not_share_names(runs: Path) -> None:
    page = page_of(runs)
    names = [a["id"] for _, a in page.tags if "id" in a]
    assert len(names) == len(set(names)) > 10
    used = re.findall(r'(?:url\(#|href="#)([^)"]+)', page.source)
    assert used
    assert set(used) <= set(names)


def test_colours_follow_the_readers_theme(runs: Path) -> None:
    page = page_of(runs)
    assert "prefers-color-scheme: dark" in page.source
    pictures = page.source[page.source.index("<svg") :]
    assert not re.search(r"#[0-9a-f]{6}\b", pictures), "all colours are the style sheet's"
    for name in set(re.findall(r"var\((--\w+)\)", page.source)):
        assert page.source.count(f"{name}:") == 2, f"{name}, light and dark"


def test_the_same_runs_make_the_same_page(runs: Path) -> None:
    assert page_of(runs).source == page_of(runs).source


HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>$\\frac{$"


def test_names_never_become_markup(tmp_path: Path) -> None:
    root = tmp_path / "<b>runs"
    names: dict[str, Any] = dict.fromkeys(("method", "dataset", "ood", "teacher", "student"))
    for name in names:
        names[name] = f"{name} {HOSTILE}"
    versions = {HOSTILE: HOSTILE}
    run(root / "<i>1", [(1, 5.0)], **names, variant=HOSTILE, device=HOSTILE, versions=versions)
    run(root / "2", [(1, 5.0)], method="kd", dataset="letters", ood="$x^$", student="日本\u202e")
    write(root / "3", status=HOSTILE, error=HOSTILE)
    write(root / "4", accuracy=HOSTILE)
    write(root / "<u>5", seed=5, steps=1)
    write(root / "<u>6", seed=5, steps=1)
    page = page_of(root)
    assert not {"img", "b>runs", "i", "u"} & {tag for tag, _ in page.tags}
    assert len(page.all("script")) == 1, "the page's own"
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert page.text.count("alert('x')") >= 8, "it is there, as text"
    assert "\u202e" not in page.source


def test_metrics_that_are_damaged_leave_the_rest(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run(root / "good", [(10, 30.0), (20, 60.0)])
    lines = ["null", "3", '{"step": "a"}', '{"step": 0, "accuracy": 1}', '{"accuracy": 9}',
             '{"step": 9, "accuracy": NaN}', '{"step": 9, "accuracy": "x"}', "\x00", '{"step": 1',
             f'{{"step": {10**400}, "accuracy": 3}}']  # fmt: skip
    with (root / "good" / "metrics.jsonl").open("a") as file:
        file.write("\n".join(lines))
    write(root / "none", method="kd")
    page = page_of(root)
    labels = [str(a["aria-label"]) for a in page.all("div") if a.get("role") == "img"]
    curves = [label for label in labels if label.startswith("Accuracy over training")]
    assert curves == ["Accuracy over training, cifar10: wrn40_2 to wrn16_1. At the end: "
                      "MosaicKD 60.0 %."]  # fmt: skip


def test_a_crowded_panel_shows_the_best_and_says_so(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for i in range(LINES + 3):
        run(root / f"{i}", [(10, 10.0), (20, 20.0 + i)], variant=f"method.balance={i}")
    page = page_of(root)
    assert f"The best {LINES} of {LINES + 3}." in page.text
    label = next(str(a["aria-label"]) for a in page.all("div") if a.get("role") == "img")
    assert "30.0 %" in label
    assert "22.0 %" not in label


def test_labels_keep_apart_and_near_their_lines() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    crowded = spread([0.96, 0.97, 0.98, 0.99, 1.0], 0.1)
    assert crowded == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])
    assert spread([], 0.1) == []


def test_a_page_that_cannot_be_written_is_an_error_with_its_name(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs.parent / "file").touch()
    with pytest.raises(SystemExit) as stop:
        main([str(runs), "--html", str(runs.parent / "file" / "page.html")])
    assert str(runs.parent / "file") in str(stop.value.code)
