"""The runs below some folders: as a list, and as a table with one row a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mosaickd.errors import UserError
from mosaickd.metric_names import STEP
from mosaickd.run_dir import Result, RunDir, find_run_dirs
from mosaickd.utils.locks import holder

if TYPE_CHECKING:
    import pandas as pd

#: What a run's result.json says before the run has ended.
UNDER_WAY = ("preparing", "running")
#: What runs of one row of a table have in common: they differ by their seed only.
ROW = ["method", "variant", "dataset", "ood", "ood_subset", "teacher", "student"]
NUMBERS = ["seed", "last", "best", "best_step", "teacher_accuracy", "steps"]


@dataclass(frozen=True)
class Run:
    """A run's folder and what it came to.

    state: finished, failed, interrupted, running, killed (it had not ended, and no process holds
    its folder) or unreadable. result: None where there is none yet, or where it is damaged;
    problem says how.
    """

    run_dir: RunDir
    result: Result | None
    state: str
    problem: str | None = None

    @property
    def folder(self) -> Path:
        return self.run_dir.path

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def steps(self) -> int:
        """Return how many iterations the run has made, as far as it has logged them."""
        if self.result and self.result.status not in UNDER_WAY:
            return self.result.steps
        records = self.run_dir.read_metrics()
        return max((record[STEP] for record in records), default=0)


def read_run(run_dir: RunDir) -> Run:
    """Return a run, whatever state its folder is in."""
    try:
        result = run_dir.read_result()
    except (UserError, OSError) as error:
        return Run(run_dir, None, "unreadable", str(error))
    if result and result.status not in UNDER_WAY:
        return Run(run_dir, result, result.status)
    owner = holder(run_dir.path)
    return Run(run_dir, result, "running" if owner and owner.alive else "killed")


def signature(run: Run) -> tuple[object, ...]:
    """Return what differs as soon as a file that a page shows does."""
    marks: list[object] = [str(run.folder), run.state]
    places = run.run_dir
    for path in (places.result, places.metrics, places.per_class, places.log, places.samples):
        if path.exists():
            status = path.stat()
            marks.append((status.st_mtime_ns, status.st_size))
    return tuple(marks)


def load_runs(roots: Sequence[Path]) -> list[Run]:
    """Return all runs below some folders, each once. Raises UserError for what is no folder."""
    runs: dict[str, Run] = {}
    for root in roots:
        if not root.is_dir():
            what = "it is a file, not a folder" if root.exists() else "there is no such folder"
            raise UserError(f"no run below {root}: {what}")
        for run_dir in find_run_dirs(root):
            real = os.path.realpath(run_dir.path)
            if real not in runs:
                runs[real] = read_run(run_dir)
    return list(runs.values())


def to_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a table of those runs that have a result: ROW, NUMBERS, state and the Run itself.

    Accuracies in percent.
    """
    import pandas as pd

    columns = [*ROW, *NUMBERS, "state", "run"]
    rows = []
    for run in runs:
        if run.result:
            fields = vars(run.result) | run.result.accuracy | {"state": run.state, "run": run}
            rows.append([fields[name] for name in columns])
    return pd.DataFrame(rows, columns=columns).astype({"last": float, "best": float,
                                                       "teacher_accuracy": float})  # fmt: skip
