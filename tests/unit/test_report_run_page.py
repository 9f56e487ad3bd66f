"""What a page says of a run: its numbers, pictures and classes, and whatever is wrong with them."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from run_folders import append, evaluated, logged, owned, samples, whole_run
from test_report_page import Page

from mosaickd.report.__main__ import main
from mosaickd.report.page.pictures import Budget, frames
from mosaickd.report.page.series import thinned


def page_of(*arguments: object) -> Page:
    """What `--html` writes into the folder."""
    main([*map(str, arguments), "--html"])
    return Page((Path(str(arguments[0])) / "report.html").read_text(encoding="utf-8"))


def labels(page: Page) -> str:
    """What is said of the pictures."""
    return "\n".join(str(a["aria-label"]) for a in page.all("div") if a.get("role") == "img")


def pictures(page: Page) -> list[Image.Image]:
    """Its images, as a browser decodes them."""
    sources = [str(a["src"]) for a in page.all("img")]
    return [
        Image.open(io.BytesIO(base64.b64decode(s.removeprefix("data:image/webp;base64,"))))
        for s in sources
    ]


# ---------------------------------------------------------------------------------- what it shows


def test_a_finished_runs_page_says_all_there_is(tmp_path: Path) -> None:
    page = page_of(whole_run(tmp_path / "run"))
    for words in (
        "MosaicKD: images mosaicked from strokes, wrn40_2 to wrn16_1, seed 0",
        "finished", "30 of 30", "40.00 %", "75.83 %",
        "python run.py experiment=quickstart 'name=a b'", "name: mosaic",
        "abc123 and files that differ from it", "python 3.11.7, torch 2.14.1", "900 MB",
        "2 of 4 classes seen in 40 synthetic images; the most, 30, are taken for A",
        "from 0.0 % (A) to 60.0 % (D)", "3 of 5",
    ):  # fmt: skip
        assert words in page.text, words
    said = labels(page)
    assert "top-1 from 20.00 % at step 10 to 40.00 % at step 30" in said
    assert "The teacher has 75.83 %" in said
    assert "generator: losses over steps: local from 0.1 at step 10 to 0.0333 at step 30" in said
    assert "Weighted losses of the generator over steps" in said
    assert "peak memory from 900 MB" in said
    assert "last words" not in page.text, "the log of a run that ended well is not needed"


def test_a_slider_goes_over_all_steps_and_the_last_is_there_without_a_script(
    tmp_path: Path,
) -> None:
    page = page_of(whole_run(tmp_path / "run"))
    (slider,) = page.all("input")
    assert slider["data-steps"] == "10 20 30"
    assert slider["aria-valuetext"] == "step 30 of 30"
    shown = [a for a in page.all("div") if a.get("class") == "frame"]
    assert [(a["data-step"], "hidden" in a) for a in shown] == [
        ("10", True), ("20", True), ("30", False)]  # fmt: skip


def test_pictures_are_as_they_were_made_without_their_enlargement_and_frame(tmp_path: Path) -> None:
    page = page_of(whole_run(tmp_path / "run", steps=(10, 200)))
    first, last, fixed = pictures(page)
    for picture, colour in ((first, (10, 0, 0)), (last, (200, 0, 0)), (fixed, (0, 0, 200))):
        assert picture.size == (2 * 24, 2 * 9), "five columns of 4 pixels, 1 between, twice"
        middle = np.asarray(picture.convert("RGBA"))[4, 4]
        assert np.abs(middle[:3].astype(int) - colour).max() < 20
        assert np.asarray(picture.convert("RGBA"))[:, 8:10, 3].max() == 0, "nothing is between"
    alts = [str(a["alt"]) for a in page.all("img")]
    assert alts[1] == ("Synthetic, step 200: 10 images, which the teacher takes for A (3), B (3), "
                       "C (2), D (2)")  # fmt: skip


def test_headings_are_in_order_and_every_control_has_a_name(tmp_path: Path) -> None:
    for folder in (whole_run(tmp_path / "one"), tmp_path):
        if folder == tmp_path:
            whole_run(tmp_path / "two", seed=1)
        page = page_of(folder)
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), levels
        named = {a["for"] for a in page.all("label")}
        assert {a["id"] for a in page.all("input")} == named
        assert all(a["alt"] for a in page.all("img"))
        assert len(page.all("main")) == len(page.all("header")) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(scheme: str) -> None:
    """4.5 to 1, on the page and on its bands."""
    from mosaickd.report.page import document as module

    style = Path(module.__file__).with_name("page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    block = blocks[0 if scheme == "light" else 1]
    colours = dict(re.findall(r"(--\w+): (#[0-9a-f]{6})", block))

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    def contrast(text: str, below: str) -> float:
        a, b = sorted((light(colours[text]), light(colours[below])))
        return (b + 0.05) / (a + 0.05)

    lines = [name for name in colours if name.startswith("--line")]
    assert len(lines) == 8
    for name in ("--ink", "--muted", "--up", "--down", *lines):
        assert contrast(name, "--paper") >= 4.5, name
    assert contrast("--ink", "--band") >= 4.5
    assert contrast("--ink", "--track") >= 4.5


# ------------------------------------------------------------------------------- runs in all states


def test_a_run_in_progress_says_how_far_it_is(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run", status="running")
    owned(run, process=os.getpid(), host=socket.gethostname())
    page = page_of(run)
    assert "status running" in page.text
    assert "30 of 60" in page.text
    assert "40.00 %" in page.text, "of its metrics: result.json has none yet"
    assert [a["aria-label"] for a in page.all("progress")] == ["step 30 of 60"]


def test_a_run_that_was_killed_is_not_running(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    run = whole_run(tmp_path / "run", status="running")
    for mark in ({"process": process.pid, "host": socket.gethostname()},
                 {"process": 1, "host": "elsewhere", "ago": 3600.0}):  # fmt: skip
        owned(run, **mark)  # type: ignore[arg-type]
        page = page_of(run)
        assert "status not running" in page.text
        assert "it was killed, or its machine stopped" in page.text
    owned(run, process=process.pid, host="elsewhere")
    assert "status running" in page_of(run).text


def test_a_failed_run_shows_its_error_and_the_end_of_its_log(tmp_path: Path) -> None:
    error = "NonFiniteLoss: the generator's loss is nan"
    run = whole_run(tmp_path / "run", status="failed", error=error, last=None, best=None)
    (run / "run.log").write_text(
        "\n".join(f"line {i}." for i in range(1000)) + "\nTraceback\x1b[31m"
    )
    page = page_of(run)
    assert "status failed" in page.text
    assert error in page.text
    assert "line 999." in page.text
    assert "line 100." not in page.text
    assert "\x1b" not in page.source


def test_what_was_not_measured_is_not_shown_as_zero(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run", status="running")
    for name in ("metrics.jsonl", "per_class.json"):
        (run / name).unlink()
    for path in (run / "samples").iterdir():
        path.unlink()
    page = page_of(run)
    for words in ("has not been evaluated yet", "No sample grids have been written",
                  "Nothing has been logged", "0 of 60"):  # fmt: skip
        assert words in page.text, words
    assert "0.00 %" not in page.text
    assert not page.all("svg")
    append(run, logged(1, **{"loss/student/kd": float("nan")}))
    assert "kd" not in labels(page_of(run)), "a NaN is no number"


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    for path in ("result.json", "metrics.jsonl", "per_class.json"):
        (run / path).unlink()
    for path in (run / "samples").iterdir():
        path.unlink()
    page = page_of(run)
    assert "status not running" in page.text
    assert "name: mosaic" in page.text
    (run / "result.json").write_text("{")
    page = page_of(run)
    assert "not valid JSON" in page.text


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"no result.json below {tmp_path}"):
        main([str(tmp_path), "--html"])
    assert not (tmp_path / "report.html").exists()


def test_an_older_versions_run(tmp_path: Path) -> None:
    """Other names of metrics, pictures that don't say how they are laid out."""
    run = whole_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    for path in (run / "samples").iterdir():
        path.unlink()
    samples(run, [5, 6], tells=False)
    append(run, {"step": 5, "losses": {"student/kd": 3.0}, "learning_rate": {"student": 0.1},
                 "seconds_per_step": 0.5, "memory_mb": 100.0},
           {"step": 6, "accuracy": 12.5, "top5": 50.0})  # fmt: skip
    page = page_of(run)
    assert "kd 3 at step 5" in labels(page)
    assert "top-1 12.50 % at step 6" in labels(page)
    assert [str(a["alt"]) for a in page.all("img")] == [
        f"Sample grid, as written by an older version, step {step}" for step in (5, 6)]  # fmt: skip
    assert pictures(page)[0].width <= 2 * 72, "its enlargement is seen"


