"""A report as one HTML file that needs no network: tables and a chart of a sweep, and each run.

The template escapes whatever a file says. The page's policy lets nothing run but its own script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from mosaickd import metric_names
from mosaickd.analysis import labels
from mosaickd.analysis.charts import accuracy_chart, run_charts
from mosaickd.analysis.runs import UNDER_WAY, Run, signature
from mosaickd.analysis.table import Report, records, variants
from mosaickd.analysis.terminal import mean_of
from mosaickd.errors import UserError
from mosaickd.utils.durations import duration

HERE = Path(__file__).parent
#: Of all runs of a page together: bytes of pictures, and points of each curve.
PICTURE_BYTES, POINTS = 12_000_000, 6000
#: How many steps with pictures a run shows, alone and among others.
STEPS_ALONE, STEPS_FOLDED = 60, 12

STATES = {
    "interrupted": "It was stopped in order. The same command goes on from there.",
    "killed": "No process holds its folder: it was killed, or its machine stopped. The same "
    "command goes on from its last checkpoint.",
    "unreadable": "Its result.json can't be read.",
}
CONTENTS = {"synthetic": "synthetic images", "images": "images it trains on"}


#: By folder, what a page says of a run, and of which state of its files and of the page.
Contexts = dict[Path, tuple[object, dict[str, Any]]]


def render_page(
    report: Report,
    folders: Sequence[Path],
    version: str = "",
    contexts: Contexts | None = None,
) -> str:
    """Return the page. version, contexts: of one that a server builds again and again."""
    alone = len(report.runs) == 1
    contexts = {} if contexts is None else contexts
    runs = []
    for i, run in enumerate(report.runs):
        state = (signature(run), i, len(report.runs))
        if contexts.get(run.folder, (None, {}))[0] != state:
            contexts[run.folder] = (state, _run_context(run, f"run{i}", len(report.runs)))
        runs.append(contexts[run.folder][1])
    names = ", ".join(folder.resolve().name for folder in folders)
    html: str = _template().render(
        title=runs[0]["title"] if alone else names,
        alone=alone,
        runs=runs,
        report=report,
        other=records(report.other),
        letters=variants(report),
        chart=None if alone else accuracy_chart(report),
        evaluation=labels.EVALUATIONS[report.evaluation],
        finished=sum(run.finished for run in report.runs),
        version=version,
        policy=_policy(live=bool(version)),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=_script(),
    )
    return html.lstrip()


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {"short": labels.short, "number": labels.number, "mean_of": mean_of,
                            "signed": labels.signed, "percent": labels.percent,
                            "plural": labels.plural}  # fmt: skip
    return environment.get_template("page.html.j2")


@cache
def _script() -> str:
    """Return Vega, Vega-Lite and vega-embed with the page's own script, for a <script> element.

    To bundle them takes some seconds, once a process.
    """
    snippet = (HERE / "page.js").read_text(encoding="utf-8")
    return vl_convert.javascript_bundle(snippet).replace("</script", "<\\/script")


def _policy(*, live: bool) -> str:
    """Return the page's Content-Security-Policy: nothing is loaded, and one script runs."""
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return policy + ("; connect-src 'self'" if live else "")


# ---------------------------------------------------------------------------------------- a run


