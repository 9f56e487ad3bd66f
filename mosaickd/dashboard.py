"""python -m mosaickd.dashboard --entity E --project P [--name NAME] [--dry-run]

A workspace of Weights & Biases that fits the runs of every method: its panels go by the names that
`metric_names` has. Runs are grouped by what they distil and by method, so that seeds are averaged.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mosaickd import metric_names
from mosaickd.account import has_api_key, server
from mosaickd.errors import UserError, printable
from mosaickd.programs import ending
from mosaickd.analysis.labels import short
from mosaickd.analysis.table1 import table1

NAME = "MosaicKD"

#: Who plays, and in which methods; a method of one's own may have others.
PLAYERS = {
    "discriminator": "",
    "generator": "",
    "student": "",
    "images": " (DeepInversion optimises them)",
    "head": " (SSKD)",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Save the workspace, or print it; exit with 1 and a message where that can't be done."""
    parser = argparse.ArgumentParser(
        prog="python -m mosaickd.dashboard",
        description="Build a workspace at Weights & Biases for the runs of a project: accuracy, "
        "the paper's Table 1, losses by player, synthetic images, speed. Each call saves a view.",
    )
    parser.add_argument("--entity", required=True, help="the user or team that the project is of")
    parser.add_argument(
        "--project", default="mosaickd", help="as tracker.project= says (%(default)s)"
    )
    parser.add_argument("--name", default=NAME, help="of the view (%(default)s)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the view as JSON; needs no account, no network",
    )
    arguments = parser.parse_args(argv)
    with ending():
        view = workspace(arguments.entity, arguments.project, arguments.name)
        if arguments.dry_run:
            print(json.dumps(spec(view), indent=2))
        else:
            print(save(view))


def packages() -> tuple[Any, Any, Any]:
    """wandb-workspaces: its workspaces, its panels, its expressions."""
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
        from wandb_workspaces import expr
    except ImportError as error:
        raise UserError(
            f'wandb-workspaces can\'t be imported ({error}): pip install "mosaickd[dashboard]"'
        ) from error
    return workspaces, panels, expr


# ------------------------------------------------------------------------------ the view


def workspace(entity: str, project: str, name: str = NAME) -> Any:
    """The whole view. Its x-axis is W&B's step, which is a run's: iterations so far."""
    workspaces, _, expr = packages()
    try:
        return workspaces.Workspace(
            entity=entity,
            project=project,
            name=name,
            sections=[
                workspaces.Section(
                    name=title,
                    panels=panels,
                    is_open=opened,
                    layout_settings=workspaces.SectionLayoutSettings(
                        columns=min(3, len(panels)), rows=1
                    ),
                )
                for title, panels, opened in sections()
            ],
            settings=workspaces.WorkspaceSettings(x_axis="Step", max_runs=20),
            runset_settings=workspaces.RunsetSettings(
                groupby=[expr.Config("cell"), expr.Metric("JobType")],
                pinned_columns=[
                    f"summary:{metric}"
                    for metric in (metric_names.TOP1, metric_names.BEST, metric_names.TEACHER)
                ],
            ),
        )
    except ValueError as error:  # a name with emoji
        raise UserError(f"W&B refuses the view's name {name!r}: {_reason(error)}") from error


def sections() -> Iterator[tuple[str, list[Any], bool]]:
    """Title, panels, and whether it is open at first."""
    _, p, _ = packages()
    yield (
        "Accuracy",
        [
            curve("Accuracy, top-1", metric_names.TOP1, "%"),
            curve("Accuracy, top-5", metric_names.TOP5, "%"),
            curve("Best top-1 so far", metric_names.BEST, "%"),
        ],
        True,
    )
    yield (
        "Table 1",
        [
            p.BarPlot(
                title="Last top-1, by cell and method (mean over seeds)",
                metrics=[metric_names.TOP1],
                title_x="%",
                max_bars_to_show=100,
            ),
            p.MarkdownPanel(markdown=papers_numbers()),
        ],
        True,
    )
    for player, where in PLAYERS.items():
        known = re.escape(player)
        yield (
            f"{player.capitalize()}{where}",
            [
                matching("Losses", f"^{metric_names.LOSS}/{known}/"),
                matching(
                    "Weighted losses: what is minimised", f"^{metric_names.WEIGHTED}/{known}/"
                ),
                curve("Learning rate", metric_names.learning_rate(player)),
            ],
            player in ("generator", "student"),
        )
    yield (
        "Fakes",
        [
            curve("Classes that the teacher sees", metric_names.FAKE_CLASSES_SEEN, "classes"),
            curve("How sure it is of them", metric_names.FAKE_CONFIDENCE, "mean probability"),
            p.MediaBrowser(
                title="How many are taken for each class", media_keys=[metric_names.FAKE_CLASSES]
            ),
        ],
        True,
    )
    samples = p.MediaBrowser(
        title="Synthetic images beside those it trains on",
        media_keys=[metric_names.SAMPLES],
        mode="gallery",
        gallery_axis="step",
        num_columns=1,
    )
    yield ("Samples", [samples], True)
    table = p.WeavePanelSummaryTable(table_name=metric_names.PER_CLASS)
    yield ("Accuracy by class", [table], False)
    yield (
        "Speed and memory",
        [
            curve("Seconds an iteration", metric_names.SECONDS_PER_STEP, "s"),
            curve("Images a second", metric_names.IMAGES_PER_SECOND, "images/s"),
            curve("Peak memory", metric_names.PEAK_MEMORY, "MB"),
        ],
        False,
    )


def curve(title: str, metric: str, unit: str | None = None) -> Any:
    """One metric over the iterations."""
    _, p, _ = packages()
    return p.LinePlot(title=title, x="Step", y=[metric], title_x="step", title_y=unit)


def matching(title: str, pattern: str) -> Any:
    """All metrics whose names match, whatever a method calls its losses."""
    _, p, _ = packages()
    return p.LinePlot(title=title, x="Step", metric_regex=pattern, title_x="step")


def papers_numbers() -> str:
    """Table 1 as Markdown, a table for each source of images."""
    table = table1()
    pairs = [pair.replace("-", " to ") for pair in table.pairs]
    lines = ["**Table 1 of the paper**: top-1 accuracy of the student on CIFAR-100, %"]
    for block in table.blocks:
        lines += ["", f"| {block} | {' | '.join(pairs)} |", f"| --- |{' ---: |' * len(pairs)}"]
        for (method, data), row in table.rows.items():
            if data == block:
                numbers = (f"{row[pair]:.2f}" for pair in table.pairs)
                lines.append(f"| {short(method)} | {' | '.join(numbers)} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------ where it goes


def spec(view: Any) -> dict[str, Any]:
    """What `save` would send."""
    model = view._to_model()
    return {
        "entity": model.entity,
        "project": model.project,
        "name": model.display_name,
        "spec": json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }


def save(view: Any) -> str:
    """As a new view. -> its address. Raises UserError, also where nobody answers."""
    if not has_api_key():
        raise UserError(
            f"there is no API key for {server()}: `wandb login`, or WANDB_API_KEY. --dry-run "
            "prints the view without one"
        )
    try:
        view.save()
        return str(view.url)
    except Exception as error:  # of wandb's transports, each its own
        raise UserError(
            f"{server()} did not take the view for {view.entity}/{view.project}: {_reason(error)}. "
            "Check --entity and --project, the API key and the network"
        ) from error


def _reason(error: Exception) -> str:
    return printable(str(error) or type(error).__name__).rstrip(".")


if __name__ == "__main__":
    main()