def test_a_sweep_folds_its_runs_below_its_tables(tmp_path: Path) -> None:
    for seed in (0, 1):
        whole_run(tmp_path / f"seed{seed}", seed=seed)
    whole_run(tmp_path / "late", seed=2, status="failed", error="OutOfMemoryError")
    page = page_of(tmp_path)
    folded = [a for a in page.all("details") if a.get("class") == "run"]
    assert len(folded) == 3
    assert not any("open" in a for a in folded)
    assert page.text.index("Accuracy over training") < page.text.index("Each run")
    names = [a["id"] for _, a in page.tags if "id" in a]
    assert len(names) == len(set(names))


def test_many_pictures_are_thinned_and_the_page_says_so(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "a", steps=range(1, 41))
    whole_run(tmp_path / "b", seed=1)
    page = page_of(tmp_path)
    slider = page.all("input")[0]
    steps = str(slider["data-steps"]).split()
    assert len(steps) == 12
    assert (steps[0], steps[-1]) == ("1", "40")
    assert "12 of 40 sample grids are shown" in page.text
    nothing = frames(run, 12, Budget(10))
    assert not nothing.frames
    assert nothing.of == 40
    one = frames(run, 12, Budget(1500))
    assert one.frames[-1][0] == 40
    assert sum(len(g.source) for _, grids in one.frames for g in grids) <= 1500


