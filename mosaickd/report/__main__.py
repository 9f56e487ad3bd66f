"""python -m mosaickd.report FOLDER [FOLDER ...] [--best] [--all] [--format md] [--html [FILE]]
[--serve PORT]"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mosaickd.errors import UserError
from mosaickd.programs import ending
from mosaickd.report.finding import about_links
from mosaickd.report.formats import FORMATS
from mosaickd.report.results import collect
from mosaickd.report.run_files import entries
from mosaickd.report.table import Report, build
from mosaickd.report.terminal import remarks, show_report, unfinished_lines

#: What a page is called: anything else behind --html is a mistake, not a file to write over.
PAGES = (".html", ".htm")


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
    page = parser.add_mutually_exclusive_group()
    page.add_argument(
        "--html",
        nargs="?",
        const="",
        metavar="FILE",
        help="also write a page with tables, curves and pictures, here or into the first folder",
    )
    page.add_argument(
        "--serve", type=_port, metavar="PORT",
        help="show that page at http://127.0.0.1:PORT, up to date while runs go on",
    )  # fmt: skip
    arguments = parser.parse_intermixed_args(_with_folders(sys.argv[1:] if argv is None else argv))
    if arguments.serve is not None and arguments.format:
        parser.error("--serve shows a page; --format is for what is printed")
    with ending():
        _report(arguments)


def _with_folders(argv: Sequence[str]) -> list[str]:
    """`--html FOLDER`: that is what to report on, not the file to write."""
    words = list(argv)
    for i, word in enumerate(words):
        last = i + 1 == len(words)
        if word == "--html" and not last and not _names_a_file(words[i + 1], words):
            words[i] = "--html="
    return words


def _names_a_file(word: str, words: Sequence[str]) -> bool:
    """Whether what stands behind --html can be a page; what doesn't look like one is a folder if
    there is no other."""
    if Path(word).is_dir():
        return False
    others = [w for w in words if w != word and not w.startswith("-")]
    return Path(word).suffix.lower() in PAGES or any(Path(w).is_dir() for w in others)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:6]) < 2**16):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def _report(arguments: argparse.Namespace) -> None:
    folders: list[Path] = arguments.folders
    evaluation = "best" if arguments.best else "last"
    if arguments.serve is not None:
        from mosaickd.report.page.serve import serve

        serve(folders, arguments.serve, evaluation=evaluation, everything=arguments.all)
        return
    found = collect(folders)
    report = build(found, evaluation=evaluation, everything=arguments.all)
    with_page = arguments.html is not None
    if arguments.html:
        _check_page(Path(arguments.html))
    runs = entries(found, folders) if with_page else []
    if not found.runs and not runs:
        _to_stderr([line for line in remarks(report) if not line.startswith("note:")])
        _to_stderr(unfinished_lines(report))
        _to_stderr([f"note: {about_links(found.links)}"] if found.links else [])
        what = "no result.json that can be read" if found.problems else "no result.json"
        raise UserError(f"{what} below {', '.join(map(str, folders))}")
    if arguments.format:
        sys.stdout.write(FORMATS[arguments.format](report))
        _to_stderr([*unfinished_lines(report), *remarks(report)])
    else:
        show_report(report, _title(report, folders))
    if with_page:
        from mosaickd.report.page.document import (
            page,  # draws with matplotlib, which takes a second
        )

        path = Path(arguments.html) if arguments.html else folders[0] / "report.html"
        _write(path, page(report, runs, folders))
        print(f"page: {path}", file=sys.stderr if arguments.format else sys.stdout)


def _check_page(path: Path) -> bool:
    """Raise a UserError for what is no name of a page. -> whether it is no file, as /dev/stdout."""
    special = path.exists() and not path.is_file() and not path.is_dir()  # /dev/stdout
    if path.is_dir():
        raise UserError(f"--html {path}: that is a folder; name the file, or nothing")
    if path.suffix.lower() not in PAGES and not special:
        raise UserError(
            f"--html {path}: a page's name ends in .html; folders come before --html, or all alone "
            "behind it"
        )
    return special


def _write(path: Path, text: str) -> None:
    """All of it or, where that can't be, none."""
    special = _check_page(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if special:
        path.write_text(text, encoding="utf-8")
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path.resolve())
    finally:
        temporary.unlink(missing_ok=True)


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
