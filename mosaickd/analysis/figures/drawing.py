"""How figures look, and what is written of each: a PNG, a PDF, and the numbers that it shows."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mosaickd.utils.files import write_atomically, write_json

COLUMN = 3.25  # inches: a column of a two-column paper
DPI = 300  # of the PNG
INK, MUTED, GRID = "#1c2330", "#5d6675", "#e3e6ec"
#: Distinguishable with every kind of colour vision, in print and beside each other.
COLOURS = ("#c2410c", "#1d63b8", "#12784f", "#8250b8", "#946200", "#0b7583", "#b83280", "#5d6675")
MARKERS = "osD^vPX*"
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
#: To draw and to write in: matplotlib.rc_context(STYLE).
STYLE: Any = {
    "font.size": 7.5, "axes.titlesize": 8, "axes.labelsize": 7.5, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.linewidth": 0.6, "lines.linewidth": 1.3,
    "text.color": INK, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "xtick.color": MUTED,
    "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": GRID,
    "grid.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "legend.frameon": False, "text.parse_math": False,
    "pdf.fonttype": 42,  # text stays text: journals ask for it
    "figure.constrained_layout.use": True,
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure, and the numbers that it shows, as JSON can hold them."""

    figure: Figure
    numbers: dict[str, Any]


def draw_legend(axes: Any, figure: Figure) -> None:
    """Draw a legend below a plot, in two columns where it fits, and make `figure` higher by it."""
    handles, names = axes.get_legend_handles_labels()
    names = ["\n".join(textwrap.wrap(name, 52)) for name in names]
    columns = 2 if max(map(len, names)) <= 25 else 1
    lines = sum(name.count("\n") + 1 for name in names)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.14 * (-(-lines // columns) + 1))
    axes.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns,
                handlelength=1.8)  # fmt: skip


def hide_frame(axes: Any) -> None:
    """Remove the ticks and the frame around a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def write_drawing(drawing: Drawing, folder: Path, name: str) -> list[Path]:
    """Write `folder`/`name`.png, .pdf and .json, each atomically; return their paths."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "pdf", "json")]
    for path, metadata in zip(paths, ({"Software": None}, {"CreationDate": None}), strict=False):
        buffer = io.BytesIO()
        drawing.figure.savefig(buffer, format=path.suffix[1:], dpi=DPI, metadata=metadata)
        write_bytes(path, buffer.getvalue())
    write_json(paths[-1], drawing.numbers)
    return paths


def write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