def test_thinning_keeps_spikes_and_ends() -> None:
    points = [(i, 1.0) for i in range(10_000)]
    points[5003], points[77] = (5003, 9.0), (77, -4.0)
    few = thinned(points, 100)
    assert len(few) <= 102
    assert {(5003, 9.0), (77, -4.0), points[0], points[-1]} <= set(few)
    assert few == sorted(few)
    assert thinned(points[:50], 100) == points[:50]


# --------------------------------------------------------------------------- files of anybody


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 10_000)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data)
            + chunk(b"IEND", b""))  # fmt: skip


def test_pictures_that_are_none_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    for name, data in {"step0000001": b"", "step0000002": bomb(), "step0000003": b"GIF89a"}.items():
        (run / "samples" / f"{name}.png").write_bytes(data)
    with (run / "samples" / "step0000004.png").open("wb") as file:
        file.truncate(2**33)
    os.mkfifo(run / "samples" / "step0000005.png")
    (run / "samples" / "step0000006.png").symlink_to(secret)
    (run / "samples" / "step0000007.png").mkdir()
    (run / "samples" / "step<script>.png").write_bytes(b"")
    page = page_of(run)
    assert len(pictures(page)) == 4, "three steps, and what is the same at each"
    for words in ("step0000001.png: ", "step0000002.png: ", "Nor can 2 others"):
        assert words in page.text, words


ODD_LAYOUTS = [
    "[", "[]", "{}", '{"zoom": 0}', '{"zoom": 1e9, "padding": 0, "columns": 1, "grids": []}',
    *(
        json.dumps({"zoom": 4, "padding": 2, "columns": 5,
                    "grids": [{"what": "<b>", "left": left, "size": size, "classes": classes}]})
        for left, size, classes in [(-1, 4, [0]), (0, 4000, [0]), (0, 4, []), (0, 4, [0] * 9999),
                                    (0, 4, ["<script>"]), (10**30, 4, [0]), (0, 4, None)]
    ),
    "[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("said", ODD_LAYOUTS, ids=range(len(ODD_LAYOUTS)))
def test_a_picture_that_says_nonsense_of_itself_is_shown_whole(tmp_path: Path, said: str) -> None:
    (tmp_path / "samples").mkdir()
    text = PngInfo()
    text.add_text("mosaickd", said)
    Image.new("RGB", (128, 64)).save(tmp_path / "samples" / "step0000001.png", pnginfo=text)
    ((_, (grid,)),) = frames(tmp_path, 5, Budget(10**6)).frames
    assert grid.what == ""
    assert grid.classes == ()


def test_files_of_anybody_never_become_markup_nor_end_the_report(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run", steps=(10,))
    evil = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>"
    (run / ".hydra" / "config.yaml").write_text(evil)
    (run / ".hydra" / "overrides.yaml").write_text(json.dumps([evil, 3, {"a": 1}]))
    rows = [{"class": evil, "images": 3, "right": 1}, {"class": "empty", "images": 0, "right": 0}]
    (run / "per_class.json").write_text(json.dumps({"step": 3, "classes": rows}))
    more = {f"loss/{evil}/{evil}": 1.0, f"lr/{evil}": 0.1, "fakes/classes": [evil]}
    append(
        run,
        logged(11, **more),
        evaluated(12, 1.0, **{"fakes/classes": [-1]}),
        logged(10**15, **{"loss/student/kd": 1e300, "loss/generator/local": 1e-300}),
    )
    result = json.loads((run / "result.json").read_text())
    result |= {
        "code": {"commit": evil},
        "data_fingerprint": [evil],
        "processes": evil,
        "memory_mb": {evil: evil},
        "config_hash": evil,
        "error": evil,
        "status": "failed",
    }
    (run / "result.json").write_text(json.dumps(result))
    (run / "run.log").write_text(evil)
    page = page_of(run)
    assert len(page.all("script")) == 1
    assert all(str(a["src"]).startswith("data:image/webp") for a in page.all("img"))
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert page.text.count("alert(1)") >= 8
    assert "empty" not in page.text, "a class without test images was not measured"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("{", "no table of classes"),
        ('{"step": 3, "classes": [{"images": 4, "right": 5}]}', "in row 1 there are no counts"),
    ],
)
def test_a_broken_table_of_classes_is_named(tmp_path: Path, said: str, problem: str) -> None:
    run = whole_run(tmp_path / "run")
    (run / "per_class.json").write_text(said)
    assert f"per_class.json can't be read: {problem}" in page_of(run).text


