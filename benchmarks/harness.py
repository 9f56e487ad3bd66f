"""What the benchmarks share: command line, config, the clock, one table, one JSON line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.table import Table
from torch.utils.benchmark import timer

from mosaickd.analysis import console
from mosaickd.config.schema import CONF, register
from mosaickd.config.validation import validate
from mosaickd.engine.device import choose_device, describe_device
from mosaickd.errors import UserError
from mosaickd.launch import package_versions


def new_parser(module_docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark takes; each adds its own options."""
    parser = argparse.ArgumentParser(description=(module_docstring or "").partition("\n")[0])
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="compare with this result")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON line here")
    parser.add_argument("overrides", nargs="*", help="as given to run.py")
    return parser


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the random images that stand for a data set."""
    parser.add_argument("--images", type=int, default=50_000, help="random ones, to draw from")
    parser.add_argument("--classes", type=int, default=100)


def parse(parser: argparse.ArgumentParser, **lists: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line: options and overrides in any order.

    lists: options of several values, and the values that there are (None: any). A KEY=VALUE among
    them is an override.
    """
    arguments = parser.parse_intermixed_args()
    for name, choices in lists.items():
        values = getattr(arguments, name)
        arguments.overrides += [value for value in values if "=" in value]
        setattr(arguments, name, [value for value in values if "=" not in value])
        for value in getattr(arguments, name):
            if choices is not None and value not in choices:
                raise UserError(f"--{name}: {value!r} is unknown; choose of {', '.join(choices)}")
    if arguments.baseline:
        arguments.baseline = read_baseline(arguments.baseline)
    return arguments


def compose_config(overrides: list[str]) -> DictConfig:
    """Return the config of a run with these overrides, checked as a run's is."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    validate(cfg)
    return cfg


def seconds_per_call(call: Callable[[], Any], count: int = 1) -> float:
    """Return the mean seconds of `count` calls in a row, until the device has done them all."""
    start = timer()
    for _ in range(count):
        call()
    return (timer() - start) / count


# ------------------------------------------------------------------------------------- the result


def report(
    benchmark: str,
    arguments: argparse.Namespace,
    cfg: DictConfig,
    *,
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[str]],
    seconds: Mapping[str, float],
    details: Mapping[str, Any],
) -> None:
    """Print the table and, last, the JSON line; write it where `--json` says.

    columns: the first one's cells are the keys of `rows`. seconds: what was measured, by rows; a
    later comparison is made of them. details: more keys of the JSON line.
    """
    record: dict[str, Any] = {
        **details,
        "benchmark": benchmark,
        "measures": seconds,
        "overrides": sorted(arguments.overrides),
        "device": describe_device(choose_device(cfg.device)),
        "versions": package_versions(),
    }
    table = Table(*columns, title=title)
    ratios: Mapping[str, float] = {}
    if arguments.baseline:
        comparison = compare(arguments.baseline, record)
        record["baseline"], ratios = comparison, comparison["ratios"]
        table.add_column("baseline/this")
        if comparison["differences"]:
            table.caption = f"not the same as the baseline: {'; '.join(comparison['differences'])}"
    for name, cells in rows.items():
        ratio = [number(ratios.get(name))] if arguments.baseline else []
        empty = [""] * (len(columns) - 1 - len(cells))
        table.add_row(name, *cells, *empty, *ratio)
    console().print(table)
    line = json.dumps(record)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(line + "\n")
    print(line, flush=True)


def number(value: float | None, digits: int = 2) -> str:
    """Return a table's cell; a dash for what isn't known."""
    return "-" if value is None else f"{value:.{digits}f}"


def read_baseline(path: Path) -> dict[str, Any]:
    """Return an earlier result: of a JSON file, or of saved output, whose last line is one."""
    try:
        record = json.loads(path.read_text().strip().rpartition("\n")[2])
        return {"overrides": [], "versions": {}, **record, "measures": record["measures"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"--baseline: {path} holds no result ({error}); give a file that --json wrote, or the "
            "saved output of a benchmark, whose last line is its result"
        ) from error


def compare(baseline: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many times as long everything took in the baseline, and what else is different."""
    ratios = {
        name: baseline["measures"][name] / seconds
        for name, seconds in record["measures"].items()
        if name in baseline["measures"] and seconds
    }
    changes = [
        (key, baseline.get(key), record[key]) for key in ("benchmark", "device", "overrides")
    ]
    changes += [
        (package, baseline["versions"].get(package), now)
        for package, now in record["versions"].items()
    ]
    differences = [f"{key} was {then}, is {now}" for key, then, now in changes if then != now]
    return {"ratios": ratios, "differences": differences}
