"""python -m mosaickd.status [FOLDER ...] [--watch [SECONDS]] [--json]"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from mosaickd.analysis.status import survey, to_json, to_table
from mosaickd.cli import main_guard
from mosaickd.errors import UserError

#: Characters a line where the output is no terminal: no path is folded.
WIDTH = 500


def main(argv: Sequence[str] | None = None) -> None:
    """Print, and exit with 1 and a message where there is no run."""
    parser = argparse.ArgumentParser(
        prog="python -m mosaickd.status",
        description="Which runs there are below some folders, and how far each one is.",
    )
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("outputs")],
                        metavar="FOLDER", help="(outputs)")  # fmt: skip
    parser.add_argument("--watch", type=positive, nargs="?", const=5.0, metavar="SECONDS",
                        help="again every so many seconds (5), until Ctrl-C")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object a run")
    arguments = parser.parse_args(argv)
    with main_guard():
        if arguments.watch is not None:
            watch(arguments.folders, arguments.json, arguments.watch)
        statuses = survey(arguments.folders)
        if not statuses:
            raise UserError(f"no run below {', '.join(map(str, arguments.folders))}")
        if arguments.json:
            print(json.dumps(to_json(statuses), indent=1))
        else:
            out = console()
            out.print(to_table(statuses, out.width))


def positive(text: str) -> float:
    """Return a number of seconds, more than none."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds (folders come before --watch)"
        )
    return seconds


def watch(folders: Sequence[Path], as_json: bool, seconds: float) -> None:
    """Print until Ctrl-C: JSON as one line each time; a table in place, where that is possible."""
    while as_json:
        print(json.dumps(to_json(survey(folders))), flush=True)
        time.sleep(seconds)

    out = console()

    def table() -> RenderableType:
        statuses = survey(folders)
        return to_table(statuses, out.width) if statuses else "no run yet"

    if not out.is_terminal:
        while True:
            out.print(time.strftime("%Y-%m-%d %H:%M:%S"), table(), sep="\n")
            time.sleep(seconds)
    with Live(table(), console=out, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            time.sleep(seconds)
            live.update(table(), refresh=True)


def console() -> Console:
    """Return where tables go: a pipe has no width of its own."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=WIDTH)


if __name__ == "__main__":
    main()
