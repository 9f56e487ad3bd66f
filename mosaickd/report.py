"""python -m mosaickd.report FOLDER [FOLDER ...] [--best] [--all] [--format md] [--html [FILE]]
[--serve PORT]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mosaickd.cli import main_guard
from mosaickd.errors import UserError

FORMATS = ("md", "csv", "latex", "json")
PAGES = (".html", ".htm")


def main(argv: Sequence[str] | None = None) -> None:
    """Print, and exit with 1 and a message where there is nothing to print."""
    parser = argparse.ArgumentParser(
        prog="python -m mosaickd.report",
        description="What the runs below some folders came to; where they measure cells of the "
        "paper's Table 1, its numbers beside ours.",
    )
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER")
    parser.add_argument(
        "--best", action="store_true", help="each run's best evaluation, not its last"
    )
    parser.add_argument(
        "--all", action="store_true", help="also cells of the paper's table without a run"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="print this instead of a terminal's table"
    )
    page = parser.add_mutually_exclusive_group()
    page.add_argument(
        "--html",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="FILE",
        help="also write a page with tables, curves and pictures, here or into the first folder",
    )
    page.add_argument(
        "--serve",
        type=_port,
        metavar="PORT",
        help="show that page at http://127.0.0.1:PORT, up to date while runs go on",
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.html not in (None, Path()) and arguments.html.suffix.lower() not in PAGES:
        arguments.folders.append(arguments.html)  # --html FOLDER
        arguments.html = Path()
    if not arguments.folders:
        parser.error("name a FOLDER with runs")
    if arguments.serve is not None and arguments.format:
        parser.error("--serve shows a page; --format is for what is printed")
    with main_guard():
        _report(arguments)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def _report(arguments: argparse.Namespace) -> None:
    # pandas and Altair take a second, which `--help` need not wait for
    from mosaickd.analysis.formats import FORMATTERS
    from mosaickd.analysis.runs import load_runs
    from mosaickd.analysis.table import build_report
    from mosaickd.analysis.terminal import remarks, show_report, unfinished_lines

    folders: list[Path] = arguments.folders
    evaluation = "best" if arguments.best else "last"
    if arguments.serve is not None:
        from mosaickd.analysis.serve import serve

        serve(folders, arguments.serve, evaluation, arguments.all)
        return
    runs = load_runs(folders)
    if not runs:
        raise UserError(f"no run below {', '.join(map(str, folders))}")
    report = build_report(runs, evaluation, arguments.all)
    if arguments.format:
        sys.stdout.write(FORMATTERS[arguments.format](report))
        print(*unfinished_lines(report), *remarks(report), sep="\n", file=sys.stderr)
    else:
        show_report(report, _title(report.columns, evaluation, folders))
    if arguments.html is not None:
        from mosaickd.analysis.page import render_page
        from mosaickd.utils.files import write_atomically

        path = folders[0] / "report.html" if arguments.html == Path() else arguments.html
        html = render_page(report, folders).encode()
        write_atomically(path, lambda file: file.write(html))
        print(f"page: {path}", file=sys.stderr if arguments.format else sys.stdout)


def _title(columns: list[str], evaluation: str, folders: list[Path]) -> str:
    """Return the title of the table of those runs that the paper has no cell for."""
    names = ", ".join(folder.resolve().name for folder in folders)
    step = "last step" if evaluation == "last" else "best step, picked on test images"
    return f"{'other settings' if columns else names}: top-1 accuracy at the {step}"


if __name__ == "__main__":
    main()
