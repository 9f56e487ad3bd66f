"""What all benchmarks share: command line, config, one table, one JSON line, a baseline."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.table import Table

from mosaickd.analysis import console
from mosaickd.config.schema import CONF, register
from mosaickd.config.validation import validate
from mosaickd.engine.device import choose_device, describe_device
from mosaickd.errors import UserError
from mosaickd.launch import versions


def parser(description: str) -> argparse.ArgumentParser:
    """What each benchmark's command line accepts; each adds its own options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="compare with this result")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON line here")
    parser.add_argument("overrides", nargs="*", help="as given to run.py")
    return parser


def parse(parser: argparse.ArgumentParser, whole: Sequence[str] = ()) -> argparse.Namespace:
    """Options and overrides in any order; an option's list ends at the first KEY=VALUE, unless it
    is one of `whole`."""
    arguments = parser.parse_intermixed_args()
    for name, values in vars(arguments).items():
        if name not in ("overrides", *whole) and isinstance(values, list) and values:
            kept = [value for value in values if "=" not in str(value)]
            arguments.overrides += [value for value in values if "=" in str(value)]
            setattr(arguments, name, kept)
    arguments.compared = Baseline.read(arguments.baseline) if arguments.baseline else None
    return arguments


def choose(option: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raise a UserError for a choice that there isn't."""
    for name in wanted:
        if name not in known:
            raise UserError(f"{option}: {name!r} is unknown; choose of {', '.join(known)}")


def compose_config(overrides: list[str]) -> DictConfig:
    """What run.py would be told."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    validate(cfg)
    return cfg


class Baseline:
    """An earlier result: a JSON file, or anything whose last line is one."""

    def __init__(self, record: dict[str, Any], path: Path) -> None:
        self.record = record
        self.path = path
        #: Seconds by what was measured. Before there were any, a step's modes.
        self.measures: dict[str, float] = record.get("measures") or {
            name: mode["seconds_per_iteration"] for name, mode in record.get("modes", {}).items()
        }

    @classmethod
    def read(cls, path: Path) -> Baseline:
        try:
            text = path.read_text().strip()
            record = json.loads(text.splitlines()[-1] if text else "")
            if not isinstance(record, dict):
                raise ValueError("not a JSON object")
        except (OSError, ValueError) as error:
            raise UserError(
                f"--baseline: {path} holds no result ({error}); give a file that --json wrote, or "
                "the saved output of a benchmark, whose last line is its result"
            ) from error
        return cls(record, path)

    def ratio(self, measure: str, seconds: float | None) -> float | None:
        """How many times as long it took then; above 1: faster now."""
        before = self.measures.get(measure)
        return before / seconds if before and seconds else None

    def differences(self, record: dict[str, Any]) -> list[str]:
        """What makes the comparison one of more than the code."""
        found = []
        for key in ("benchmark", "device", "overrides"):
            if key in self.record and self.record[key] != record[key]:
                found.append(f"{key} was {self.record[key]}, is {record[key]}")
        before, now = self.record.get("versions", {}), record["versions"]
        found += [
            f"{k} was {before[k]}, is {now[k]}" for k in now if before.get(k, now[k]) != now[k]
        ]
        return found


def finish(
    table: Table,
    benchmark: str,
    arguments: argparse.Namespace,
    cfg: DictConfig,
    measures: dict[str, float],
    details: dict[str, Any],
) -> None:
    """Print the table and, last, the JSON line; write it where `--json` says.

    measures: seconds by name, what a later baseline comparison is made of.
    """
    record = {
        **details,
        "benchmark": benchmark,
        "measures": measures,
        "overrides": sorted(arguments.overrides),
        "device": describe_device(choose_device(cfg.device)),
        "versions": versions(),
    }
    baseline: Baseline | None = arguments.compared
    if baseline:
        record["baseline"] = {
            "file": str(baseline.path),
            "ratios": {k: baseline.ratio(k, v) for k, v in measures.items()},
            "differences": baseline.differences(record),
        }
        if record["baseline"]["differences"]:
            caption = "; ".join(record["baseline"]["differences"])
            table.caption = f"not the same as the baseline: {caption}"
    console().print(table)
    line = json.dumps(record)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(line + "\n")
    sys.stdout.flush()
    print(line, flush=True)


def number(value: float | None, digits: int = 2) -> str:
    """For a table; a dash for what isn't known."""
    return "-" if value is None else f"{value:.{digits}f}"
