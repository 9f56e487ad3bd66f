"""A job's share of the machine, where joblib runs several at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mosaickd import parallel
from mosaickd.engine import terminal
from mosaickd.engine.interruption import Interrupted


def hydra(job: int = 0, **launcher: Any) -> Any:
    return OmegaConf.create({"launcher": launcher, "job": {"num": job}})


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend eight cores and three CUDA devices."""
    monkeypatch.setattr(parallel, "available_cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(terminal, "bars", True)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("n_jobs", "jobs"), [(3, 3), (None, 1), (-1, 8), (-2, 7), (-20, 1)])
def test_how_many_jobs_joblib_runs_at_a_time(n_jobs: int | None, jobs: int) -> None:
    assert parallel.concurrent_jobs(hydra(n_jobs=n_jobs)) == jobs


def test_jobs_divide_threads_and_take_devices_in_turn_unless_one_was_asked_for() -> None:
    devices = []
    for job, asked in enumerate(["auto", "cuda", "auto", "auto", "cuda:1", "cpu"]):
        cfg = OmegaConf.create({"device": asked})
        parallel.take_share(cfg, hydra(job, n_jobs=4))
        devices.append(cfg.device)
    assert devices == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1", "cpu"]
    assert torch.get_num_threads() == 2
    assert not terminal.bars


def test_a_run_that_has_the_machine_to_itself_takes_all_of_it() -> None:
    cfg = OmegaConf.create({"device": "auto"})
    parallel.take_share(cfg, hydra())
    assert (cfg.device, torch.get_num_threads(), terminal.bars) == ("auto", 8, True)


def test_no_job_begins_once_the_sweep_is_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(parallel.STOP_FILE, str(tmp_path / "stop"))
    cfg = OmegaConf.create({"device": "auto"})
    parallel.take_share(cfg, hydra(n_jobs=2))
    (tmp_path / "stop").touch()
    with pytest.raises(Interrupted):
        parallel.take_share(cfg, hydra(n_jobs=2))
