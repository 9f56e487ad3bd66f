"""One sweep, several processes: each cell is run once, by one of them, and none is lost."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from conftest import Cli, Outcome, Tiny, losses, metrics, read_json

CELLS = [f"{method}/seed{seed}" for method in ("balanced", "kd") for seed in range(2)]
HOME = Path("outputs") / "shared"


@pytest.fixture
def sweep(cli: Cli, tiny: Tiny) -> list[str]:
    """Four cells of four steps; their teacher is missing."""
    own = tiny.experiment(cli.folder)
    name = "hydra.sweep.subdir=${hydra.runtime.choices.method}/seed${seed}"
    chosen = ["method=balanced,kd", "seed=range(2)", "train.checkpoint_every=2"]
    return ["-m", *own, *chosen, f"hydra.sweep.dir={HOME}", name]


def statuses(cli: Cli) -> dict[str, str]:
    paths = sorted((cli.folder / HOME).glob("*/*/result.json"))
    return {str(p.parent.relative_to(cli.folder / HOME)): read_json(p)["status"] for p in paths}


def begun(outcome: Outcome) -> list[str]:
    """The cells whose training this process began or went on with."""
    found = re.findall(
        r"^(kd|balanced): .*, seed (\d): \d+ steps of 16 images", outcome.out, re.MULTILINE
    )
    return [f"{method}/seed{seed}" for method, seed in found]


def assert_in_order(*outcomes: Outcome) -> None:
    for outcome in outcomes:
        assert outcome.code == 0, outcome.text
        assert "Traceback" not in outcome.text
        assert "failed" not in outcome.text


@pytest.mark.slow
def test_two_processes_do_each_cell_once(cli: Cli, sweep: list[str]) -> None:
    started = [cli.start(*sweep) for _ in range(2)]
    both = [process.wait() for process in started]
    assert_in_order(*both)
    assert statuses(cli) == dict.fromkeys(CELLS, "finished")
    assert sorted(begun(both[0]) + begun(both[1])) == CELLS
    for cell in CELLS:
        steps = [line["step"] for line in metrics(cli.folder / HOME / cell) if losses(line)]
        assert steps == [1, 2, 4], "logged once, by one process"

    trained = [line for o in both for line in o.out.splitlines() if "training it first" in line]
    assert len(trained) == 1
    teachers = cli.folder / "checkpoints" / "letters"
    assert (teachers / "wrn16_2.safetensors").exists()
    steps = [
        line["step"] for line in metrics(teachers / "wrn16_2-training") if "accuracy/top5" in line
    ]
    assert steps == [5, 10]


@pytest.mark.slow
def test_a_cell_whose_process_was_killed_is_gone_on_with_by_the_next(
    cli: Cli, tiny: Tiny, sweep: list[str]
) -> None:
    longer = [*sweep, f"teacher.checkpoint={tiny.teacher}", "train.epochs=8"]
    first = cli.start(*longer)
    checkpoint = cli.folder / HOME / CELLS[0] / "checkpoints" / "last.pt"
    first.until(checkpoint.exists)
    first.process.send_signal(signal.SIGSTOP)  # in the middle of its first cell

    second = cli(*longer)
    assert_in_order(second)
    assert begun(second) == CELLS[1:]
    assert second.out.count("is being run by another process: left to it") == 1
    first.send(signal.SIGKILL)
    assert statuses(cli) == dict.fromkeys(CELLS[1:], "finished") | {CELLS[0]: "running"}

    third = cli(*longer)
    assert_in_order(third)
    assert begun(third) == CELLS[:1]
    assert third.out.count("is finished: nothing to do") == len(CELLS) - 1
    assert statuses(cli) == dict.fromkeys(CELLS, "finished")
    assert re.search(r"resumed at step \d+ of 32", third.out)

    files = [cli.folder / HOME / cell / "result.json" for cell in CELLS]
    before = [path.stat().st_mtime_ns for path in files]
    fourth = cli(*longer)
    assert begun(fourth) == []
    assert fourth.out.count("is finished: nothing to do") == len(CELLS)
    assert [path.stat().st_mtime_ns for path in files] == before
    table = fourth.out[fourth.out.rindex("┏") :]
    rows = [line for line in table.splitlines() if line.startswith("│")]
    assert len(rows) == 3, "the teacher, and two students with a column a seed"
    assert "KD on strokes" in table
