"""python -m mosaickd.report FOLDER [FOLDER ...] [--best] [--all] [--format md] [--html FILE]"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mosaickd.errors import UserError
from mosaickd.report.formats import FORMATS
from mosaickd.report.results import collect
from mosaickd.report.table import Report, build
from mosaickd.report.terminal import remarks, show_report, unfinished_lines


def main(argv: Sequence[str] | None = None) -> None:
    """Print, and exit with 1 and a message where there is nothing to print."""
    parser = argparse.ArgumentParser(
        prog="python -m mosaickd.report",
        description="What the runs below some folders came to; where they measure cells of the "
        "paper's Table 1, its numbers beside ours.",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument(
        "--best", action="store_true", help="each run's best evaluation, not its last"
    )
    parser.add_argument(
        "--all", action="store_true", help="also cells of the paper's table without a run"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="print this instead of a terminal's table"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page with tables and plots"
    )
    arguments = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # a ± must not end a report in a terminal without one
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        _report(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`; nobody reads the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")


def _report(arguments: argparse.Namespace) -> None:
    folders: list[Path] = arguments.folders
    found = collect(folders)
    report = build(found, evaluation="best" if arguments.best else "last", everything=arguments.all)
    if not found.runs:
        _to_stderr([line for line in remarks(report) if not line.startswith("note:")])
        _to_stderr(unfinished_lines(report))
        what = "no result.json that can be read" if found.problems else "no result.json"
        raise UserError(f"{what} below {', '.join(map(str, folders))}")
    if arguments.format:
        sys.stdout.write(FORMATS[arguments.format](report))
        _to_stderr([*unfinished_lines(report), *remarks(report)])
    else:
        show_report(report, _title(report, folders))
    if arguments.html:
        from mosaickd.report.page import page  # draws with matplotlib, which takes a second

        arguments.html.parent.mkdir(parents=True, exist_ok=True)
        arguments.html.write_text(page(report, folders), encoding="utf-8")
        print(f"page: {arguments.html}", file=sys.stderr if arguments.format else sys.stdout)


def _title(report: Report, folders: list[Path]) -> str:
    """Of the table of those runs that the paper has no cell for."""
    names = ", ".join(folder.resolve().name for folder in folders)
    step = "last step" if report.evaluation == "last" else "best step, picked on test images"
    return f"{'other settings' if report.rows else names}: top-1 accuracy at the {step}"


def _to_stderr(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
