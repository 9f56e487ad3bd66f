"""A report as one page that needs nothing else: what a sweep came to, and each of its runs.

Whatever a file says goes through `escape`: it is text, never markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from mosaickd.errors import printable
from mosaickd.report.markup import escape, figure, open_table
from mosaickd.report.pictures import Budget
from mosaickd.report.plots import Panel, draw_panel, draw_scatter, panels
from mosaickd.report.run_files import Entry, signature
from mosaickd.report.run_page import ALONE, FOLDED, RunPage
from mosaickd.report.table import Cell, PlainRow, Report
from mosaickd.report.terminal import mean_of
from mosaickd.report.words import EVALUATIONS, percent, plain, short, shown, signed, times

#: Nothing is loaded, and nothing runs but the one script that the page has, also if something
#: should slip through. {hash}: of that script.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{hash}'; "
    "base-uri 'none'; form-action 'none'"
)
#: Of a page that a server keeps up to date.
LIVE_POLICY = f"{POLICY}; connect-src 'self'"
#: Characters of all runs' sections together, and of their pictures among these.
LARGEST, PICTURES = 20_000_000, 14_000_000

#: What was drawn before, for a page that is built again: a key, and what was made of what.
Drawn = dict[object, tuple[object, list[str]]]


def page(
    report: Report,
    found: Sequence[Entry],
    folders: Sequence[Path],
    *,
    version: str | None = None,
    drawn: Drawn | None = None,
) -> str:
    """found: the runs below the folders. version: of a page that a server keeps up to date."""
    drawn = {} if drawn is None else drawn
    if len(found) == 1:
        title, sections = _alone(report, found[0], drawn)
    else:
        title, sections = _several(report, found, folders, drawn)
    live = f' data-version="{version}"' if version else ""
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"{live}>',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy(live=bool(version))}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{escape(title)}: MosaicKD report</title>",
            f"<style>\n{asset('page.css')}</style>",
            "</head>",
            "<body>",
            '<p id="live" role="status" hidden></p>',
            "<main>",
            *sections,
            "</main>",
            f"<script>{asset('page.js')}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


@cache
def asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def policy(*, live: bool = False) -> str:
    digest = base64.b64encode(hashlib.sha256(asset("page.js").encode()).digest()).decode()
    return (LIVE_POLICY if live else POLICY).replace("{hash}", digest)


# ------------------------------------------------------------------------------------------- runs


def _alone(report: Report, entry: Entry, drawn: Drawn) -> tuple[str, list[str]]:
    """A page of one run."""
    run = RunPage(entry, ALONE, 2, "run", Budget(PICTURES))
    sections = [
        f"<header><h1>{escape(run.title)}</h1>",
        f"<p class=quiet>{escape(shown(entry.folder))}</p></header>",
        *run.lines(),
        *_paper(report),
        *_remarks(report),
    ]
    return run.title, sections


def _several(
    report: Report, found: Sequence[Entry], folders: Sequence[Path], drawn: Drawn
) -> tuple[str, list[str]]:
    """A page of a sweep: what it came to, then each run."""
    title = ", ".join(printable(folder.resolve().name) for folder in folders)
    counted = f"Top-1 accuracy on test images, in percent, of {times(len(report.runs), 'run')} "
    counted += f"that finished, at {EVALUATIONS[report.evaluation]}."
    if not report.runs:
        counted = "No run has finished yet." if found else "There is no run here yet."
    results = [(str(run.folder), signature(run.folder)) for run in report.runs]
    sections = [
        f"<header><h1>{escape(title)}</h1>",
        f"<p class=quiet>{escape(counted)}</p></header>",
        *_paper(report),
        *_plain(report),
        *_kept(drawn, "curves", (report.evaluation, *results), lambda: _curves(report)),
        *_unfinished(report),
        *_runs(found, drawn),
        *_remarks(report),
        *_environment(report),
    ]
    return title, sections


def _kept(drawn: Drawn, key: object, of: object, make: Callable[[], list[str]]) -> list[str]:
    """What `make` makes; the same as last time where what it is made of is the same."""
    if key not in drawn or drawn[key][0] != of:
        drawn[key] = (of, make())
    return drawn[key][1]


def _runs(found: Sequence[Entry], drawn: Drawn) -> list[str]:
    """Each run folded, as long as the page has room for it."""
    if not found:
        return []
    lines = ["<h2 id=runs>Each run</h2>"]
    left, too_many = LARGEST, []
    for i, entry in enumerate(found):
        room = Budget(PICTURES // len(found))

        def made(entry: Entry = entry, room: Budget = room, name: str = f"run{i}") -> list[str]:
            return _folded(entry, room, name)

        about = (i, len(found), signature(entry.folder), entry.run and entry.run.status)
        section = _kept(drawn, entry.folder, about, made)
        left -= sum(map(len, section))
        if left < 0:
            too_many.append(entry)
        else:
            lines += section
    if too_many:
        lines.append(
            f"<p>This page has no room for {times(len(too_many), 'other run')}; "
            "<code>python -m mosaickd.report FOLDER --html</code> shows one:</p><ul>"
        )
        lines += [f"<li>{escape(shown(entry.folder))}</li>" for entry in too_many]
        lines.append("</ul>")
    return lines


def _folded(entry: Entry, room: Budget, name: str) -> list[str]:
    run = RunPage(entry, FOLDED, 4, name, room)
    return [
        f'<details class=run data-key="{name}"><summary><h3>{escape(run.title)}</h3>'
        f"<span class=small>{escape(run.summary())}</span>"
        f'<span class="small path">{escape(shown(entry.folder))}</span></summary>',
        *run.lines(),
        "</details>",
    ]


# ----------------------------------------------------------------------------------------- tables


def _paper(report: Report) -> list[str]:
    if not report.rows:
        return []
    columns = [pair.replace("-", "<br>") for pair in report.pairs]
    columns += ["average"] if report.with_average else []
    lines = [
        "<h2>Table 1 of the paper, and here</h2>",
        "<p>CIFAR-100, teacher above student. In each cell: ours (mean ± standard deviation over "
        "seeds), below it the paper's number and ours − paper. A cell without a run is empty.</p>",
        *open_table("paper", "Table 1 of the paper, and here"),
        "<thead><tr><th></th>",
        *(f'<th scope=col class="number">{column}</th>' for column in columns),
        "</tr></thead>",
    ]
    for data, rows in report.blocks():
        head = f"<th colspan={len(columns) + 1} scope=rowgroup><span>{escape(data)}</span></th>"
        lines += ["<tbody>", f"<tr class=data>{head}</tr>"]
        for row in rows:
            cells = [row.cells[pair] for pair in report.pairs]
            cells += [row.average] if report.with_average else []
            numbers = "".join(f'<td class="number">{_cell(cell)}</td>' for cell in cells)
            lines.append(f"<tr><th scope=row>{escape(short(row.method))}</th>{numbers}</tr>")
        lines.append("</tbody>")
    lines.append("</table></div>")
    if scatter := draw_scatter(report, "scatter"):
        count = sum(cell.difference is not None for cell in _shown(report))
        caption = (
            "Each point is a cell of the table, its bar the standard deviation over seeds. "
            "On the dashed diagonal, ours is the paper's number."
        )
        alt = f"Scatter plot of {times(count, 'cell')}: our accuracy against the paper's."
        lines += ["<h2>Ours against the paper</h2>", figure(scatter, "", caption, alt, "scatter")]
    return lines


def _shown(report: Report) -> Iterable[Cell]:
    return (row.cells[pair] for row in report.rows for pair in report.pairs)


def _cell(cell: Cell) -> str:
    paper = f"paper {plain(cell.paper)}"
    if cell.mean is None:
        return f"<span class=small>{paper}</span>"
    spread = f" ± {cell.sd:.2f}" if cell.sd is not None else ""
    seeds = f"<span class=small>{times(cell.n, 'seed')}</span>" if cell.sd is not None else ""
    way = "up" if round(cell.difference or 0, 2) > 0 else "down"
    difference = signed(cell.difference)
    if difference.startswith(("+", "−")):
        difference = f"<span class={way}>{difference}</span>"
    ours = f"<span class=ours>{plain(cell.mean)}</span>{spread}{seeds}"
    return f"{ours}<span class=small>{paper} {difference}</span>"


def _plain(report: Report) -> list[str]:
    if not report.plain:
        return []
    letters = report.variants()
    seeds = sorted({seed for row in report.plain for seed in row.by_seed})
    title = "Other settings" if report.rows else "Runs"
    lines = [f"<h2>{title}</h2>"]
    if report.rows:
        lines.append(
            "<p>Not comparable with the paper's table: other images or models, or other settings "
            "than the method's recipe.</p>"
        )
    wide = len(seeds) <= 10
    lines += open_table("plain", title)
    lines.append("<thead><tr>")
    texts = ["how it learned", "tested on", *(["settings"] if letters else [])]
    by_seed = [f"seed {seed}" for seed in seeds] if wide else ["seeds"]
    lines.append("<th scope=col>model</th>")  # its number beside it: a phone shows two columns
    lines += [f'<th scope=col class="number">{name}</th>' for name in ("mean", "n")]
    lines += [f"<th scope=col>{name}</th>" for name in texts]
    lines += [f'<th scope=col class="number">{name}</th>' for name in by_seed]
    lines.append("</tr></thead><tbody>")
    for row in report.plain:
        mean = f"<span class=ours>{mean_of(row.cell, count=False)}</span>"
        texts = [row.how, row.dataset]
        texts += [letters.get(row.variant or "", "")] if letters else []
        lines += [
            f"<tr><th scope=row>{escape(row.model)}</th>",
            *(f'<td class="number">{number}</td>' for number in (mean, row.cell.n)),
            *(f"<td>{escape(text)}</td>" for text in texts),
            *(f'<td class="number">{number}</td>' for number in _seeds(row, seeds, wide)),
            "</tr>",
        ]
    lines.append("</tbody></table></div>")
    if letters:
        meanings = (f"<dt>{k}</dt><dd>{escape(text)}</dd>" for text, k in letters.items())
        lines += ["<p class=quiet>Settings that differ from the method's recipe:</p>"]
        lines.append(f"<dl>{''.join(meanings)}</dl>")
    return lines


def _seeds(row: PlainRow, seeds: Sequence[int], wide: bool) -> list[str]:
    if wide:
        return [percent(row.by_seed[s]) if s in row.by_seed else "" for s in seeds]
    return ["<br>".join(f"{s}: {percent(value)}" for s, value in sorted(row.by_seed.items()))]


def _unfinished(report: Report) -> list[str]:
    if not report.unfinished:
        return []
    lines = [
        "<h2>Not finished</h2>",
        "<p>These runs are counted nowhere above.</p>",
        *open_table("runs", "Runs that have not finished"),
        "<thead><tr><th scope=col>run</th><th scope=col>status</th>"
        '<th scope=col class="number">step</th><th scope=col>error</th></tr></thead><tbody>',
    ]
    for run in report.unfinished:
        lines.append(
            f'<tr><td class="path">{escape(run.folder)}</td><td>{escape(run.status)}</td>'
            f'<td class="number">{run.steps}</td>'
            f'<td class="path">{escape(run.error or "")}</td></tr>'
        )
    return [*lines, "</tbody></table></div>"]


# ------------------------------------------------------------------------------ plots and the rest


def _curves(report: Report) -> list[str]:
    drawn = panels(report)
    if not drawn:
        return []
    lines = [
        "<h2>Accuracy over training</h2>",
        "<p>Every run ends at 100 %, however many steps it has. Lines are means over seeds, bands "
        "reach from the lowest to the highest seed; the steep beginning may lie below the axis.",
        "Diamonds are the paper's numbers.</p>" if report.rows else "</p>",
        "<div class=figures>",
    ]
    for i, panel in enumerate(drawn):
        caption = ""
        if panel.best_of > len(panel.lines):
            caption = f"The best {len(panel.lines)} of {panel.best_of}."
        lines.append(figure(draw_panel(panel, f"p{i}"), panel.title, caption, _alt(panel)))
    return [*lines, "</div>"]


def _alt(panel: Panel) -> str:
    ends = ", ".join(f"{line.label} {line.last:.1f} %" for line in panel.lines)
    return f"Accuracy over training, {panel.title}. At the end: {ends}."


def _remarks(report: Report) -> list[str]:
    lines = []
    if report.problems:
        lines.append("<h2>Files that can't be read</h2><ul>")
        for path, problem in report.problems:
            lines.append(f"<li>{escape(path)}: {escape(problem)}</li>")
        lines.append("</ul>")
    if report.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
        lines.append(f"<h2>Notes</h2><ul>{notes}</ul>")
    return lines


def _environment(report: Report) -> list[str]:
    devices = Counter(run.device or "unknown" for run in report.runs)
    versions = Counter(
        ", ".join(f"{package} {version}" for package, version in run.versions) or "not recorded"
        for run in report.runs
    )
    if not report.runs:
        return []
    lines = ["<h2>Where it was measured</h2>"]
    for title, counted in (("Devices", devices), ("Versions", versions)):
        # Most runs first; the text settles what stands in which order where as many have either.
        ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        items = "".join(f"<li>{escape(text)} ({times(n, 'run')})</li>" for text, n in ordered)
        lines.append(f"<p>{title}</p><ul>{items}</ul>")
    return lines
