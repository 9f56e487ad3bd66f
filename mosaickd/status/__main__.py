"""python -m mosaickd.status FOLDER [FOLDER ...] [--watch [SECONDS]] [--json]"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mosaickd.cli import main_guard
from mosaickd.errors import UserError
from mosaickd.locks import HEARTBEAT
from mosaickd.report.finding import about_links, check_folders, linked_folders
from mosaickd.status.runs import survey
from mosaickd.status.show import as_json, overview

#: Characters a line where nothing says how many there are: enough, so that no path is folded.
WIDTH = 500


def main(argv: Sequence[str] | None = None) -> None:
    """Print, and exit with 1 and a message where there is no run."""
    parser = argparse.ArgumentParser(
        prog="python -m mosaickd.status",
        description="Which runs there are below some folders, how far each one is, and which are "
        "stuck.",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument(
        "--watch", type=interval, nargs="?", const=5.0, metavar="SECONDS",
        help="again every so many seconds (5), until Ctrl-C",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object a run")
    arguments = parser.parse_args(argv)
    with main_guard():
        check_folders(arguments.folders)
        tell_of_links(arguments.folders)
        if arguments.watch is None:
            once(arguments.folders, arguments.json)
        else:
            watch(arguments.folders, arguments.json, arguments.watch)


def interval(text: str) -> float:
    """Seconds, a tenth at least."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds < 1e6:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds (folders come before --watch)"
        )
    return seconds


def once(folders: list[Path], as_lines: bool) -> None:
    rows = survey(folders, tell_to_wait)
    if not rows:
        raise UserError(
            f"no run below {', '.join(map(str, folders))}: a run's folder has a run.log, a "
            "metrics.jsonl or a result.json"
        )
    if as_lines:
        print(json.dumps([as_json(row) for row in rows], indent=1))
    else:
        out = console()
        out.print(overview(rows, out.width))


def watch(folders: list[Path], as_lines: bool, seconds: float) -> None:
    """Again and again. Where nobody has begun a run yet, one may come."""
    out = console()
    if as_lines or not out.is_terminal:
        while True:
            rows = survey(folders)
            if as_lines:
                print(json.dumps([as_json(row) for row in rows]), flush=True)
            else:
                out.print(time.strftime("%Y-%m-%d %H:%M:%S"))
                out.print(overview(rows, out.width) if rows else "no run yet", "")
                sys.stdout.flush()
            time.sleep(seconds)
    with Live(console=out, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            rows = survey(folders)
            seen = overview(rows, out.width, out.height) if rows else Text("no run yet")
            live.update(seen)
            live.refresh()
            time.sleep(seconds)


def console() -> Console:
    """Where tables go: a pipe has no width of its own, and no colours."""
    own = Console(highlight=False)
    return own if own.is_terminal else Console(highlight=False, width=WIDTH)


def tell_of_links(folders: list[Path]) -> None:
    if links := linked_folders(folders):
        print(f"note: {about_links(links)}", file=sys.stderr)


def tell_to_wait(count: int) -> None:
    some = "a process" if count == 1 else f"{count} processes"
    print(
        f"looking for signs of life of {some} of other machines: {2 * HEARTBEAT:.0f} s at most",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
