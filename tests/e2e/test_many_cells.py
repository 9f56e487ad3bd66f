"""A sweep of many cells in one process: the last costs what the first did."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Cli, Tiny, read_json
from conftest import Running as Started

PROC = Path("/proc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PROC / "self" / "status").exists(), reason="needs Linux's /proc"),
]


class Use(NamedTuple):
    """What a process holds."""

    files: int
    threads: int
    megabytes: float


def use_of(pid: int) -> Use:
    lines = (PROC / str(pid) / "status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    files = len(list((PROC / str(pid) / "fd").iterdir()))
    return Use(files, int(status["Threads"]), int(status["VmRSS"].split()[0]) / 1000)


def watched(started: Started, home: Path, cells: int) -> dict[int, Use]:
    """What the process held when so many cells were done."""
    seen: dict[int, Use] = {}
    while started.process.poll() is None:
        states = [read_json(path)["status"] for path in home.glob("*/result.json")]
        done = sum(state in ("finished", "failed") for state in states)
        if done and done not in seen and done < cells:  # after the last, it may end at any moment
            seen[done] = use_of(started.process.pid)
        time.sleep(0.02)
    return seen


def test_neither_slower_nor_larger(cli: Cli, tiny: Tiny) -> None:
    cells = 25
    home = cli.folder / "sweep"
    sweep = [f"seed=range({cells})", f"hydra.sweep.dir={home}", "hydra.sweep.subdir=${seed}"]
    own = tiny.experiment(
        cli.folder, "method=mosaic", "method.student_steps=1", f"teacher.checkpoint={tiny.teacher}"
    )
    started = cli.start("-m", *own, *sweep)
    seen = watched(started, home, cells)
    outcome = started.wait()
    assert outcome.code == 0, outcome.text
    results = [read_json(home / str(seed) / "result.json") for seed in range(cells)]
    assert {result["status"] for result in results} == {"finished"}

    early = next(seen[done] for done in sorted(seen) if done >= 5)
    late = seen[max(seen)]
    assert max(seen) >= cells - 2
    assert late.files <= early.files + 1  # one may be open at the moment
    assert late.threads <= early.threads
    assert late.megabytes < early.megabytes + 40  # measured: 5
    speeds = [result["seconds_per_step"] for result in results]
    assert statistics.median(speeds[-8:]) < 2 * statistics.median(speeds[:8])


def test_what_a_failed_cell_held_is_given_back(cli: Cli, tiny: Tiny) -> None:
    """Hydra keeps each cell's exception to the end of the sweep."""
    cells = 8
    home = cli.folder / "sweep"
    sweep = [f"seed=range({cells})", f"hydra.sweep.dir={home}", "hydra.sweep.subdir=${seed}"]
    own = tiny.experiment(cli.folder, "method=kd", f"teacher.checkpoint={tiny.teacher}")
    fails = ["student=resnet18", "players.student.optimizer.lr=1e30", "train.log_every=1"]
    started = cli.start("-m", *own, *fails, *sweep)
    seen = watched(started, home, cells)
    outcome = started.wait()
    assert outcome.code == 1
    assert "Traceback" not in outcome.text
    statuses = [read_json(home / str(seed) / "result.json")["status"] for seed in range(cells)]
    assert statuses == ["failed"] * cells
    first, *_, last = sorted(seen)
    assert last - first >= 4
    # The student, its gradients and its momentum are 135 MB.
    assert seen[last].megabytes < seen[first].megabytes + 135
