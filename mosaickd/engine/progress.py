"""What a terminal shows while a run lasts: a bar; elsewhere a line an evaluation."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, TypeVar, cast

from rich import progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from mosaickd.engine import distribution
from mosaickd.engine.evaluate import Accuracy

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class Terminal:
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


#: All that a person sees goes through one console, so that lines and the bar don't collide.
console = Console(highlight=False, file=cast(IO[str], Terminal()))

#: False: lines instead of bars also in a terminal.
bars = True


class ConsoleHandler(logging.Handler):
    """Prints log messages above the progress bar, except those logged with `console` False.

    `stream` is there for Hydra's defaults.
    """

    def __init__(self, stream: object = None) -> None:
        super().__init__()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "console", True):
            console.print(self.format(record), markup=False, soft_wrap=True)


def track(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a bar where someone is watching."""
    return progress.track(items, what, console=console, transient=True, disable=not _watched())


def _watched() -> bool:
    return bars and console.is_terminal and distribution.is_first()


class Bar(progress.Progress):
    """A bar with a line of text below it."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.below, style="dim")


class Progress:
    """Losses, accuracy, speed and time left of one run."""

    def __init__(self, title: str, steps: int) -> None:
        self.steps = steps
        self.title = title
        self.accuracy = "accuracy -"
        self.losses = ""
        self.speed = 0.0
        self.bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not _watched(),
            transient=True,
        )
        self.task = self.bar.add_task(title.partition(":")[0], total=steps, status="")

    def __enter__(self) -> Progress:
        self.bar.start()
        self.since = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def advance(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def show(self, losses: dict[str, float], seconds_per_step: float) -> None:
        self.losses = "  ".join(f"{name} {value:.3g}" for name, value in losses.items())
        self.speed = seconds_per_step
        self._refresh()

    def evaluated(self, step: int, accuracy: Accuracy, best: float) -> None:
        self.accuracy = f"accuracy {accuracy.top1:.2f} %"
        left = (self.steps - step) * self.speed
        log.info(
            "%s step %d/%d  accuracy %.2f %%  top-5 %.2f %%  best %.2f %%  %.3f s/step  "
            "%.0f s left  %s",
            self.title, step, self.steps, accuracy.top1, accuracy.top5, best, self.speed, left,
            self.losses,
        )  # fmt: skip
        self._refresh()

    def _refresh(self) -> None:
        speed = ""  # a resumed run may evaluate before its first step
        if self.speed > 0:
            slow = self.speed >= 1
            speed = f"{self.speed:.2f} s/step" if slow else f"{1 / self.speed:.1f} steps/s"
        self.bar.below = self.losses
        self.bar.update(self.task, status=f"{self.accuracy}  {speed}")
