"""Methods that play in phases: a player's schedule runs over its own turns."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tables import Table

PHASED: dict[str, dict[str, Any]] = {
    "sskd": {"head_fraction": 0.25},
    "deepinv": {"inversion_steps": 3, "student_steps": 2},
}


@pytest.mark.parametrize("name", PHASED)
@pytest.mark.parametrize("steps", [8, 13, 14])
def test_each_players_cosine_runs_over_its_own_turns_and_ends_at_zero(
    name: str, steps: int
) -> None:
    table = Table(name, steps=steps, **PHASED[name])
    rates: dict[str, list[float]] = {player: [] for player in table.players}
    for _ in range(steps):
        before = {player: table.players[player].learning_rate for player in rates}
        (turn,) = table.play(1)
        rates[turn.player].append(before[turn.player])
        for other in rates.keys() - {turn.player}:
            assert table.players[other].learning_rate == before[other], "not in others' turns"
    for player, found in rates.items():
        turns = len(found)
        assert turns == table.method.iterations(player, steps)
        cosine = [0.025 * (1 + math.cos(math.pi * turn / turns)) for turn in range(turns)]
        assert found == pytest.approx(cosine, abs=1e-9)
        assert table.players[player].learning_rate == pytest.approx(0, abs=1e-9)


def test_a_player_that_never_has_a_turn_disturbs_no_one() -> None:
    table = Table("deepinv", steps=2, **PHASED["deepinv"])
    assert table.method.iterations("student", 2) == 0
    assert [turn.player for turn in table.play(2)] == ["images", "images"]
    assert table.players["student"].learning_rate == pytest.approx(0.05)
