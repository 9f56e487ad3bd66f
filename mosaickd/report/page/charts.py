"""A run's curves as small SVGs. They are drawn by hand: a page has ten of them a run and is built
again every few seconds while one goes on, which matplotlib is too slow and too wordy for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mosaickd.report.page.markup import escape
from mosaickd.report.page.series import Points, spans_decades, thinned
from mosaickd.report.plots import LINES, spread

#: In units of the SVG, which a page scales to the width that it has.
WIDTH, LEFT, RIGHT, TOP = 340.0, 46.0, 10.0, 8.0
ROW, BETWEEN, ALONE, AXIS = 50.0, 20.0, 150.0, 30.0
LETTER = 5.6  # about, of a label
#: Characters of a label.
LABEL = 22
DASHES = ("", "6 2", "2 2", "7 2 2 2")


@dataclass(frozen=True)
class Series:
    """A named curve. colour: a number of the style sheet's lines."""

    label: str
    points: Points
    unit: str = ""
    colour: int = 0

    @property
    def last(self) -> float:
        return self.points[-1][1]

    def words(self) -> str:
        """What the curve shows, for whoever doesn't see it."""
        (first, began), (step, last) = self.points[0], self.points[-1]
        if len(self.points) == 1:
            return f"{self.label} {amount(last, self.unit)} at step {step}"
        values = [value for _, value in self.points]
        low, high = amount(min(values), self.unit), amount(max(values), self.unit)
        return (
            f"{self.label} from {amount(began, self.unit)} at step {first} to "
            f"{amount(last, self.unit)} at step {step}, between {low} and {high}"
        )


def told(curves: Sequence[Series]) -> str:
    return "; ".join(curve.words() for curve in curves) + "."


class Scale:
    """Where values lie between two edges of a plot, and which of them the axis names."""

    def __init__(
        self, values: Sequence[float], start: float, stop: float, count: int, *, log: bool = False
    ) -> None:
        self.log, self.start, self.stop = log, start, stop
        low, high = min(values), max(values)
        if not log:
            margin = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-9)
            low, high = low - margin, high + margin
        self.low, self.high = (math.log10(low), math.log10(high)) if log else (low, high)
        self.ticks = decades(self.low, self.high) if log else ticks(low, high, count)

    def __call__(self, value: float) -> float:
        share = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


def ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    """About `count` round numbers between two, and how each is written."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(k * power for k in (1, 2, 2.5, 5, 10) if k * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (step / power == 2.5))
    if decimals > 4 or max(abs(low), abs(high)) >= 1e6:
        return [(i * step, figures(i * step)) for i in range(first, last + 1)]
    return [
        (i * step, f"{i * step:,.{decimals}f}".replace("-", "−")) for i in range(first, last + 1)
    ]


def decades(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten, four at most."""
    first, last = math.ceil(low), math.floor(high)
    every = max(1, math.ceil((last - first + 1) / 4))
    return [(10.0**i, figures(10.0**i)) for i in range(first, last + 1, every)]


def figures(value: float) -> str:
    """A number in three figures."""
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}".replace("-", "−")
    digits, _, power = f"{value:.3g}".partition("e")
    return (f"{digits}e{int(power)}" if power else digits).replace("-", "−")


def amount(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.2f} %"
    return f"{figures(value)} {unit}".rstrip()


# ---------------------------------------------------------------------------------------- pictures


def draw_rows(curves: Sequence[Series], last_step: int, most: int) -> str:
    """One below the other, each with a scale of its own: losses of different sizes can be read."""
    body, y = [], TOP
    for curve in curves:
        points = thinned(curve.points, most)
        log = spans_decades(points)
        y += BETWEEN - 4
        scale = Scale([value for _, value in points], y + ROW, y + 4, 3, log=log)
        name = cut(curve.label, 40) + (" (log)" if log else "")
        body += [
            f'<text class=ink x="{LEFT:.0f}" y="{y - 4:.1f}">{escape(name)}</text>',
            f'<text class=ink x="{WIDTH - RIGHT:.0f}" y="{y - 4:.1f}" text-anchor="end">'
            f"{amount(curve.last, curve.unit)}</text>",
            *axis(scale, WIDTH - RIGHT),
            line(points, scale, last_step, curve.colour, WIDTH - RIGHT),
        ]
        y += ROW + 4
    return chart(body, y, last_step, WIDTH - RIGHT)


