"""How figures look, and what is written of each: a PNG, a PDF, and the numbers that it shows."""

from __future__ import annotations

import io
import json
import textwrap
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mosaickd.files import write_atomically, write_json

COLUMN = 3.25  # inches: a column of a two-column paper
DOTS = 300  # an inch, of the PNG
INK, MUTED, GRID = "#1c2330", "#5d6675", "#e3e6ec"
#: Distinguishable with every kind of colour vision, in print and beside each other; as on the page.
COLOURS = ("#c2410c", "#1d63b8", "#12784f", "#8250b8", "#946200", "#0b7583", "#b83280", "#5d6675")
MARKERS = "osD^vPX*"
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


@dataclass
class Drawing:
    """A figure and what stands behind it. numbers: as JSON can hold them; notes: for the reader."""

    figure: Any
    numbers: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def styled() -> AbstractContextManager[None]:
    """Inside, figures look as they should."""
    from matplotlib import rc_context

    return rc_context(STYLE)


def new_figure(height: float, width: float = COLUMN) -> Any:
    """An empty one; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def legend(axes: Any, figure: Any) -> None:
    """Below a plot, two names in a row where they fit; `figure` grows by as much as they need."""
    handles, names = axes.get_legend_handles_labels()
    names = ["\n".join(textwrap.wrap(name, 52)) for name in names]
    columns = 2 if max(map(len, names)) <= 25 else 1
    lines = sum(name.count("\n") + 1 for name in names)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.14 * (-(-lines // columns) + 1))
    axes.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns,
                handlelength=1.8)  # fmt: skip


def write_bytes(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    write_atomically(path, lambda file: file.write(content))


def write(drawing: Drawing, folder: Path, name: str) -> list[Path]:
    """`folder`/`name`.png, .pdf and .json, each whole or not at all. -> their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        content = io.BytesIO()
        with styled():
            drawing.figure.savefig(content, format=kind, dpi=DOTS, metadata=metadata)
        paths.append(folder / f"{name}.{kind}")
        write_bytes(paths[-1], content.getvalue())
    path = folder / f"{name}.json"
    write_json(path, json.loads(json.dumps(drawing.numbers, allow_nan=False)))
    return [*paths, path]
