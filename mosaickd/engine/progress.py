"""Progress of a run and of long passes: a bar, or where there is no terminal, lines."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from types import TracebackType
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from mosaickd.durations import duration, pace
from mosaickd.engine.evaluate import Accuracy
from mosaickd.engine.terminal import bar_width, board, columns, console, is_interactive, print_line

log = logging.getLogger(__name__)

Item = TypeVar("Item")

#: Seconds without a line after which there is one, where no bar shows that the run lives.
SILENCE = 600.0


class ConsoleHandler(logging.Handler):
    """Print log messages above the board, except those logged with `console` False.

    `stream` is there for Hydra's defaults.
    """

    def __init__(self, stream: object = None) -> None:
        super().__init__()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "console", True):
            console.print(self.format(record), markup=False, soft_wrap=True)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar in a terminal; yield `advance(done)`."""
    bar = Bar(
        TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
        console=console, auto_refresh=False,
    )  # fmt: skip
    task = bar.add_task(what, total=total)
    board.add(bar.get_renderable)
    try:
        yield lambda done: bar.update(task, completed=done)
    finally:
        board.remove(bar.get_renderable)


def track(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Yield the items, with a bar in a terminal."""
    with counting(what, len(items)) as advance:
        for number, item in enumerate(items):
            yield item
            advance(number + 1)


class Progress:
    """Show losses, accuracy, speed and time left of one run.

    title: of its lines; up to the colon, of its bar. eval_every: in steps, for the time left.
    """

    def __init__(self, title: str, steps: int, eval_every: int = 0) -> None:
        self.steps = steps
        self.eval_every = eval_every
        self.title = title
        self.step = 0
        self.accuracy = ""
        self.losses: dict[str, float] = {}
        self.lines = 0  # of this session
        self.speeds: deque[float] = deque(maxlen=10)  # seconds a step, of the last lines
        self.evaluation_began: float | None = None  # since when
        self.evaluation_seconds = 0.0  # seconds that the last one took
        self.line = BarColumn()
        self.bar = Bar(
            TextColumn("[bold]{task.description}"), self.line, MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"), console=console, auto_refresh=False,
        )  # fmt: skip
        self.task = self.bar.add_task(title.partition(":")[0], total=steps, status="")

    def __enter__(self) -> Progress:
        self.last_line = time.monotonic()
        board.add(self.draw)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        board.remove(self.draw)

    def advance(self, step: int) -> None:
        self.step = step
        self.bar.update(self.task, completed=step)

    def show(self, losses: dict[str, float], seconds_per_step: float) -> None:
        self.losses = losses
        self.lines += 1
        if self.lines == 2:  # the first is of one step, and of all that is done only once
            self.speeds.clear()
        self.speeds.append(seconds_per_step)
        if not is_interactive() and time.monotonic() - self.last_line > SILENCE:
            self._log_line(f"step {self.step}/{self.steps}  {self._pace()}  {self._all_losses()}")

    def evaluation(self) -> None:
        """Show that an evaluation begins."""
        self.evaluation_began = time.monotonic()

    def evaluated(self, step: int, accuracy: Accuracy, best: float) -> None:
        self.step = step
        if self.evaluation_began is not None:
            self.evaluation_seconds = time.monotonic() - self.evaluation_began
            self.evaluation_began = None
        self.accuracy = f"accuracy {accuracy.top1:.2f} %"
        measured = f"step {step}/{self.steps}  {self.accuracy}  top-5 {accuracy.top5:.2f} %"
        measured += f"  best {best:.2f} %"
        if is_interactive():  # the bar has the rest
            print_line(measured)
        self._log_line(f"{measured}  {self._pace()}  {self._all_losses()}")

    def _log_line(self, text: str) -> None:
        """Write to run.log, and to the console where there is no bar."""
        self.last_line = time.monotonic()
        log.info("%s %s", self.title, text.rstrip(), extra={"console": not is_interactive()})

    def _pace(self) -> str:
        """Return `8.1 steps/s  3 min 12 s left`; nothing before the first losses."""
        if not self.speeds:
            return ""
        left = self.seconds_left()
        return f"{pace(self.speeds[-1])}" + (f"  {duration(left)} left" if left else "")

    def seconds_left(self) -> float:
        """Return the seconds until the end, evaluations and all."""
        if not self.speeds:
            return 0.0
        steps = self.steps - self.step
        evaluations = steps / self.eval_every if self.eval_every else 0
        return steps * median(self.speeds) + evaluations * self.evaluation_seconds

    def _all_losses(self) -> str:
        return "  ".join(f"{name} {value:.3g}" for name, value in self.losses.items())

    def draw(self) -> RenderableType:
        """Draw the bar, and a line a player with its losses."""
        now = "evaluating" if self.evaluation_began is not None else self._pace() or "begins"
        status = "  ".join(filter(None, (self.accuracy, now)))
        self.bar.update(self.task, status=status)
        beside = (self.title.partition(":")[0], f"{self.steps}/{self.steps}", status)
        self.line.bar_width = bar_width(sum(len(text) + 1 for text in beside))
        players: dict[str, list[str]] = {}
        for name, value in self.losses.items():
            player, _, loss = name.partition("/")
            players.setdefault(player, []).append(f"{loss} {value:.3g}")
        lines = [(player, "  ".join(losses)) for player, losses in players.items()]
        return Group(self.bar.get_renderable(), *([columns(lines)] if lines else []))
