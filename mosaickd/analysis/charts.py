"""Charts of the page, declared in Altair: Vega-Lite specifications without colours of their own.

The page's style sheet decides the colours, so that they follow the reader's light or dark theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from mosaickd import metric_names
from mosaickd.analysis.labels import short
from mosaickd.analysis.table import Report, records, variants

WIDTH = 310  # pixels of a plot; the page scales it to the room that there is
CELLS = 4000  # marks of a heat map
LABELLED = 30  # classes that a heat map has room to name


@dataclass(frozen=True)
class Chart:
    """spec: Vega-Lite. words: what it shows, for whoever doesn't see it."""

    title: str
    spec: dict[str, Any]
    words: str
    caption: str = ""


def run_charts(
    metrics: Sequence[dict[str, Any]], teacher: float | None, classes: Sequence[str], points: int
) -> list[Chart]:
    """Return a chart of each kind of metric that a run has logged. points: the most of a curve."""
    frame = metric_frame(metrics)
    charts = []

    def add(title: str, names: dict[str, str], *, stacked: bool, caption: str = "") -> None:
        chosen = frame[frame["name"].isin(names)]
        if len(chosen):
            chosen = chosen.assign(name=chosen["name"].map(names))
            charts.append(_curves(title, chosen, points, stacked, caption, teacher))

    def below(prefix: str) -> dict[str, str]:
        names = [name for name in dict.fromkeys(frame["name"]) if name.startswith(f"{prefix}/")]
        return {name: name.removeprefix(f"{prefix}/") for name in names}

    add("Accuracy on test images, %", {metric_names.TOP1: "top-1", metric_names.TOP5: "top-5"},
        stacked=False)  # fmt: skip
    losses = below(metric_names.LOSS)
    for player in dict.fromkeys(name.partition("/")[0] for name in losses.values()):
        add(f"Losses of the {player}", below(f"{metric_names.LOSS}/{player}"), stacked=True)
    for player in dict.fromkeys(name.partition("/")[0] for name in losses.values()):
        weighted = below(f"{metric_names.WEIGHTED}/{player}")
        if len(weighted) > 1:
            add(f"Weighted losses of the {player}", weighted, stacked=False,
                caption="Weight times loss; what is minimised is their sum.")  # fmt: skip
    add("Learning rates", below(metric_names.LEARNING_RATE), stacked=True)
    if heat_map := _class_map(metrics, classes):
        charts.append(heat_map)
    add("Synthetic images", {metric_names.FAKE_CLASSES_SEEN: "classes seen by the teacher",
                             metric_names.FAKE_CONFIDENCE: "the teacher's confidence"},
        stacked=True)  # fmt: skip
    add("Speed and memory", {metric_names.IMAGES_PER_SECOND: "images per second",
                             metric_names.PEAK_MEMORY: "peak memory, MB"},
        stacked=True)  # fmt: skip
    return charts