def _run_context(run: Run, name: str, count: int) -> dict[str, Any]:
    """Return what the template says of a run. count: of the page's runs, which share its room."""
    result, metrics, problems = run.result, run.run_dir.read_metrics(), []
    try:
        classes = run.run_dir.read_per_class()
        config = run.run_dir.read_config()
        overrides = run.run_dir.read_overrides()
    except (UserError, OSError) as error:
        classes, config, overrides = [], {}, []
        problems.append(str(error))
    points = [(record[metric_names.STEP], record[metric_names.TOP1])
              for record in metrics if metric_names.TOP1 in record]  # fmt: skip
    last, best, best_step = _accuracies(run, points)
    teacher = result.teacher_accuracy if result else None
    title, total = run.folder.resolve().name, None
    if result:
        pair = f"{result.teacher} to {result.student}" if result.teacher else result.student
        title = f"{labels.describe(result)}, {pair}, seed {result.seed}"
        total = result.total_steps
    step = f"{run.steps:,} of {total:,}" if total else f"{run.steps:,}"
    facts = {
        "status": run.state,
        "step": step,
        "accuracy": last is not None and labels.percent(last),
        "best": best is not None and f"{labels.percent(best)} at step {best_step}",
        "teacher": teacher is not None and labels.percent(teacher),
        "trained for": result and result.seconds and duration(result.seconds),
        "last logged": _moment(metrics),
    }
    pictures, broken = _pictures(run, metrics, count)
    return {
        "name": name,
        "title": title,
        "folder": str(run.folder),
        "state": run.state,
        "summary": f"{run.state}, step {step}, accuracy {labels.percent(last)}",
        "meaning": STATES.get(run.state, ""),
        "facts": {key: value for key, value in facts.items() if value},
        "progress": (run.steps, total) if run.state == "running" and total else None,
        "problems": [*([run.problem] if run.problem else []), *problems, *broken],
        "error": result.error if result else None,
        "log": "" if run.state in ("finished", "running") else run.run_dir.read_log_tail(),
        "pictures": pictures,
        "all_pictures": len(run.run_dir.sample_paths()),
        "charts": run_charts(
            metrics, teacher, [row["class"] for row in classes], max(30, min(300, POINTS // count))
        ),
        "classes": sorted(
            ({"percent": 100 * row["right"] / row["images"], **row}
             for row in classes if row["images"]), key=lambda row: row["percent"]),
        "command": shlex.join(["python", "run.py", *overrides]) if overrides else "",
        "variant": result.variant if result else None,
        "config": yaml.safe_dump(config, sort_keys=False) if config else "",
        "environment": _environment(run),
    }  # fmt: skip


def _accuracies(
    run: Run, points: Sequence[tuple[int, float]]
) -> tuple[float | None, float | None, int | None]:
    """Return last, best and its step: of a run that has not finished those in its metrics."""
    if run.result and run.result.status not in UNDER_WAY and run.result.last is not None:
        return run.result.last, run.result.best, run.result.accuracy.get("best_step")  # type: ignore[return-value]
    if not points:
        return None, None, None
    step, best = max(points, key=lambda point: point[1])
    return points[-1][1], best, step


def _moment(metrics: Sequence[dict[str, Any]]) -> str:
    """Return when something was logged last: 2026-03-14 09:26:53 UTC."""
    seconds = metrics[-1].get(metric_names.TIME) if metrics else None
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds else ""


def _environment(run: Run) -> dict[str, str]:
    if run.result is None:
        return {}
    result = run.result
    dirty = " and files that differ from it" if result.code.get("dirty") else ""
    pairs = {
        "device": result.device,
        "processes": result.processes,
        "peak memory": result.memory_mb and f"{result.memory_mb:.0f} MB",
        "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "code": result.code.get("commit") and f"{result.code['commit']}{dirty}",
        "settings' hash": result.config_hash,
        "images": ", ".join(f"{k} {v}" for k, v in (result.data_fingerprint or {}).items()),
        "teacher's weights": result.teacher_fingerprint,
        "broken images": ", ".join(f"{k} {v}" for k, v in result.broken_images.items()),
    }
    return {name: str(value) for name, value in pairs.items() if value}


# ------------------------------------------------------------------------------------- pictures


def _pictures(
    run: Run, metrics: Sequence[dict[str, Any]], count: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a run's sample pictures, spread evenly over its steps, the last one among them; and
    what is wrong with those that can't be read."""
    paths = run.run_dir.sample_paths()
    if not paths:
        return [], []
    room = PICTURE_BYTES // count // max(1, paths[-1].stat().st_size)
    most = max(1, min(STEPS_ALONE if count == 1 else STEPS_FOLDED, room, len(paths)))
    chosen = [paths[-1 - i * len(paths) // most] for i in range(most)][::-1]
    seen = {record[metric_names.STEP]: record[metric_names.FAKE_CLASSES_SEEN]
            for record in metrics if metric_names.FAKE_CLASSES_SEEN in record}  # fmt: skip
    pictures, broken = [], []
    for path in chosen:
        try:
            pictures.append(_encode(path, seen))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            broken.append(f"{path.name} can't be shown: {error}")
    return pictures, broken


def _encode(path: Path, seen: dict[int, int]) -> dict[str, Any]:
    """Return a picture as a data: URI (WebP: a third of the PNG), and words for it."""
    step = int(path.stem.removeprefix("step"))
    with Image.open(path, formats=["PNG"]) as image:
        layout = json.loads(image.info.get("mosaickd", "{}"))
        grids = [CONTENTS.get(grid["what"], grid["what"]) for grid in layout.get("grids", [])]
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="WEBP", quality=80)
    caption = (" beside ".join(grids) or "samples").capitalize()
    words = f"; the teacher sees {labels.plural(seen[step], 'class')}" if step in seen else ""
    source = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"step": step, "source": source, "width": image.width, "height": image.height,
            "caption": caption, "alt": f"{caption}, step {step}{words}"}  # fmt: skip
