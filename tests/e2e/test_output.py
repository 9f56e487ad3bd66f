"""Standard output that nobody takes: what a run came to is in its folder all the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest
from conftest import Tiny, read_json
from forked import Forked


def put(descriptor: int) -> None:
    """In the place of standard output."""
    os.dup2(descriptor, 1)
    sys.stdout = os.fdopen(1, "w", closefd=False)  # what it was knew another kind of file


def closed() -> None:
    """As `>&-` leaves it, and `2>&-`, as of a daemon."""
    for descriptor in (1, 2):
        os.close(descriptor)
    sys.stdout = sys.stderr = None  # type: ignore[assignment]


def without_a_reader() -> None:
    """As of `| head -1` after its line."""
    reader, writer = os.pipe()
    os.close(reader)
    put(writer)


def full() -> None:
    put(os.open("/dev/full", os.O_WRONLY))


def of_few_letters() -> None:
    """As PYTHONIOENCODING=ascii makes it."""
    sys.stdout.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]


@pytest.mark.parametrize("output", [closed, without_a_reader, full, of_few_letters])
def test_a_run_ends_well(forked: Forked, tiny: Tiny, output: Callable[[], None]) -> None:
    arguments = [*tiny.distil("kd", "train.steps=1"), "hydra.run.dir='é'"]
    outcome = forked.start(*arguments, before=output).wait()
    assert outcome.code == 0, outcome.text
    assert outcome.err == ""
    assert read_json(forked.folder / "é" / "result.json")["status"] == "finished"


def test_so_does_a_sweep(forked: Forked, tiny: Tiny) -> None:
    arguments = [*tiny.distil("kd", "train.steps=1", "seed=0,1"), "hydra.sweep.dir=mine"]
    outcome = forked.start("-m", *arguments, before=without_a_reader).wait()
    assert (outcome.code, outcome.err) == (0, "")
    results = [read_json(path)["status"] for path in forked.folder.glob("mine/**/result.json")]
    assert results == ["finished"] * 2


def test_help_without_a_reader_is_no_error(forked: Forked) -> None:
    outcome = forked.start("--help", before=without_a_reader).wait()
    assert (outcome.code, outcome.err) == (0, "")


def test_what_is_wrong_is_still_said(forked: Forked, tiny: Tiny) -> None:
    wrong = tiny.distil("kd", "teacher.checkpoint=nowhere.safetensors", "hydra.run.dir=run")
    outcome = forked.start(*wrong, before=full).wait()
    assert outcome.code == 1
    assert "nowhere.safetensors" in outcome.err
