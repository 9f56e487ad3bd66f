"""python -m mosaickd.dashboard --entity E --project P [--name NAME] [--dry-run]

Build a workspace of Weights & Biases that fits the runs of every method: its panels go by the names
of `metric_names`. Runs are grouped by what they distil and by method, so that seeds are averaged.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from typing import Any

from mosaickd import metric_names as names
from mosaickd.analysis.labels import short
from mosaickd.analysis.table1 import table1
from mosaickd.cli import main_guard
from mosaickd.errors import UserError, printable
from mosaickd.utils.account import has_api_key, server

#: Sections of losses: each player, and what its heading adds. A user's method may have others.
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
    parser.add_argument("--entity", required=True, help="the user or team that owns the project")
    parser.add_argument("--project", default="mosaickd", help="tracker.project (%(default)s)")
    parser.add_argument("--name", default="MosaicKD", help="of the view (%(default)s)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the view as JSON; needs no account, no network",
    )
    arguments = parser.parse_args(argv)
    with main_guard():
        view = build_workspace(arguments.entity, arguments.project, arguments.name)
        print(json.dumps(spec(view), indent=2) if arguments.dry_run else save(view))


def build_workspace(entity: str, project: str, name: str) -> Any:
    """Return the view. Its x-axis is W&B's step: the iterations of a run.

    Raises UserError without wandb-workspaces, and for a name that W&B refuses.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
        from wandb_workspaces import expr
    except ImportError as error:
        raise UserError(
            f'wandb-workspaces can\'t be imported ({error}): pip install "mosaickd[dashboard]"'
        ) from error
    columns = (names.TOP1, names.BEST, names.TEACHER)
    try:
        return workspaces.Workspace(
            entity=entity,
            project=project,
            name=name,
            sections=[
                workspaces.Section(
                    name=title,
                    panels=content,
                    is_open=is_open,
                    layout_settings=workspaces.SectionLayoutSettings(
                        columns=min(3, len(content)), rows=1
                    ),
                )
                for title, is_open, content in build_sections(panels)
            ],
            settings=workspaces.WorkspaceSettings(x_axis="Step", max_runs=20),
            runset_settings=workspaces.RunsetSettings(
                groupby=[expr.Config("cell"), expr.Metric("JobType")],
                pinned_columns=[f"summary:{metric}" for metric in columns],
            ),
        )
    except ValueError as error:  # a name with emoji
        raise UserError(f"W&B refuses the view's name {name!r}: {_reason(error)}") from error


def build_sections(p: Any) -> list[tuple[str, bool, list[Any]]]:
    """Return title, whether it is open at first, and panels of each section.

    p: wandb-workspaces' module of panels.
    """

    def curve(title: str, metric: str, unit: str | None = None) -> Any:
        return p.LinePlot(title=title, x="Step", y=[metric], title_x="step", title_y=unit)

    def losses(title: str, kind: str, player: str) -> Any:
        """Match whatever a method calls its losses."""
        pattern = f"^{kind}/{re.escape(player)}/"
        return p.LinePlot(title=title, x="Step", metric_regex=pattern, title_x="step")

    accuracy = [
        curve("Accuracy, top-1", names.TOP1, "%"),
        curve("Accuracy, top-5", names.TOP5, "%"),
        curve("Best top-1 so far", names.BEST, "%"),
    ]
    bars = p.BarPlot(
        title="Last top-1, by cell and method (mean over seeds)",
        metrics=[names.TOP1],
        title_x="%",
        max_bars_to_show=100,
    )
    players = [
        (
            f"{player.capitalize()}{remark}",
            player in ("generator", "student"),
            [
                losses("Losses", names.LOSS, player),
                losses("Weighted losses: what is minimised", names.WEIGHTED, player),
                curve("Learning rate", names.learning_rate(player)),
            ],
        )
        for player, remark in PLAYERS.items()
    ]
    fakes = [
        curve("Classes that the teacher sees", names.FAKE_CLASSES_SEEN, "classes"),
        curve("How sure it is of them", names.FAKE_CONFIDENCE, "mean probability"),
        p.MediaBrowser(title="How many are taken for each class", media_keys=[names.FAKE_CLASSES]),
    ]
    samples = p.MediaBrowser(
        title="Synthetic images beside those it trains on",
        media_keys=[names.SAMPLES],
        mode="gallery",
        gallery_axis="step",
        num_columns=1,
    )
    speed = [
        curve("Seconds an iteration", names.SECONDS_PER_STEP, "s"),
        curve("Images a second", names.IMAGES_PER_SECOND, "images/s"),
        curve("Peak memory", names.PEAK_MEMORY, "MB"),
    ]
    return [
        ("Accuracy", True, accuracy),
        ("Table 1", True, [bars, p.MarkdownPanel(markdown=paper_table())]),
        *players,
        ("Fakes", True, fakes),
        ("Samples", True, [samples]),
        ("Accuracy by class", False, [p.WeavePanelSummaryTable(table_name=names.PER_CLASS)]),
        ("Speed and memory", False, speed),
    ]


def paper_table() -> str:
    """Return the paper's Table 1 as Markdown, a table for each source of images."""
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


def spec(view: Any) -> dict[str, Any]:
    """Return what `save` would send."""
    model = view._to_model()
    return {
        "entity": model.entity,
        "project": model.project,
        "name": model.display_name,
        "spec": json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }


def save(view: Any) -> str:
    """Save a new view and return its address. Raises UserError, also where nobody answers."""
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
