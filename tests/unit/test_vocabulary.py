"""docs/metrics.md says what metrics are called."""

from __future__ import annotations

import re
from pathlib import Path

from mosaickd import metric_names

TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


def test_the_table_is_the_vocabulary() -> None:
    """In its order, with its words."""
    table = TEXT.partition("| metric |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.+) \|$", table, re.MULTILINE)
    assert [(name, (unit.strip(), words)) for name, unit, words in rows] == [
        (name, said) for name, said in metric_names.METRICS.items()
    ]


def test_every_name_in_the_code_is_in_the_vocabulary() -> None:
    apart = {"STEP", "TIME", "LOSS", "WEIGHTED", "LEARNING_RATE"}
    names = {n: value for n, value in vars(metric_names).items() if n.isupper() and n not in apart}
    known = {value for value in names.values() if isinstance(value, str)}
    patterns = {name for name in metric_names.METRICS if "PLAYER" in name}
    assert known | patterns == set(metric_names.METRICS)
    player_and_name = metric_names.loss("PLAYER/NAME"), metric_names.weighted("PLAYER/NAME")
    assert {*player_and_name, metric_names.learning_rate("PLAYER")} == patterns
