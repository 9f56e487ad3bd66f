"""sweeps/wandb: what W&B deals to its agents, and what an agent's commands do."""

from __future__ import annotations

import json
import os
import queue
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from composing import cells, check, composing, own
from conftest import Cli, Tiny, read_json
from omegaconf import DictConfig, OmegaConf
from weights_and_biases import offline_runs

from mosaickd import metric_names
from mosaickd.config import schema as config
from mosaickd.config.run_key import run_key, variant
from mosaickd.config.schema import SWEEPS

FILES = sorted((SWEEPS / "wandb").glob("*.yaml"))
GRIDS = [path for path in FILES if path.stem.startswith("table1_")]
BAYES = SWEEPS / "wandb" / "bayes_losses.yaml"
SLOW = [pytest.mark.slow]
LOSSES = ("adv", "align", "local", "balance")


def read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    return content


def agents_command(
    path: Path, chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> tuple[list[str], dict[str, str]]:
    """The command that wandb's own agent would start for a trial, and its environment."""
    from wandb import wandb_agent

    monkeypatch.chdir(folder)  # where an agent leaves the trial's parameters
    for name in ("DIR", "RUN_ID", "SWEEP_PARAM_PATH"):  # it sets these
        monkeypatch.setenv(f"WANDB_{name}", "")
        monkeypatch.delenv(f"WANDB_{name}")
    monkeypatch.setenv("WANDB_SWEEP_ID", "swp1")
    started: list[tuple[list[str], dict[str, str]]] = []

    class Process:
        def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
            started.append((command, env))

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
    definition = read(path)
    agent = wandb_agent.Agent(None, queue.Queue(), sweep_id="swp1")
    agent._sweep_command = definition["command"]
    arguments = {name: {"value": value} for name, value in chosen.items()}
    agent._command_run({"run_id": "trial1", "program": definition["program"], "args": arguments})
    ((command, environment),) = started
    return command, environment


def overrides(command: list[str]) -> list[str]:
    assert command[:3] == ["/usr/bin/env", "python", "run.py"]
    return [argument for argument in command[3:] if argument != "-m"]


def grid(path: Path) -> list[dict[str, Any]]:
    """Every trial of a grid."""
    parameters = read(path)["parameters"]
    values = [p.get("values", [p.get("value")]) for p in parameters.values()]
    return [dict(zip(parameters, chosen, strict=True)) for chosen in product(*values)]


@pytest.fixture(scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


# ------------------------------------------------------------------------------ the definitions


def schema() -> dict[str, Any]:
    """W&B's own, of its package `sweeps`, which can't be installed: ours has that name, too."""
    folder = os.environ.get("MOSAICKD_WANDB_SWEEPS")
    if not folder:
        pytest.skip(
            "needs MOSAICKD_WANDB_SWEEPS=DIR, made by: pip install --no-deps --target DIR sweeps"
        )
    content = json.loads((Path(folder) / "sweeps" / "config" / "schema.json").read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_definition_fits_wandbs_own_schema(path: Path) -> None:
    import jsonschema

    validator = jsonschema.Draft7Validator(schema())
    assert [error.message for error in validator.iter_errors(read(path))] == []
    broken = read(path) | {"method": "guess"}
    assert list(validator.iter_errors(broken)), "the schema refuses something"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_definition_opens_with_its_commands_and_asks_for_what_a_summary_holds(path: Path) -> None:
    text, definition = path.read_text(), read(path)
    assert text.startswith(f"# wandb sweep sweeps/wandb/{path.name} ")
    assert "# wandb agent " in text
    assert definition["name"] == path.stem
    assert definition["project"] == OmegaConf.load(config.CONF / "tracker/wandb.yaml").project
    assert definition["metric"] == {"name": metric_names.TOP1, "goal": "maximize"}
    assert "early_terminate" not in definition


def test_every_sweep_of_the_papers_table_can_be_dealt_by_wandb() -> None:
    tables = {path.stem for path in (SWEEPS / "sweep").glob("table1_*.yaml")}
    assert tables
    assert {path.stem for path in GRIDS} == tables
    assert {*FILES} == {*GRIDS, BAYES}


@pytest.mark.usefixtures("_composing")
@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_a_grid_has_the_cells_of_the_hydra_sweep(path: Path) -> None:
    """In the same order, and in the same folders."""
    trials = grid(path)
    assert all(trial.pop("seed") == 0 for trial in trials)
    mine = [{f"{name}={value}" for name, value in trial.items()} for trial in trials]
    assert mine == [set(cell) - {f"sweep={path.stem}"} for cell in cells(path.stem)]


# ------------------------------------------------------------------------------ the commands


@pytest.mark.usefixtures("_composing")
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=SLOW) for path in GRIDS],
    ids=[path.stem for path in GRIDS],
)
def test_an_agents_command_runs_a_cell_of_the_table(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The last of its cells, with the settings and the folder that it has in the Hydra sweep."""
    command, environment = agents_command(path, grid(path)[-1], monkeypatch, tmp_path)
    assert environment["WANDB_RUN_ID"] == "trial1"
    asked = check(*overrides(command))
    assert asked.tracker._target_.endswith("WandbTracker")
    assert variant(asked) is None, "the method's own recipe"
    known = check(*cells(path.stem)[-1])
    assert run_key(own(asked)) == run_key(own(known))
    assert asked.hydra.sweep.dir == known.hydra.sweep.dir
    assert asked.hydra.sweep.subdir == known.hydra.sweep.subdir


@pytest.mark.usefixtures("_composing")
@pytest.mark.parametrize("end", ["min", "max"])
def test_a_trial_over_the_losses_has_its_weights_and_a_folder_of_its_own(
    end: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parameters = read(BAYES)["parameters"]
    assert {name for name in parameters if name != "seed"} == {f"method.{key}" for key in LOSSES}
    chosen = {name: p.get(end, p.get("value")) for name, p in parameters.items()}
    command, environment = agents_command(BAYES, chosen, monkeypatch, tmp_path)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        monkeypatch.setenv(name, environment[name])
    cfg = check(*overrides(command))
    assert {key: cfg.method[key] for key in LOSSES} == {k: chosen[f"method.{k}"] for k in LOSSES}
    assert cfg.hydra.run.dir == "outputs/bayes_losses/swp1/trial1"
    paper = papers(check("method=mosaic"))
    for key in LOSSES:
        low, high = (parameters[f"method.{key}"][end] for end in ("min", "max"))
        assert low * high == pytest.approx(paper[key] ** 2), "around the paper's, on a log scale"


def papers(cfg: DictConfig) -> dict[str, float]:
    return {key: cfg.method[key] for key in LOSSES}


# ------------------------------------------------------------------------------ real trials


def trial(folder: Path, run_id: str, **chosen: Any) -> dict[str, str]:
    """The environment in which an agent starts a run, without a server."""
    parameters = folder / f"config-{run_id}.yaml"
    given = {name: {"value": value} for name, value in chosen.items()}
    parameters.write_text(yaml.safe_dump({"wandb_version": 1, **given}))
    return {
        **{"WANDB_SWEEP_ID": "swp1", "WANDB_RUN_ID": run_id, "WANDB_PROJECT": "elsewhere"},
        **{"WANDB_MODE": "offline", "WANDB_SWEEP_PARAM_PATH": str(parameters)},
    }


@pytest.mark.slow
def test_a_trial_is_known_by_its_agents_id_and_a_finished_one_is_told_again(
    cli: Cli, tiny: Tiny
) -> None:
    """A grid's cell: first by one trial, then by another one. Its teacher is a run of its own."""
    chosen = {"method": "mosaic", "seed": 0}
    more = ["-m", "sweep=table1_cifar10", "pair=wrn40_2-wrn16_1", "train.steps=4",
            "train.eval_every=2", "train.log_every=1", "tracker=wandb", "ood=strokes",
            *(f"{name}={value}" for name, value in chosen.items())]  # fmt: skip
    command = ["-m", *(a for a in tiny.experiment(cli.folder, *more) if a != "-m")]
    folder = cli.folder / "outputs/table1_cifar10/mosaic"
    first = cli(*command, env=trial(cli.folder, "trial1", **chosen))
    (result,) = folder.rglob("seed0/result.json")
    assert read_json(result)["status"] == "finished", first.text
    assert "WARNING" not in first.text
    second = cli(*command, env=trial(cli.folder, "trial2", **chosen))
    assert "nothing to do" in second.text
    assert "WARNING" not in second.text
    teachers = [r for r in offline_runs(cli.folder) if r["group"] == "teachers"]
    one, two = (r for r in offline_runs(cli.folder) if r["group"] != "teachers")
    assert len(teachers) == 1
    assert teachers[0]["id"] not in ("trial1", "trial2")
    assert (one["id"], two["id"]) == ("trial1", "trial2")
    for run in (one, two):
        assert (run["project"], run["group"]) == ("elsewhere", "table1_cifar10")
        assert run["config"]["method"] == "mosaic", "as the sweep knows it"
        assert run["config"]["method.balance"] == 10
        assert [row["_step"] for row in run["history"]] == [1, 2, 3, 4]
        assert run["summary"]["status"] == "finished"
        assert run["summary"]["accuracy/top1"] == read_json(result)["accuracy"]["last"]
        assert run["summary"]["accuracy/per_class/nrows"] == 24
