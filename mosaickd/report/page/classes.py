"""Classes in a page: which the teacher sees in synthetic images, how the student does on each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mosaickd.errors import printable
from mosaickd.report.contents import read_json
from mosaickd.report.labels import times
from mosaickd.report.page.markup import escape, open_table

#: Classes that a table lists, and from how many on it is folded.
LISTED, FOLDED = 1000, 12
#: Of how many classes a histogram has room for the names.
NAMED = 30
WIDTH, TOP, HEIGHT, LEFT = 340.0, 8.0, 88.0, 30.0


@dataclass(frozen=True)
class ClassAccuracy:
    name: str
    right: int
    images: int

    @property
    def percent(self) -> float:
        return 100 * self.right / self.images


@dataclass(frozen=True)
class PerClass:
    """What per_class.json says. measured: classes that have test images."""

    step: int
    names: tuple[str, ...] = ()
    measured: tuple[ClassAccuracy, ...] = ()


def per_class(folder: Path) -> tuple[PerClass | None, str | None]:
    """What per_class.json says, if there is one; and what is wrong with it, if something is."""
    said = read_json(folder, "per_class.json")
    if said is None and not os.path.lexists(folder / "per_class.json"):
        return None, None
    rows = said.get("classes") if isinstance(said, dict) else None
    if not isinstance(rows, list) or type(said.get("step")) is not int:
        return None, "per_class.json can't be read: no table of classes"
    names, found = [], []
    for number, row in enumerate(rows):
        row = row if isinstance(row, dict) else {}
        name, images, right = row.get("class"), row.get("images"), row.get("right")
        if type(images) is not int or type(right) is not int or not 0 <= right <= images < 2**31:
            problem = f"in row {number + 1} there are no counts of right ones among images"
            return None, f"per_class.json can't be read: {problem}"
        names.append(printable(str(name), 60))
        if images:  # of a class without test images nothing was measured
            found.append(ClassAccuracy(names[-1], right, images))
    return PerClass(said["step"], tuple(names), tuple(found)), None


def accuracy_table(about: PerClass, level: int) -> list[str]:
    """The student's accuracy by class, the worst first."""
    ordered = sorted(about.measured, key=lambda row: (row.percent, row.name))
    if not ordered:
        return []
    worst, best = ordered[0], ordered[-1]
    words = (
        f"Accuracy by class at step {about.step}: from {worst.percent:.1f} % ({worst.name}) to "
        f"{best.percent:.1f} % ({best.name})"
    )
    folded = len(ordered) > FOLDED
    lines = [f"<h{level}>Accuracy by class</h{level}>"]
    if folded:
        lines.append(f"<details data-key=classes><summary>{escape(words)}</summary>")
    else:
        lines.append(f"<p class=quiet>{escape(words)}.</p>")
    lines += [
        *open_table("classes", "Accuracy by class"),
        "<thead><tr><th scope=col>class</th><th scope=col class=number>accuracy, %</th>"
        "<th scope=col class=number>right of</th></tr></thead><tbody>",
    ]
    for row in ordered[:LISTED]:
        lines.append(
            f"<tr><th scope=row>{escape(row.name)}</th>"
            f'<td class="number bar" '
            f'style="background-size:{row.percent:.1f}% 100%">{row.percent:.1f}</td>'
            f"<td class=number>{row.right} of {row.images}</td></tr>"
        )
    lines.append("</tbody></table></div>")
    if len(ordered) > LISTED:
        lines.append(f"<p class=quiet>The worst {LISTED} of {len(ordered)} classes.</p>")
    return lines + (["</details>"] if folded else [])


def seen_words(counts: Sequence[int], names: Sequence[str]) -> str:
    """18 of 24 classes seen in 240 synthetic images; the most, 50, are taken for G"""
    total, seen = sum(counts), sum(n > 0 for n in counts)
    words = f"{seen} of {len(counts)} class{'' if len(counts) == 1 else 'es'}"
    if not total:
        return words + " seen"
    likeliest = max(range(len(counts)), key=lambda i: counts[i])
    return (
        f"{words} seen in {times(total, 'synthetic image')}; the most, {counts[likeliest]}, "
        f"are taken for {name_of(likeliest, names)}"
    )


def name_of(number: int, names: Sequence[str]) -> str:
    return names[number] if number < len(names) else f"class {number}"


def histogram(counts: Sequence[int], names: Sequence[str], highest: int) -> str:
    """A bar a class, on a scale that all steps of a run share; a dashed line where all would be if
    each class came equally often."""
    width = (WIDTH - LEFT - 4) / len(counts)
    bottom = TOP + HEIGHT
    highest = max(1, highest)
    bars = "".join(
        f"M{LEFT + i * width + 0.1 * width:.1f} {bottom:.0f}v{-HEIGHT * n / highest:.1f}"
        f"h{0.8 * width:.2f}V{bottom:.0f}z"
        for i, n in enumerate(counts)
        if n
    )
    even = bottom - HEIGHT * sum(counts) / len(counts) / highest
    parts = [
        f'<text x="{LEFT - 5:.0f}" y="{TOP + 4:.0f}" text-anchor="end">{highest}</text>',
        f'<text x="{LEFT - 5:.0f}" y="{bottom + 3:.0f}" text-anchor="end">0</text>',
        f'<path fill="var(--line1)" d="{bars}"/>' if bars else "",
        f'<path class=level d="M{LEFT:.0f} {even:.1f}H{WIDTH - 4:.0f}"/>',
        f'<path class=axis d="M{LEFT:.0f} {bottom:.0f}H{WIDTH - 4:.0f}"/>',
    ]
    if len(counts) <= NAMED and len(names) == len(counts):
        room = max(1, int(width / 5.2))
        for i, name in enumerate(names):
            short = name if len(name) <= room else name[: max(1, room - 1)] + "…" * (room > 1)
            parts.append(
                f'<text x="{LEFT + (i + 0.5) * width:.1f}" y="{bottom + 13:.0f}" '
                f'text-anchor="middle">{escape(short)}</text>'
            )
    else:
        for i in (0, len(counts) - 1):
            anchor = "start" if i == 0 else "end"
            x = LEFT if i == 0 else WIDTH - 4
            parts.append(f'<text x="{x:.1f}" y="{bottom + 13:.0f}" text-anchor="{anchor}">'
                         f"{'class ' * (i == 0)}{i}</text>")  # fmt: skip
    box = f"0 0 {WIDTH:.0f} {bottom + 20:.0f}"
    return f'<svg class=chart viewBox="{box}">{"".join(parts)}</svg>'
