"""A sweep's share of the machine: how many cells, which device, which number is free."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from mosaickd.parallel import SLOTS, at_once, device_of, share_of_machine, slot
from omegaconf import OmegaConf

JOBLIB = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"}
LOCAL = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"}
SLURM = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"}
BASIC = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}

HOLD = """
import sys
from pathlib import Path
from mosaickd.parallel import slot
with slot(Path(sys.argv[1])) as number:
    print(number, flush=True)
    sys.stdin.read()
"""


def hydra(launcher: dict[str, Any], batch: int | None = None, mode: str = "MULTIRUN") -> Any:
    sweeper = {"max_batch_size": batch}
    return OmegaConf.create({"mode": RunMode[mode], "launcher": launcher, "sweeper": sweeper})


@pytest.mark.parametrize(
    ("launcher", "cells"),
    [
        ({**JOBLIB, "n_jobs": 3}, 3),
        ({**JOBLIB, "n_jobs": None}, 1),
        ({**JOBLIB, "n_jobs": -1}, 8),
        ({**JOBLIB, "n_jobs": -2}, 7),
        ({**JOBLIB, "n_jobs": -20}, 1),
        (LOCAL, 1),
        (SLURM, None),
        (BASIC, None),
    ],
)
def test_how_many_cells_share_a_machine_of_eight_cores(
    launcher: dict[str, Any], cells: int | None
) -> None:
    assert at_once(hydra(launcher), 8) == cells
    assert at_once(hydra(launcher, mode="RUN"), 8) is None, "no sweep, no launcher"


def test_submitit_runs_a_batch_at_a_time() -> None:
    assert at_once(hydra(LOCAL, batch=4), 8) == 4


def test_cells_take_devices_in_turn_unless_one_was_asked_for() -> None:
    assert [device_of(n, "auto", 3) for n in range(5)] == [f"cuda:{i}" for i in (0, 1, 2, 0, 1)]
    assert device_of(1, "cuda", 2) == "cuda:1"
    assert device_of(3, "cuda:1", 4) == "cuda:1"
    assert device_of(3, "cpu", 4) == "cpu"
    for count in (0, 1):
        assert device_of(3, "auto", count) == "auto"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_each_process_has_the_lowest_free_number_and_a_kill_frees_it(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    def hold() -> int:
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        assert started[-1].stdout
        return int(started[-1].stdout.readline())

    assert [hold() for _ in range(3)] == [0, 1, 2]
    started[1].kill()
    started[1].wait()
    assert hold() == 1
    with slot(tmp_path) as own:
        assert own == 3
    started[0].kill()
    started[0].wait()
    with slot(tmp_path) as own:
        assert own == 3, "a process keeps its number, and so its device"
    assert hold() == 0


def test_a_cell_computes_on_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from mosaickd.engine import terminal

    monkeypatch.setenv(SLOTS, str(tmp_path))
    monkeypatch.setattr("mosaickd.parallel.available_cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(terminal, "bars", True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra({**JOBLIB, "n_jobs": 4}))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        cfg = OmegaConf.create({"device": "auto"})
        with share_of_machine(cfg):
            assert cfg.device == "cuda:0"
            assert torch.get_num_threads() == 1
            assert not terminal.bars
        torch.set_num_threads(4)
        monkeypatch.setattr(HydraConfig, "get", lambda: hydra(BASIC))
        cfg = OmegaConf.create({"device": "auto"})
        with share_of_machine(cfg):
            assert cfg.device == "auto", "a run that has the machine to itself"
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
