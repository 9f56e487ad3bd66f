"""Standard output: lines that stay, and in a terminal a board of progress bars below them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text


class Output:
    """Write to standard output, if it is still there: a run outlives its terminal."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stdout.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stdout.flush()

    def __getattr__(self, name: str) -> Any:  # isatty, fileno, encoding
        return getattr(sys.stdout, name)


#: Everything is printed through one console, so that lines and the board don't collide.
console = Console(highlight=False, file=cast(IO[str], Output()))


#: False: lines in place of bars also in a terminal, where several jobs would draw over each other.
bars = True


def is_rank0() -> bool:
    """Return whether this is the one of torchrun's processes that prints."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def is_interactive() -> bool:
    """Return whether a person sees what is drawn and drawn again."""
    return bars and console.is_terminal and is_rank0()


def print_line(text: str) -> None:
    """Print a line that stays, as it is."""
    console.print(Text(text), soft_wrap=True)


class Board:
    """Draw parts below the lines, in the order in which they were added."""

    def __init__(self) -> None:
        self.parts: list[Callable[[], RenderableType]] = []
        self.live: Live | None = None

    def add(self, part: Callable[[], RenderableType]) -> None:
        """Draw `part()` from now on, in a terminal."""
        if not is_interactive():
            return
        self.parts.append(part)
        if self.live is None:
            self.live = Live(get_renderable=self.draw, console=console, transient=True)
            self.live.start()

    def remove(self, part: Callable[[], RenderableType]) -> None:
        """Draw the part no longer."""
        if part in self.parts:
            self.parts.remove(part)
        if not self.parts and self.live is not None:
            live, self.live = self.live, None
            live.stop()

    def shows(self, part: Callable[[], RenderableType]) -> bool:
        """Return whether the part is drawn."""
        return part in self.parts

    def close(self) -> None:
        """Leave the terminal as it was."""
        for part in [*self.parts]:
            self.remove(part)

    def draw(self) -> RenderableType:
        return Group(*(part() for part in self.parts))


board = Board()


def bar_width(beside: int) -> int:
    """Return the width of a bar that leaves room for so many characters beside it."""
    return max(3, min(30, console.width - beside - 2))


def columns(rows: Iterable[tuple[str, str]]) -> Text:
    """Return `name  text` a line, each cut where the terminal ends."""
    known = [*rows]
    width = max((len(name) for name, _ in known), default=0)
    lines = (f"  {name:<{width}}  {text}" for name, text in known)
    return Text("\n".join(lines), style="dim", no_wrap=True, overflow="ellipsis")
