"""What a sweep came to, for its page: the paper's table beside ours, other runs, plots, remarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from mosaickd.report.labels import percent, plain, short, signed, times
from mosaickd.report.page.markup import escape, figure, open_table
from mosaickd.report.plots import Panel, draw_panel, draw_scatter, panels
from mosaickd.report.table import Cell, PlainRow, Report
from mosaickd.report.terminal import mean_of

# ----------------------------------------------------------------------------------------- tables


def paper_section(report: Report) -> list[str]:
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


def plain_section(report: Report) -> list[str]:
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


def unfinished_section(report: Report) -> list[str]:
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


def curves_section(report: Report) -> list[str]:
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


def remarks_section(report: Report) -> list[str]:
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


def environment_section(report: Report) -> list[str]:
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
