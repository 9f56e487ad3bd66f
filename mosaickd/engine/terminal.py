"""Standard output: lines that stay, and below them, in a terminal, a board of what is going on."""

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
    """Standard output, of which nothing is left when a terminal closes: a run goes on without."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stdout.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stdout.flush()

    def __getattr__(self, name: str) -> Any:  # isatty, fileno, encoding
        return getattr(sys.stdout, name)


#: All that a person sees goes through one console, so that lines and the board don't collide.
console = Console(highlight=False, file=cast(IO[str], Output()))

#: False: lines instead of bars also in a terminal.
bars = True


def is_first() -> bool:
    """Of several processes that torchrun started, the one that talks."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def watched() -> bool:
    """Whether a person sees what is drawn and drawn again."""
    return bars and console.is_terminal and is_first()


def say(text: str) -> None:
    """A line that stays, as it is."""
    console.print(Text(text), soft_wrap=True)


class Board:
    """What is drawn below the lines: parts, in the order in which they came."""

    def __init__(self) -> None:
        self.parts: list[Callable[[], RenderableType]] = []
        self.live: Live | None = None

    def add(self, part: Callable[[], RenderableType]) -> None:
        """Draw `part()` from now on, if someone watches."""
        if not watched():
            return
        self.parts.append(part)
        if self.live is None:
            self.live = Live(get_renderable=self.draw, console=console, transient=True)
            self.live.start()

    def remove(self, part: Callable[[], RenderableType]) -> None:
        """No longer; nothing where it isn't drawn."""
        if part in self.parts:
            self.parts.remove(part)
        if not self.parts and self.live is not None:
            live, self.live = self.live, None
            live.stop()

    def close(self) -> None:
        """Leave the terminal as it was."""
        for part in [*self.parts]:
            self.remove(part)

    def draw(self) -> RenderableType:
        return Group(*(part() for part in self.parts))


board = Board()


def bar_width(beside: int) -> int:
    """Of a bar that leaves room for so many characters beside it."""
    return max(3, min(30, console.width - beside - 2))


def columns(rows: Iterable[tuple[str, str]]) -> Text:
    """`name  text` a line, each cut where the terminal ends."""
    known = [*rows]
    width = max((len(name) for name, _ in known), default=0)
    lines = (f"  {name:<{width}}  {text}" for name, text in known)
    return Text("\n".join(lines), style="dim", no_wrap=True, overflow="ellipsis")