def draw_together(
    curves: Sequence[Series],
    last_step: int,
    most: int,
    *,
    level: tuple[str, float] | None = None,
) -> str:
    """On one scale, named at their right ends. level: a line across, such as the teacher's."""
    curves = sorted(curves, key=lambda curve: -abs(curve.last))[:LINES]
    labels = [cut(curve.label) for curve in curves] + ([level[0]] if level else [])
    stop = WIDTH - 14 - LETTER * max(map(len, labels))
    values = [value for curve in curves for _, value in curve.points] + (
        [level[1]] if level else []
    )
    bottom = TOP + ALONE
    scale = Scale(values, bottom, TOP, 4)
    body = axis(scale, stop)
    ends = []
    for curve in curves:
        body.append(
            line(thinned(curve.points, most), scale, last_step, curve.colour, stop, curve.colour)
        )
        ends.append((scale(curve.last), cut(curve.label), f"var(--line{curve.colour})"))
    if level:
        y = scale(level[1])
        body.append(f'<path class=level d="M{LEFT:.0f} {y:.1f}H{stop:.1f}"/>')
        ends.append((y, level[0], "var(--muted)"))
    ends.sort()
    places = spread([(y - TOP) / ALONE for y, _, _ in ends], 12 / ALONE)
    for (y, label, colour), place in zip(ends, places, strict=True):
        at = TOP + place * ALONE
        lead = f"M{stop + 2:.1f} {y:.1f}L{stop + 8:.1f} {at:.1f}"
        body.append(
            f'<path class=leader stroke="{colour}" d="{lead}"/>'
            f'<text fill="{colour}" x="{stop + 10:.1f}" y="{at + 3.5:.1f}">{escape(label)}</text>'
        )
    return chart(body, bottom, last_step, stop)


def cut(label: str, most: int = LABEL) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def axis(scale: Scale, stop: float) -> list[str]:
    """Lines across the plot at round values, and these."""
    return [
        f'<path class=rule d="M{LEFT:.0f} {scale(value):.1f}H{stop:.1f}"/>'
        f'<text x="{LEFT - 5:.0f}" y="{scale(value) + 3.5:.1f}" text-anchor="end">{words}</text>'
        for value, words in scale.ticks
    ]


def line(
    points: Points, scale: Scale, last_step: int, colour: int, stop: float, number: int = 0
) -> str:
    across = (stop - LEFT) / last_step
    places = [f"{LEFT + step * across:.1f} {scale(value):.1f}" for step, value in points]
    paint = f"var(--line{colour % LINES})"
    if len(points) == 1:
        x, y = places[0].split()
        return f'<circle cx="{x}" cy="{y}" r="2.5" fill="{paint}"/>'
    dash = DASHES[number // 2 % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class=line stroke="{paint}"{dashed} d="M{"L".join(places)}"/>'


def chart(body: Sequence[str], bottom: float, last_step: int, stop: float) -> str:
    """All of it, above an axis of steps. data-plot: where these lie, for the slider's mark."""
    across = (stop - LEFT) / last_step
    named = [(value, f"{round(value):,}") for value, _ in ticks(0, last_step, 4)
             if value == round(value)]  # fmt: skip
    lines = [
        f'<text x="{LEFT + value * across:.1f}" y="{bottom + 13:.1f}" text-anchor="middle">{words}'
        "</text>"
        for value, words in named
    ]
    height = bottom + AXIS
    return (
        f'<svg class=chart viewBox="0 0 {WIDTH:.0f} {height:.0f}" '
        f'data-plot="{LEFT:.0f} {stop:.1f} {TOP:.0f} {bottom:.1f} {last_step}">'
        f"{''.join(body)}"
        f'<path class=axis d="M{LEFT:.0f} {bottom:.1f}H{stop:.1f}"/>{"".join(lines)}'
        f'<text x="{(LEFT + stop) / 2:.0f}" y="{bottom + 25:.1f}" text-anchor="middle">step</text>'
        "</svg>"
    )
