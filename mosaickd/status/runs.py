"""The state of each run: from its files, and from who holds its folder.

docs/decisions/0022-what-is-stuck.md says how states are told, and why so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from mosaickd import metric_names
from mosaickd.errors import UserError, printable
from mosaickd.locks import HEARTBEAT, LEASE, Holder, holder
from mosaickd.report.contents import written
from mosaickd.report.finding import LOG, METRICS, RESULT, check_folders, run_folders
from mosaickd.report.results import LARGE, Run, load_result, to_run
from mosaickd.status.files import config_of, last_metrics, logged_error, number, percentage

#: States, those that want attention first.
STATES = (
    "stuck",
    "running",
    "failed",
    "killed",
    "interrupted",
    "unreadable",
    "finished",
)

#: What a result.json says of a run that has ended.
ENDED = ("finished", "failed", "interrupted")

#: Seconds of silence that are never too long, and those that are before a run has a pace.
PATIENCE, PATIENCE_AT_START = 300.0, 1800.0
#: Seconds that a process may take from its first file until it holds the folder: imports.
BEGINNING = 120.0
#: How many of its usual intervals, and of its longest evaluations, a run may be silent.
INTERVALS, EVALUATIONS = 10, 3


@dataclass(frozen=True)
class Row:
    """What is known of a run; None is what isn't."""

    root: Path
    folder: Path
    state: str
    doing: str | None = None  # before its first step: what
    step: int | None = None
    total_steps: int | None = None
    accuracy: float | None = None
    best: float | None = None
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    active: float | None = None  # last sign of progress, in seconds since 1970
    error: str | None = None  # why it failed, is stuck or can't be read
    version: str | None = None  # of the program, where it isn't known how long the run is
    process: str | None = None  # who holds it

    @property
    def name(self) -> str:
        """The folder's path below the root."""
        relative = self.folder.relative_to(self.root)
        return printable(str(relative if relative.parts else self.folder), 300)


def survey(
    roots: Sequence[Path], waiting: Callable[[int], object] = lambda count: None
) -> list[Row]:
    """All runs below the folders, those that want attention first, then by activity.

    waiting: called before some seconds are spent looking for signs of life of so many processes
    of other machines.
    """
    check_folders(roots)
    found = [*run_folders(roots)]
    holders = holders_of([folder for _, folder in found], waiting)
    rows = [row(root, folder, holders.get(folder)) for root, folder in found]
    return sorted(rows, key=lambda r: (_urgency(r.state), -(r.active or 0.0), str(r.folder)))


def _urgency(state: str) -> int:
    return min(STATES.index(state), 2) if state in STATES else 2


def holders_of(folders: Iterable[Path], waiting: Callable[[int], object]) -> dict[Path, Holder]:
    """Who holds which; of those whose life can't be seen at once, after a second look."""
    found = {folder: held for folder in folders if (held := holder(folder))}
    doubtful = {folder: held for folder, held in found.items() if held.alive is None}
    if doubtful:
        waiting(len(doubtful))
        deadline = time.monotonic() + 2 * HEARTBEAT
        while doubtful and time.monotonic() < deadline:
            time.sleep(min(1.0, HEARTBEAT / 5))
            for folder, before in [*doubtful.items()]:
                now = holder(folder)
                if now is None or now.touched != before.touched:
                    del doubtful[folder]
                    found[folder] = (now or before)._replace(alive=now is not None)
        found |= {folder: held._replace(alive=False) for folder, held in doubtful.items()}
    return found


def row(root: Path, folder: Path, held: Holder | None) -> Row:
    """One run's."""
    known = Row(root, folder, "unreadable")
    result, problem = _result(folder)
    ended = result is not None and result.status in ENDED and not (held and held.alive)
    lines = [] if ended else last_metrics(folder)  # its result says all
    known = replace(known, **_measured(lines))
    if result is not None:
        known = _with_result(known, result)
    signs = [_logged_at(lines, folder), written(folder / LOG)]
    last_sign = max([t for t in signs if t is not None], default=written(folder / RESULT))
    known = replace(known, active=last_sign)
    if held is not None and held.alive:
        return _held(known, held, lines, result)
    if problem:
        return replace(known, state="unreadable", error=problem)
    if result is None:
        error = logged_error(folder)
        if not lines and held is None and error:  # refused before it began
            return replace(known, state="failed", error=error)
        if held is None and last_sign and time.time() - last_sign < BEGINNING:
            return replace(known, state="running", doing="beginning: it holds no folder yet")
        return replace(known, state="killed")
    state = "killed" if result.under_way else result.status
    return replace(known, state=state, error=result.error if state == "failed" else None)


def _result(folder: Path) -> tuple[Run | None, str | None]:
    """What result.json says; or why it says nothing. Neither where there is none."""
    path = folder / RESULT
    if not path.exists() and not path.is_symlink():
        return None, None
    if not path.is_file():
        return None, f"{RESULT} is no file"
    try:
        return to_run(folder, load_result(path)), None
    except UserError as error:
        return None, f"{RESULT}: {error}"
    except OSError as error:
        return None, f"{RESULT} can't be read: {error.strerror or error}"