def test_metrics_that_a_page_has_no_room_for_are_counted(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    for start in ("loss/student/", "mine/", "x" * 100):
        own = {f"{start}{number}": 1.0 for number in range(230)}
        with (run / "metrics.jsonl").open("w") as file:
            file.write(json.dumps({"step": 1} | own | {"accuracy/top1": 51.25}) + "\n")
        page = page_of(run)
        assert "30 other metrics in metrics.jsonl: a page has room for 200" in page.text
        assert "Accuracy over steps" in page.source, "what every run measures is never among them"


@pytest.mark.parametrize("name", ["per_class.json", ".hydra/overrides.yaml", ".hydra/config.yaml",
                                  "run.log", "metrics.jsonl"])  # fmt: skip
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 200_000, b"- " * 50_000, None])
def test_broken_files_leave_the_rest(tmp_path: Path, name: str, content: bytes | None) -> None:
    run = whole_run(tmp_path / "run", steps=(10,), status="failed")
    (run / name).unlink()
    if content is None:
        os.mkfifo(run / name)
    else:
        (run / name).write_bytes(content)
    assert "status failed" in page_of(run).text


def test_links_out_of_the_folder_show_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("do not tell")
    run = whole_run(tmp_path / "run", status="failed")
    for name in ("run.log", ".hydra/config.yaml"):
        (run / name).unlink()
        (run / name).symlink_to(tmp_path / "secret")
    assert "do not tell" not in page_of(run).source


# --------------------------------------------------------------------------- the command


def test_html_takes_a_file_a_folder_or_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = whole_run(tmp_path / "a"), whole_run(tmp_path / "b", seed=1)
    for arguments, path in (
        ([a, "--html"], a / "report.html"),
        (["--html", a], a / "report.html"),
        (["--html", b, a], b / "report.html"),
        ([b, "--html", a], b / "report.html"),
        (["--html", a, "--best"], a / "report.html"),
        ([a, "--html", tmp_path / "new" / "page.html"], tmp_path / "new" / "page.html"),
        (["--html", tmp_path / "page.html", a], tmp_path / "page.html"),
        ([a, "--html", tmp_path / "page.HTM"], tmp_path / "page.HTM"),
    ):
        main([str(argument) for argument in arguments])
        assert capsys.readouterr().out.endswith(f"page: {path}\n")
        assert path.read_text().startswith("<!doctype html>"), arguments
        path.unlink()
    assert not [path for path in tmp_path.rglob(".*.tmp")]


def test_html_with_what_it_cannot_mean_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = whole_run(tmp_path / "a")
    with pytest.raises(SystemExit, match="there is no such folder"):
        main(["--html", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="is a folder; name the file"):
        main([str(a), f"--html={a}"])
    result = a / "result.json"
    before = result.read_bytes()
    for words in ([str(a), "--html", str(result)], ["--html", str(result), str(a)]):
        with pytest.raises(SystemExit, match=r"a page's name ends in \.html"):
            main(words)  # as a shell's `--html outputs/sweep/*` may give them
    assert result.read_bytes() == before
    with pytest.raises(SystemExit, match=r"a page's name ends in \.html"):
        main([str(a), "--html", str(tmp_path / "misspelt")])
    with pytest.raises(SystemExit) as stop:
        main(["--html", "page.html"])
    assert stop.value.code == 2
    assert "FOLDER" in capsys.readouterr().err
