"""What a person sees of work under way: bars in a terminal, elsewhere lines."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from statistics import median
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from mosaickd.utils.durations import duration, pace

if TYPE_CHECKING:  # not for a command that only looks at a config: evaluation brings torch
    from mosaickd.engine.evaluate import Accuracy

log = logging.getLogger(__name__)

Item = TypeVar("Item")

#: Seconds without a line after which there is one, where no bar shows that the run lives.
SILENCE = 600.0


class Stdout:
    """Standard output as it is at the moment; a run goes on when nobody can take what it prints."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stdout.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stdout.flush()

    def __getattr__(self, name: str) -> Any:  # isatty, fileno, encoding
        return getattr(sys.stdout, name)


#: All that a person sees goes through one console, so that lines and bars don't collide.
console = Console(highlight=False, file=cast(IO[str], Stdout()))


def is_rank0() -> bool:
    """Return whether this process is the one of torchrun's that talks; without torch."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def is_watched() -> bool:
    """Return whether a person sees what is drawn and drawn again."""
    return console.is_terminal and console.is_interactive and is_rank0()


def say(text: str) -> None:
    """Print a line that stays, as it is."""
    console.print(Text(text), soft_wrap=True)


class ConsoleHandler(logging.Handler):
    """Prints log records above the bars. Records with `console` False go to run.log only.

    `stream` is there for Hydra's defaults.
    """

    def __init__(self, stream: object = None) -> None:
        super().__init__()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "console", True):
            say(self.format(record))


class Bar(RichProgress):
    """A bar of one task where a person watches, and nothing elsewhere. Bars stand below each other.

    describe: returns what stands beside the bar, and below it; called each time it is drawn.
    """

    def __init__(
        self, name: str, total: int | None, describe: Callable[[], tuple[str, str]] | None = None
    ) -> None:
        self.describe = describe or (lambda: ("", ""))
        super().__init__(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None, table_column=Column(max_width=40)),  # narrower if it must be
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[beside]}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=4,
            disable=not is_watched(),
        )
        self.task = self.add_task(name, total=total, beside="")

    def show(self, completed: int) -> None:
        """Show how much is done."""
        self.update(self.task, completed=completed)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, and what stands below it: rich calls this."""
        beside, below = self.describe()
        for task in self.tasks:  # the one, once rich has made the bar
            task.fields["beside"] = beside
        yield self.make_tasks_table(self.tasks)
        if below:
            yield Text(below, style="dim", no_wrap=True, overflow="ellipsis")


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield `show(done)` of a bar for a long pass."""
    with Bar(what, total) as bar:
        yield bar.show


def track(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items, with a bar."""
    with counting(what, len(items)) as show:
        for number, item in enumerate(items, 1):
            yield item
            show(number)


class Progress:
    """Losses, accuracy, speed and time left of one run.

    title: of its lines; up to the colon, of its bar. eval_every: in steps, for the time left.
    """

    def __init__(self, title: str, steps: int, eval_every: int = 0) -> None:
        self.title = title
        self.steps = steps
        self.eval_every = eval_every
        self.step = 0
        self.accuracy = ""
        self.losses: dict[str, float] = {}
        self.seconds_per_step: deque[float] = deque(maxlen=10)
        self.reports = 0  # of this session
        self.evaluating_since: float | None = None
        self.evaluation_seconds = 0.0  # of the last one
        self.last_line = time.monotonic()
        self.bar = Bar(title.partition(":")[0], steps, self.describe)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def advance(self, step: int) -> None:
        """Show that a step is done."""
        self.step = step
        self.bar.show(step)

    def show(self, losses: dict[str, float], seconds_per_step: float) -> None:
        """Show losses (by player/name), and the seconds that a step took since the last call."""
        self.losses = losses
        self.reports += 1
        if self.reports == 2:  # the first is of one step, and of all that is done only once
            self.seconds_per_step.clear()
        self.seconds_per_step.append(seconds_per_step)
        if not is_watched() and time.monotonic() - self.last_line > SILENCE:
            self._log(f"step {self.step}/{self.steps}  {self._speed()}  {self._losses()}")

    def evaluation(self) -> None:
        """Show that an evaluation begins."""
        self.evaluating_since = time.monotonic()

    def evaluated(self, step: int, accuracy: Accuracy, best: float) -> None:
        """Show what an evaluation came to: a line, in a terminal too. best: top-1, in percent."""
        self.step = step
        if self.evaluating_since is not None:
            self.evaluation_seconds = time.monotonic() - self.evaluating_since
            self.evaluating_since = None
        self.accuracy = f"accuracy {accuracy.top1:.2f} %"
        line = f"step {step}/{self.steps}  {self.accuracy}  top-5 {accuracy.top5:.2f} %"
        line += f"  best {best:.2f} %"
        if is_watched():  # the bar has the rest
            say(line)
        self._log(f"{line}  {self._speed()}  {self._losses()}")

    def seconds_left(self) -> float:
        """Return the seconds until the end, evaluations and all; 0 where they aren't known yet."""
        if not self.seconds_per_step:
            return 0.0
        steps = self.steps - self.step
        evaluations = steps / self.eval_every if self.eval_every else 0
        return steps * median(self.seconds_per_step) + evaluations * self.evaluation_seconds

    def describe(self) -> tuple[str, str]:
        """Return what stands beside the bar, and below it a line of losses for each player."""
        now = "evaluating" if self.evaluating_since is not None else self._speed() or "begins"
        players: dict[str, list[str]] = {}
        for name, value in self.losses.items():
            player, _, loss = name.partition("/")
            players.setdefault(player, []).append(f"{loss} {value:.3g}")
        width = max(map(len, players), default=0)
        lines = [f"  {player:<{width}}  {'  '.join(own)}" for player, own in players.items()]
        return "  ".join(filter(None, (self.accuracy, now))), "\n".join(lines)

    def _log(self, text: str) -> None:
        """Write a line to run.log, and to the console where there is no bar."""
        self.last_line = time.monotonic()
        log.info("%s %s", self.title, text.rstrip(), extra={"console": not is_watched()})

    def _speed(self) -> str:
        """Return `8.1 steps/s  3 min 12 s left`; nothing before this session's first losses."""
        if not self.seconds_per_step:
            return ""
        left = self.seconds_left()
        return pace(self.seconds_per_step[-1]) + (f"  {duration(left)} left" if left else "")

    def _losses(self) -> str:
        return "  ".join(f"{name} {value:.3g}" for name, value in self.losses.items())
