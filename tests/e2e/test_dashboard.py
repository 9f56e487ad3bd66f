"""python -m mosaickd.dashboard: what it prints, and what it tells a server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, Cli
from weights_and_biases import Server, account, forget_account

from mosaickd import dashboard, metric_names
from mosaickd.analysis.table1 import table1


def call(
    cli: Cli, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Without network, account or home, unless `env` says otherwise."""
    command = [sys.executable, "-m", "mosaickd.dashboard", *arguments]
    environment = cli.environment() | {"PYTHONPATH": str(REPO)} | dict(env or {})
    done = subprocess.run(
        command, cwd=cli.folder, env=environment, capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    return done


def panels(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    sections = spec["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def shown(panel: dict[str, Any]) -> set[str]:
    """The metrics that a panel names or matches."""
    config = panel["config"]
    names = {*config.get("metrics", []), *config.get("mediaKeys", [])}
    if pattern := config.get("metricRegex"):
        names |= {name for name in LOGGED if re.match(pattern, name)}
    return names


#: As in `metric_names`, of players that there are.
LOGGED = {
    f"{kind}/{player}/any"
    for kind in ("loss", "weighted")
    for player in ("discriminator", "generator", "student", "images", "head")
}


def test_a_dry_run_prints_the_view_without_network_or_account(cli: Cli) -> None:
    done = call(cli, "--entity", "me", "--project", "mine", "--name", "Ours", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    view = json.loads(done.stdout)
    assert (view["entity"], view["project"], view["name"]) == ("me", "mine", "Ours")
    sections = panels(view["spec"])
    titles = list(sections)
    assert titles[:5] == ["Accuracy", "Table 1", "Discriminator", "Generator", "Student"]
    assert {"Fakes", "Samples", "Accuracy by class", "Speed and memory"} <= set(titles)

    for player in ("discriminator", "generator", "student"):
        names = {name for panel in sections[player.capitalize()] for name in shown(panel)}
        assert names == {f"loss/{player}/any", f"weighted/{player}/any", f"lr/{player}"}
    every = [panel for section in sections.values() for panel in section]
    names = {name for panel in every for name in shown(panel)}
    said = {name for name in metric_names.METRICS if "PLAYER" not in name}
    of_a_summary = {metric_names.BEST_STEP, metric_names.TEACHER, metric_names.PER_CLASS}
    assert said - of_a_summary <= names, "a metric that no panel shows"
    assert {n for n in names if not n.startswith(("loss/", "weighted/", "lr/"))} <= said
    assert metric_names.PER_CLASS in json.dumps(sections["Accuracy by class"])
    curves = [panel["config"] for panel in every if "Line Plot" in panel["viewType"]]
    assert curves
    assert {config["xAxis"] for config in curves} == {"_step"}
    (runs,) = view["spec"]["section"]["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["cell.value", "jobType"]

    (paper,) = (p["config"]["value"] for p in sections["Table 1"] if "value" in p["config"])
    table = table1()
    for row in table.rows.values():
        assert " | ".join(f"{row[pair]:.2f}" for pair in table.pairs) in paper
    assert paper.count("\n| ") == len(table.rows) + 2 * len(table.blocks)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb-workspaces' own
@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--project", "mine"], "wandb login"), (["--name", "\N{ROCKET}", "--dry-run"], "name")],
)
def test_what_can_not_be_saved_is_refused_in_words(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No account; a name with an emoji."""
    forget_account(tmp_path, monkeypatch)
    with pytest.raises(SystemExit, match="1"):
        dashboard.main(["--entity", "me", *arguments])
    assert re.search(f"error: .*{words}", capsys.readouterr().err)


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit, match="1"):
        dashboard.main(["--entity", "me", "--dry-run"])
    assert 'pip install "mosaickd[dashboard]"' in capsys.readouterr().err


@pytest.mark.slow
def test_a_view_is_saved_or_the_trouble_is_told(cli: Cli) -> None:
    with closing(Server()) as server:
        command = ("--entity", "me", "--project", "mine")
        done = call(cli, *command, env=account(server.url))
        assert done.returncode == 0, done.stderr
        (view,) = server.views
        assert (view["entityName"], view["projectName"]) == ("me", "mine")
        assert view["displayName"] == "MosaicKD"
        assert "Generator" in panels(json.loads(view["spec"]))
        assert f"/me/mine?nw={view['name'].removeprefix('nw-').removesuffix('-v')}" in done.stdout
        server.fault = 401
        done = call(cli, *command, env=account(server.url))
        assert done.returncode == 1
        assert f"error: {server.url} did not take the view for me/mine" in done.stderr
        assert "--entity" in done.stderr
