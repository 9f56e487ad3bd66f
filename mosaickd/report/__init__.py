"""Results for people: a run's table, a sweep's, the paper's beside ours. Reads files only.

python -m mosaickd.report outputs/quickstart
"""

from __future__ import annotations

from mosaickd.report.labels import WORDS, describe, percent
from mosaickd.report.results import find_results, read_result
from mosaickd.report.terminal import console, show_run, show_sweep, sweep_table

__all__ = [
    "WORDS",
    "console",
    "describe",
    "find_results",
    "percent",
    "read_result",
    "show_run",
    "show_sweep",
    "sweep_table",
]
