"""sweeps/wandb: what W&B hands to its agents, and what an agent's commands run."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from composing import cells, check, composing, own
from conftest import Cli, Tiny, read_json
from omegaconf import OmegaConf
from weights_and_biases import offline_runs

from mosaickd import metric_names
from mosaickd.config import schema as config
from mosaickd.config.run_key import run_key, variant
from mosaickd.config.schema import SWEEPS

FILES = sorted((SWEEPS / "wandb").glob("*.yaml"))
GRIDS = [path for path in FILES if path.stem.startswith("table1_")]
BAYES = SWEEPS / "wandb" / "bayes_losses.yaml"
LOSSES = ("adv", "align", "local", "balance")


@pytest.fixture(scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


def read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    return content


def grid(path: Path) -> list[dict[str, Any]]:
    """Every trial of a grid."""
    parameters = read(path)["parameters"]
    return [dict(zip(parameters, chosen, strict=True))
            for chosen in product(*(p["values"] for p in parameters.values()))]  # fmt: skip


def agents_command(
    path: Path, chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> list[str]:
    """The overrides with which wandb's own agent would start a trial, in its environment."""
    from wandb import wandb_agent

    monkeypatch.chdir(folder)  # where an agent leaves the trial's parameters
    for name in ("DIR", "RUN_ID", "SWEEP_PARAM_PATH"):  # it sets these
        monkeypatch.setenv(f"WANDB_{name}", "")
        monkeypatch.delenv(f"WANDB_{name}")
    monkeypatch.setenv("WANDB_SWEEP_ID", "swp1")
    monkeypatch.setattr(wandb_agent, "AgentProcess", SimpleNamespace)
    definition = read(path)
    agent = wandb_agent.Agent(None, queue.Queue(), sweep_id="swp1")
    agent._sweep_command = definition["command"]
    arguments = {name: {"value": value} for name, value in chosen.items()}
    agent._command_run({"run_id": "trial1", "program": definition["program"], "args": arguments})
    monkeypatch.setenv("WANDB_RUN_ID", "trial1")
    command = agent._run_processes["trial1"].command
    assert command[:3] == ["/usr/bin/env", "python", "run.py"]
    return [argument for argument in command[3:] if argument != "-m"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_definition_opens_with_its_commands_and_asks_for_what_a_summary_holds(path: Path) -> None:
    text, definition = path.read_text(), read(path)
    assert text.startswith(f"# wandb sweep sweeps/wandb/{path.name} ")
    assert "# wandb agent " in text
    assert definition["name"] == path.stem
    assert definition["project"] == OmegaConf.load(config.CONF / "tracker/wandb.yaml").project
    assert definition["metric"] == {"name": metric_names.TOP1, "goal": "maximize"}


@pytest.mark.usefixtures("_composing")
def test_every_sweep_of_the_papers_table_is_a_grid_with_the_same_cells_in_order() -> None:
    assert {path.stem for path in GRIDS} == {p.stem for p in SWEEPS.glob("sweep/table1_*.yaml")}
    for path in GRIDS:
        trials = grid(path)
        assert all(trial.pop("seed") == 0 for trial in trials)
        mine = [{f"{name}={value}" for name, value in trial.items()} for trial in trials]
        assert mine == [set(cell) - {f"sweep={path.stem}"} for cell in cells(path.stem)]


@pytest.mark.usefixtures("_composing")
def test_an_agents_command_runs_a_cell_of_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The last of its cells, with the settings and the folder that it has in the Hydra sweep."""
    path = SWEEPS / "wandb" / "table1_cifar10.yaml"
    asked = check(*agents_command(path, grid(path)[-1], monkeypatch, tmp_path))
    assert asked.tracker._target_.endswith("WandbTracker")
    assert variant(asked) is None, "the method's own recipe"
    known = check(*cells(path.stem)[-1])
    assert run_key(own(asked)) == run_key(own(known))
    assert asked.hydra.sweep.dir == known.hydra.sweep.dir
    assert asked.hydra.sweep.subdir == known.hydra.sweep.subdir


@pytest.mark.usefixtures("_composing")
def test_a_trial_over_the_losses_has_its_weights_and_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parameters = read(BAYES)["parameters"]
    chosen = {name: p.get("min", p.get("value")) for name, p in parameters.items()}
    cfg = check(*agents_command(BAYES, chosen, monkeypatch, tmp_path))
    assert {key: cfg.method[key] for key in LOSSES} == {k: chosen[f"method.{k}"] for k in LOSSES}
    assert cfg.hydra.run.dir == "outputs/bayes_losses/swp1/trial1"
    paper = check("method=mosaic").method
    for key in LOSSES:
        low, high = (parameters[f"method.{key}"][end] for end in ("min", "max"))
        assert low * high == pytest.approx(paper[key] ** 2), "around the paper's, on a log scale"


@pytest.mark.slow
def test_a_finished_cell_that_an_agent_asks_for_is_reported_again(cli: Cli, tiny: Tiny) -> None:
    """A grid's cell: run by one trial, then asked for by another one."""

    def trial(run_id: str) -> str:
        parameters = cli.folder / f"config-{run_id}.yaml"
        chosen = {"method": {"value": "mosaic"}, "seed": {"value": 0}}
        parameters.write_text(yaml.safe_dump({"wandb_version": 1, **chosen}))
        env = {"WANDB_SWEEP_ID": "swp1", "WANDB_RUN_ID": run_id, "WANDB_PROJECT": "elsewhere",
               "WANDB_MODE": "offline", "WANDB_SWEEP_PARAM_PATH": str(parameters)}  # fmt: skip
        return cli(*command, env=env).text

    more = ["sweep=table1_cifar10", "pair=wrn40_2-wrn16_1", "method=mosaic", "seed=0",
            "train.steps=4", "train.eval_every=2", "train.log_every=1", "tracker=wandb",
            "ood=strokes"]  # fmt: skip
    command = ["-m", *tiny.experiment(cli.folder, *more)]
    assert "WARNING" not in trial("trial1")
    again = trial("trial2")
    assert "nothing to do" in again
    assert "WARNING" not in again
    (path,) = (cli.folder / "outputs/table1_cifar10/mosaic").rglob("seed0/result.json")
    runs = [r for r in offline_runs(cli.folder) if r["group"] == "table1_cifar10"]
    assert [run["id"] for run in runs] == ["trial1", "trial2"]
    for run in runs:
        assert run["project"] == "elsewhere"
        assert run["config"]["method"] == "mosaic", "as the sweep knows it"
        assert run["config"]["method.balance"] == 10
        assert [row["_step"] for row in run["history"]] == [1, 2, 3, 4]
        assert run["summary"]["status"] == "finished"
        assert run["summary"]["accuracy/top1"] == read_json(path)["accuracy"]["last"]
        assert run["summary"]["accuracy/per_class/nrows"] == 24
