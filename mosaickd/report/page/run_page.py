"""A run in a page: where it stands, its curves, its pictures, its classes, and what made it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mosaickd import metric_names
from mosaickd.durations import duration
from mosaickd.errors import printable
from mosaickd.report.contents import tail, text, written
from mosaickd.report.labels import describe, percent, shown, times
from mosaickd.report.page import classes as by_class
from mosaickd.report.page import run_curves
from mosaickd.report.page.markup import escape, facts, figure, paragraph
from mosaickd.report.page.pictures import Budget, Frames, Grid, frames
from mosaickd.report.page.series import NAMES, Measured, measured
from mosaickd.report.run_files import Entry, command, moment

#: What each state is called, and what can be said about it.
STATES = {
    "finished": ("finished", ""),
    "running": ("running", ""),
    "failed": ("failed", ""),
    "interrupted": ("stopped", "It was stopped in order. The same command goes on from there."),
    "killed": ("not running", "No process holds its folder: it was killed, or its machine "
               "stopped. The same command goes on from its last checkpoint."),
    "unreadable": ("unknown", "Its result.json can't be read."),
}  # fmt: skip


@dataclass(frozen=True)
class Room:
    """What a run may take of a page: steps with pictures, and points a curve."""

    steps: int
    points: int


ALONE, FOLDED = Room(120, 400), Room(12, 160)


class RunPage:
    """The parts of a run's section. level: of its headings; name: of the run among the page's."""

    def __init__(self, entry: Entry, room: Room, level: int, name: str, budget: Budget) -> None:
        self.entry, self.room, self.level, self.name, self.budget = entry, room, level, name, budget
        self.folder, self.run = entry.folder, entry.run
        self.result = entry.result
        self.numbers: Measured = measured(self.folder)
        self.classes, self.classes_problem = by_class.per_class(self.folder)
        self.state = entry.state

    def lines(self) -> list[str]:
        return [
            *self.overview(),
            *self.error(),
            *self.pictures(),
            *self.curves(),
            *self.per_class(),
            *self.settings(),
            *self.environment(),
        ]

    def heading(self, words: str, name: str) -> str:
        return f'<h{self.level} id="{self.name}-{name}">{escape(words)}</h{self.level}>'

    # ---------------------------------------------------------------------- where it stands

    @property
    def title(self) -> str:
        """What it does, in a few words."""
        if self.run is None:
            return printable(self.folder.resolve().name)
        run = self.run
        pair = f"{run.teacher} to {run.student}" if run.teacher else run.student
        return f"{describe(vars(run))}, {pair}, seed {run.seed}"

    @property
    def step(self) -> int:
        ended = self.run is not None and not self.run.under_way
        known = self.run.steps if self.run else 0
        return known if ended else self.numbers.last_step or known

    def accuracies(self) -> tuple[float | None, float | None]:
        """Last and best: of an unfinished run those in its metrics, as result.json has none yet."""
        points = self.numbers.points.get(metric_names.TOP1, [])
        last = points[-1][1] if points else None
        best = max((value for _, value in points), default=None)
        if self.run is None or self.run.last is None:
            return last, best
        if self.run.finished or last is None:
            return self.run.last, self.run.best
        return last, best

    def progress(self) -> str:
        """40 of 375"""
        total = self.run.total_steps if self.run else None
        known = total is not None and 0 < total < 2**53
        return f"{self.step:,} of {total:,}" if known else f"{self.step:,}"

    def summary(self) -> str:
        """The run in one line, for a page that folds it."""
        last, _ = self.accuracies()
        words = [STATES.get(self.state, (self.state, ""))[0], f"step {self.progress()}"]
        words += [percent(last)] if last is not None else []
        return ", ".join(words) + (f"; {self.run.variant}" if self.run and self.run.variant else "")

    def overview(self) -> list[str]:
        word, meaning = STATES.get(self.state, (self.state, ""))
        last, best = self.accuracies()
        run = self.run
        ended = run is not None and not run.under_way
        best_step = self.result.get("accuracy", {}).get("best_step")
        at = f" at step {best_step:,}" if type(best_step) is int and run and run.finished else ""
        teacher = run.teacher_accuracy if run else None
        heard = self.numbers.last_time or max(
            (
                t
                for n in ("result.json", "metrics.jsonl", "run.log")
                if (t := written(self.folder / n))
            ),
            default=None,
        )
        cards = [
            ("status", word),
            ("step", self.progress()),
            ("accuracy", "" if last is None else percent(last)),
            ("best", "" if best is None else percent(best) + at),
            ("teacher", "" if teacher is None else percent(teacher)),
            ("trained for", duration(run.seconds) if run and ended and run.seconds else ""),
            ("last heard of", moment(heard)),
        ]
        lines = [facts(cards, f"cards {css_name(self.state)}")]
        total = run.total_steps if run else None
        if self.state == "running" and total and 0 < self.step <= total < 2**53:
            lines.append(f'<progress max="{total}" value="{self.step}" '
                         f'aria-label="step {self.step} of {total}"></progress>')  # fmt: skip
        lines += [paragraph(meaning)] if meaning else []
        if last is None:
            lines.append(paragraph("The student has not been evaluated yet." if self.state in
                         ("running", "killed") else "No accuracy was measured."))  # fmt: skip
        problems = [self.entry.problem, self.numbers.problem]
        lines += [f"<p class=problem>{escape(words)}</p>" for words in problems if words]
        return lines

    def error(self) -> list[str]:
        """What stopped it, and the end of its log."""
        if self.state in ("finished", "running"):
            return []
        lines = []
        if self.run and self.run.error:
            lines.append(f"<p class=problem>{escape(self.run.error)}</p>")
        if log := tail(self.folder, "run.log"):
            opened = " open" if self.state == "failed" else ""
            lines += [
                f"<details data-key=log{opened}><summary>The end of run.log</summary>",
                f'<pre tabindex=0 aria-label="The end of run.log">{escape(log)}</pre></details>',
            ]
        return lines

    # ---------------------------------------------------------------------- pictures

    def pictures(self) -> list[str]:
        found = frames(self.folder, self.room.steps, self.budget)
        counted = self.numbers.classes
        drawn = {grid.what for _, grids in found.frames for grid in grids}
        real = bool(found.fixed or drawn) and not counted and "synthetic" not in drawn
        lines = [self.heading("Images" if real else "Synthetic images", "images")]
        if not found.frames and not found.of and self.run and self.run.method == "scratch":
            return []  # no teacher to sort images by: it draws none
        if not found.frames and counted:  # pictures are gone, or too many: counts are left
            steps = [*counted][-self.room.steps :]
            found.frames = [(step, []) for step in steps]
        if not found.frames and not found.of:
            words = "No sample grids have been written"
            words += " yet." if self.state == "running" else "."
            return [*lines, paragraph(words)]
        names = self.classes.names if self.classes else ()
        lines += self.frames(found, names)
        remarks = []
        readable = sum(bool(grids) for _, grids in found.frames)
        if readable + len(found.broken) < found.of:
            remarks.append(f"{readable} of {times(found.of, 'sample grid')} are shown; "
                           "all of them are in samples/.")  # fmt: skip
        remarks += [f"Can't be shown: {words}" for words in found.broken[:5]]
        if len(found.broken) > 5:
            remarks.append(f"Nor can {len(found.broken) - 5} others.")
        return lines + [paragraph(words) for words in remarks]

    def frames(self, found: Frames, names: Sequence[str]) -> list[str]:
        """One step after the other, all in the same place: without a script, the last one."""
        counted = self.numbers.classes
        steps = [step for step, _ in found.frames]
        highest = max((max(counted[step]) for step in steps if step in counted), default=0)
        lines = [f"<div class=frames data-frames id={self.name}-frames>"]
        if len(steps) > 1:
            slider = f"{self.name}-slider"
            end = self.step or steps[-1]
            lines += [
                f"<div class=control hidden><label for={slider}>step</label>"
                f"<output for={slider}>{steps[-1]:,}</output>"
                f"<input type=range id={slider} min=0 max={len(steps) - 1} value={len(steps) - 1} "
                f'data-steps="{" ".join(map(str, steps))}" data-end={end} '
                f'aria-valuetext="step {steps[-1]} of {end}"></div>',
                "<noscript><p class=quiet>The last step. A browser that runs this page's script "
                "shows the others with a slider.</p></noscript>",
            ]
        lines.append("<div class=stage><div>")
        for i, (step, grids) in enumerate(found.frames):
            away = "" if i == len(steps) - 1 else " hidden"
            lines.append(f'<div class=frame data-step="{step}"{away}>')
            lines += [self.picture(grid, step, names) for grid in grids]
            if counts := counted.get(step):
                words = by_class.seen_words(counts, names)
                drawn = by_class.histogram(counts, names, highest)
                caption = f"{words}. Dashed: each class equally often."
                alt = f"Bar chart at step {step}: {words}."
                lines.append(figure(drawn, "What the teacher sees in them", caption, alt))
            lines.append("</div>")
        lines.append("</div>")
        if found.fixed:
            lines.append(f"<div>{self.picture(found.fixed, None, names)}</div>")
        return [*lines, "</div></div>"]

    def picture(self, grid: Grid, step: int | None, names: Sequence[str]) -> str:
        what = {"synthetic": "Synthetic", "images": "Trained on, the same at each step"}
        title = what.get(grid.what, "Sample grid, as written by an older version")
        if grid.what == "images" and step is not None:
            title = "Trained on"
        alt = title if step is None else f"{title}, step {step}"
        if grid.classes:
            alt += f": {times(len(grid.classes), 'image')}, which the teacher takes for "
            alt += counted_words(grid.classes, names)
        width, height = grid.size
        return (
            f"<figure class=grid><figcaption><b>{escape(title)}</b></figcaption>"
            f'<img src="{grid.source}" width={width} height={height} alt="{escape(alt)}" '
            "decoding=async></figure>"
        )

    # ---------------------------------------------------------------------- curves

    def curves(self) -> list[str]:
        teacher = self.run.teacher_accuracy if self.run else None
        drawn = run_curves.figures(self.numbers, teacher, self.room.points)
        lines = [self.heading("Curves", "curves")]
        if drawn:
            lines += ["<div class=figures>", *drawn, "</div>"]
        else:
            missing = "Nothing has been logged" + (" yet." if self.state == "running" else ".")
            lines.append(paragraph(missing))
        if more := self.numbers.left_out:
            lines.append(paragraph(f"{times(more, 'other metric')} in metrics.jsonl: a page has "
                                   f"room for {NAMES}."))  # fmt: skip
        return lines

    # ---------------------------------------------------------------------- classes, settings

    def per_class(self) -> list[str]:
        if self.classes_problem:
            return [f"<p class=problem>{escape(self.classes_problem)}</p>"]
        return by_class.accuracy_table(self.classes, self.level) if self.classes else []

    def settings(self) -> list[str]:
        lines = []
        if typed := command(self.folder):
            lines.append(
                f'<pre class=command tabindex=0 aria-label="Command">{escape(typed)}</pre>'
            )
        if self.run and self.run.variant:
            lines.append(paragraph(f"Not the method's own recipe: {self.run.variant}"))
        if config := text(self.folder, ".hydra/config.yaml"):
            lines += [
                "<details data-key=config><summary>All settings (.hydra/config.yaml)</summary>",
                f'<pre tabindex=0 aria-label="All settings">{escape(config)}</pre></details>',
            ]
        lines = lines or [paragraph("No settings were recorded.")]
        return [self.heading("Settings", "settings"), *lines]

    def environment(self) -> list[str]:
        said = self.result
        code = said.get("code")
        code = code if isinstance(code, dict) else {}
        commit = str(code.get("commit") or "")
        commit += " and files that differ from it" if commit and code.get("dirty") else ""
        memory = said.get("memory_mb")
        pairs = [
            ("device", (self.run.device or "") if self.run else ""),
            ("processes", value_of(said.get("processes"))),
            ("peak memory", f"{value_of(memory)} MB" if memory else ""),
            ("versions", ", ".join(f"{k} {v}" for k, v in self.run.versions) if self.run else ""),
            ("code", printable(commit, 120)),
            ("settings' hash", value_of(said.get("config_hash"))),
            ("images", value_of(said.get("data_fingerprint"))),
            ("teacher's weights", value_of(said.get("teacher_fingerprint"))),
            ("broken images", value_of(said.get("broken_images") or None)),
            ("folder", shown(self.folder.resolve())),
        ]
        return [self.heading("Environment", "environment"), facts(pairs, "environment")]


def value_of(value: Any) -> str:
    """What a result says, whatever it is, on a line; empty where it says nothing."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return printable(", ".join(f"{k} {v}" for k, v in value.items()), 1000)
    return printable(value if isinstance(value, str) else json.dumps(value), 400)


def counted_words(numbers: Sequence[int], names: Sequence[str]) -> str:
    """G (50), A (30), F (20) and 2 others"""
    counts = Counter(numbers)
    ordered = sorted(counts, key=lambda number: (-counts[number], number))
    words = ", ".join(f"{by_class.name_of(n, names)} ({counts[n]})" for n in ordered[:8])
    return words + (f" and {times(len(ordered) - 8, 'other')}" if len(ordered) > 8 else "")


def css_name(state: str) -> str:
    return state if state in STATES else "other"