def _measured(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What the last lines of metrics.jsonl say."""

    def latest(name: str, kind: Callable[[Any], float | None] = number) -> float | None:
        values = (kind(line.get(name)) for line in reversed(lines))
        return next((value for value in values if value is not None), None)

    seconds = latest(metric_names.SECONDS_PER_STEP)
    return {
        "step": lines[-1][metric_names.STEP] if lines else None,
        "accuracy": latest(metric_names.TOP1, percentage),
        "best": latest(metric_names.BEST, percentage),
        "seconds_per_step": seconds if seconds is not None and seconds > 0 else None,
    }


def _with_result(known: Row, result: Run) -> Row:
    """Where both say it, the last line of the metrics is the newer, until a run has ended."""
    ended = result.status in ENDED
    step = known.step if known.step is not None and not ended else result.steps
    last, best = known.accuracy, known.best
    if ended or last is None:
        last, best = result.last, result.best
    mean = result.seconds / result.steps if result.steps > 0 and result.seconds > 0 else None
    total = result.total_steps
    if total is None and result.finished:
        total = result.steps
    return replace(
        known,
        step=step,
        total_steps=total if total is not None and total > 0 else None,
        accuracy=last,
        best=best,
        seconds_per_step=known.seconds_per_step or mean,
        version=dict(result.versions).get("mosaickd"),
    )


# ------------------------------------------------------------------------------- while it is held


def _held(known: Row, held: Holder, lines: list[dict[str, Any]], result: Run | None) -> Row:
    """Running, or stuck; and what it does where it hasn't come to its first step."""
    known = replace(known, process=f"process {held.pid} on {printable(held.host, 80)}")
    playing = result is not None and result.status == "running" and bool(lines)
    if result is None and lines:  # an older version's: it wrote its result at the end only
        playing = True
    if not playing:
        known = _beginning(known, held)
    silent = time.time() - known.active if known.active is not None else None
    limit = _longest_silence(lines) if playing else PATIENCE_AT_START
    asleep = time.time() - held.touched
    if held.here and asleep > LEASE:
        error = f"{known.process} gives no sign of life: stopped or suspended?"
        return replace(known, state="stuck", error=error)
    if silent is not None and silent > limit:
        return replace(known, state="stuck", error=f"{known.process} lives, and logs nothing")
    left = _time_left(known, lines) if playing else None
    return replace(known, state="running", seconds_left=left)


def _beginning(known: Row, held: Holder) -> Row:
    """What a run does that is held, and not yet at its steps."""
    for place in teacher_folders(known.folder):
        makes = holder(place)
        if makes is None or makes.alive is False:
            continue
        own = (makes.pid, makes.host) == (held.pid, held.host)
        lines = last_metrics(place)
        result, _ = _result(place)
        step = lines[-1][metric_names.STEP] if lines else None
        total = result.total_steps if result else None
        doing = "training its teacher" if own else "waiting for its teacher"
        if step is not None:
            doing += f", step {step}" + (f" of {total}" if total else "")
        signs = [t for t in (known.active, _logged_at(lines, place)) if t is not None]
        return replace(known, doing=doing, active=max(signs, default=None))
    return replace(known, doing="preparing")


def teacher_folders(folder: Path) -> list[Path]:
    """Where the run's teacher may be in training: below the run, or where all runs share it."""
    whole = folder.absolute()
    found = [*whole.glob("teacher/*-training")]
    config = config_of(folder)
    names = [config.get("dataset"), config.get("teacher")]
    dataset, model = (name.get("name") if isinstance(name, dict) else None for name in names)
    shared = config.get("teachers_dir")
    if all(isinstance(name, str) and _plain(name) for name in (dataset, model)) and isinstance(
        shared, str
    ):
        # Relative to where the command was given, which is above the run or here.
        for home in {above / Path(shared).expanduser() for above in (Path(), *whole.parents)}:
            if home.is_dir():
                found += home.glob(f"{dataset}*/{model}-training")
    return sorted({path.absolute() for path in found})


def _plain(name: str) -> bool:
    return all(c.isalnum() or c in "_-" for c in name) and bool(name)


def _logged_at(lines: list[dict[str, Any]], folder: Path) -> float | None:
    """When the last line of the metrics was written: older versions didn't say."""
    told = number(lines[-1].get(metric_names.TIME)) if lines else None
    signs = [told, written(folder / METRICS)]
    return max([t for t in signs if t is not None], default=None)


def _times(lines: list[dict[str, Any]]) -> list[tuple[float, bool, int]]:
    """(time, whether it is an evaluation, step) of the lines that tell the time."""
    return [
        (at, metric_names.TOP1 in line, line[metric_names.STEP])
        for line in lines
        if (at := number(line.get(metric_names.TIME))) is not None
    ]


def _longest_silence(lines: list[dict[str, Any]]) -> float:
    """Seconds without a line after which this run is stuck, by its own pace."""
    times = _times(lines)
    intervals = [(b[0] - a[0], b[1]) for a, b in pairwise(times) if b[0] >= a[0]]
    training = [seconds for seconds, evaluation in intervals if not evaluation]
    evaluating = [seconds for seconds, evaluation in intervals if evaluation]
    if not training:
        return PATIENCE_AT_START
    return max(PATIENCE, INTERVALS * median(training), EVALUATIONS * max(evaluating, default=0.0))


def _time_left(known: Row, lines: list[dict[str, Any]]) -> float | None:
    """By the pace of the last lines, evaluations and all."""
    if known.step is None or not known.step <= (known.total_steps or 0) < LARGE:
        return None
    limit, times = _longest_silence(lines), _times(lines)
    begin = len(times) - 1
    while begin > 0 and 0 <= times[begin][0] - times[begin - 1][0] <= limit:
        begin -= 1  # a longer break was between two sessions
    if begin < 0:
        return None
    (first, _, from_step), (last, _, to_step) = times[begin], times[-1]
    if to_step <= from_step:
        return None
    assert known.total_steps is not None
    return (known.total_steps - known.step) * (last - first) / (to_step - from_step)
