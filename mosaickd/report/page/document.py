"""A report as one page that needs nothing else: what a sweep came to, and each of its runs.

Whatever a file says goes through `escape`: it is text, never markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from mosaickd.errors import printable
from mosaickd.report.labels import EVALUATIONS, shown, times
from mosaickd.report.page import sweep_page
from mosaickd.report.page.markup import escape
from mosaickd.report.page.pictures import Budget
from mosaickd.report.page.run_page import ALONE, FOLDED, RunPage
from mosaickd.report.run_files import Entry, signature
from mosaickd.report.table import Report

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
            '<p id="live" hidden></p>',
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
        *sweep_page.paper_section(report),
        *sweep_page.remarks_section(report),
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
        *sweep_page.paper_section(report),
        *sweep_page.plain_section(report),
        *_kept(
            drawn,
            "curves",
            (report.evaluation, *results),
            lambda: sweep_page.curves_section(report),
        ),
        *sweep_page.unfinished_section(report),
        *_runs(found, drawn),
        *sweep_page.remarks_section(report),
        *sweep_page.environment_section(report),
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