def metric_frame(metrics: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the finite numbers of metrics.jsonl in long form: step, name, value."""
    frame = pd.DataFrame([{metric_names.STEP: 0}, *metrics]).iloc[1:]
    frame = frame.drop(columns=[metric_names.TIME, metric_names.FAKE_CLASSES], errors="ignore")
    long = frame.melt(id_vars=metric_names.STEP, var_name="name")
    long["value"] = pd.to_numeric(long["value"], errors="coerce")
    long = long[np.isfinite(long["value"].astype(float))]
    return long.drop_duplicates([metric_names.STEP, "name"], keep="last")


def _curves(
    title: str, frame: pd.DataFrame, points: int, stacked: bool, caption: str, teacher: float | None
) -> Chart:
    """Return curves over steps. stacked: one below the other, each on a scale of its own."""
    curves = {name: curve.sort_values("step") for name, curve in frame.groupby("name", sort=False)}
    words = "; ".join(describe_curve(str(name), curve) for name, curve in curves.items())
    data = pd.concat([thin(curve, points) for curve in curves.values()])
    names = [str(name) for name in curves]
    x = alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, tickCount=5))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))
    several = len(names) > 1 and not stacked
    legend = alt.Legend(title=None, orient="bottom", columns=2) if several else None
    chart: Any = (
        alt.Chart(data)
        .mark_line(point=len(data) <= 20 * len(names))
        .encode(x, y, alt.Color("name:N", sort=names, legend=legend),
                tooltip=_tooltips("name:N", "step:Q", "value:Q"))
        .properties(width=WIDTH, height=60 if stacked else 170)
    )  # fmt: skip
    if stacked:
        header = alt.Header(title=None, labelAnchor="start", labelOrient="top", labelPadding=2)
        chart = chart.facet(facet=alt.Facet("name:N", sort=names, header=header), columns=1,
                            spacing=6).resolve_scale(y="independent")  # fmt: skip
    elif title.startswith("Accuracy") and teacher is not None:
        level = alt.Chart(pd.DataFrame({"value": [teacher]})).mark_rule(strokeDash=[3, 3])
        chart = alt.layer(chart, level.encode(y="value:Q"))
        caption = f"Dashed: the teacher, {teacher:.2f} %."
    return Chart(title, _spec(chart), words, caption)


def describe_curve(name: str, curve: pd.DataFrame) -> str:
    """Return where a curve begins and ends, and what lies between."""
    values, steps = curve["value"], curve["step"]
    if len(curve) == 1:
        return f"{name} is {values.iloc[0]:.4g} at step {steps.iloc[0]}"
    return (
        f"{name} from {values.iloc[0]:.4g} at step {steps.iloc[0]} to {values.iloc[-1]:.4g} at "
        f"step {steps.iloc[-1]}, between {values.min():.4g} and {values.max():.4g}"
    )


def thin(curve: pd.DataFrame, points: int) -> pd.DataFrame:
    """Return about `points` rows that look the same: both ends, and of each stretch the lowest and
    the highest, so that no spike is lost."""
    if len(curve) <= points:
        return curve
    curve = curve.reset_index(drop=True)
    values = curve["value"].groupby(curve.index * (points // 2) // len(curve))
    rows = {0, len(curve) - 1, *values.idxmin(), *values.idxmax()}
    return curve.loc[sorted(rows)]


def _class_map(metrics: Sequence[dict[str, Any]], classes: Sequence[str]) -> Chart | None:
    """Return how often the teacher sees each class in synthetic images, by evaluation."""
    counts = {record[metric_names.STEP]: record[metric_names.FAKE_CLASSES] for record in metrics
              if isinstance(record.get(metric_names.FAKE_CLASSES), list)}  # fmt: skip
    if not counts:
        return None
    steps = sorted(counts)
    last = counts[steps[-1]]
    most = max(2, CELLS // max(1, len(last)))
    steps = [*steps[:: -(-len(steps) // most)], steps[-1]]
    names = list(classes) if len(classes) == len(last) else [str(i) for i in range(len(last))]
    data = pd.DataFrame(
        [(step, name, count) for step in dict.fromkeys(steps)
         for name, count in zip(names, counts[step], strict=False)],
        columns=["step", "class", "images"],
    )  # fmt: skip
    likeliest = max(range(len(last)), key=last.__getitem__)
    words = (
        f"{sum(n > 0 for n in last)} of {len(last)} classes seen in {sum(last)} synthetic images "
        f"at step {steps[-1]}; the most, {last[likeliest]}, are taken for {names[likeliest]}"
    )
    labels = alt.Axis(labels=len(names) <= LABELLED, ticks=False, labelOverlap=False)
    chart = (
        alt.Chart(data)
        .mark_rect()
        .encode(alt.X("step:O", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
                alt.Y("class:N", sort=names, axis=labels, title="class"),
                alt.Color("images:Q", legend=alt.Legend(orient="bottom", title="images")),
                tooltip=_tooltips("step:O", "class:N", "images:Q"))
        .properties(width=WIDTH, height=max(60, min(360, 13 * len(names))))
    )  # fmt: skip
    return Chart("What the teacher sees in synthetic images", _spec(chart), words, words + ".")


def accuracy_chart(report: Report) -> Chart | None:
    """Return the accuracy of each row of a report's tables, beside the paper's where it has one."""
    letters = variants(report)
    rows = [cell | {"label": f"{short(cell['method'])}, {cell['data']}: {cell['column']}"}
            for cell in records(report.cells) if cell["mean"] is not None]  # fmt: skip
    rows += [row | {"label": f"{row['model']}, {row['how']} {letters.get(row['variant'], '')}",
                    "paper": None} for row in records(report.other)]  # fmt: skip
    if not rows:
        return None
    data = pd.DataFrame(
        [(row["label"].strip(), kind, value, value - (sd or 0.0), value + (sd or 0.0))
         for row in rows
         for kind, value, sd in (("paper", row["paper"], None), ("ours", row["mean"], row["sd"]))
         if value is not None],
        columns=["row", "whose", "accuracy", "low", "high"],
    )  # fmt: skip
    words = "; ".join(
        f"{row['label'].strip()} {row['mean']:.2f}"
        + (f" (paper {row['paper']:.2f})" if row["paper"] is not None else "")
        for row in rows
    )
    y = alt.Y("row:N", title=None, sort=list(dict.fromkeys(data["row"])),
              axis=alt.Axis(labelLimit=330, grid=True))  # fmt: skip
    legend = alt.Legend(title=None, orient="top")
    base = alt.Chart(data).encode(
        y, color=alt.Color("whose:N", sort=["ours", "paper"], legend=legend)
    )
    spread = base.mark_rule().encode(
        alt.X("low:Q", title="top-1 accuracy, %", scale=alt.Scale(zero=False)), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x="accuracy:Q",
        shape=alt.Shape("whose:N", sort=["ours", "paper"], legend=None),
        tooltip=_tooltips("row:N", "whose:N", "accuracy:Q"),
    )
    chart = alt.layer(spread, points).properties(width=WIDTH, height=alt.Step(22))
    caption = "Bars: standard deviation over seeds."
    return Chart("Accuracy by row", _spec(chart), words, caption)


def _tooltips(*names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(name) for name in names]  # altair is slow to read a list of strings


def _spec(chart: Any) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict(validate=False)  # which takes longer than all else
    spec.pop("config", None)  # the page's
    return spec
