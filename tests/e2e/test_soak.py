"""Runs that are killed again and again end as if nobody had (`python -m tests.soak` does more)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from soak import METHODS, Soak


@pytest.mark.parametrize(
    ("methods", "kills"),
    [
        pytest.param(["mosaic"], 4, marks=pytest.mark.slow),
        pytest.param(METHODS, 200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
    ids=["mosaic", "all methods"],
)
def test_killed_at_any_moment_a_run_ends_bit_identical_and_no_file_is_half(
    tmp_path: Path, methods: list[str], kills: int
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    tally = Soak(tmp_path, methods, seed).play(minutes=50, kills=kills, lanes=2)
    print(tally)
    assert not tally.wrong
    assert tally.total >= kills
    assert sum(tally.runs.values()) >= len(methods)
