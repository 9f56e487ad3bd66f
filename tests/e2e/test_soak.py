"""Runs that are killed again and again end as if nobody had (`python -m tests.soak` does more)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from soak import METHODS, Soak


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_any_moment_a_run_ends_bit_identical_and_no_file_is_half(tmp_path: Path) -> None:
    soak = Soak(tmp_path, [*METHODS], seed=random.SystemRandom().randrange(10**6))
    print(f"seed {soak.seed}")
    soak.run(minutes=4, max_kills=60, workers=2)
    print(soak)
    assert not soak.failures
    assert soak.kills.total() > len(METHODS)
