"""Which device a run computes on. CUDA is pretended where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mosaickd.engine.device import begin_compiling, choose_device
from mosaickd.errors import UserError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "local_rank", "expected"),
    [
        ("auto", None, "cuda:0"),
        ("cuda", None, "cuda:0"),
        ("cuda:1", None, "cuda:1"),
        ("auto", 1, "cuda:1"),
        ("cuda", 0, "cuda:0"),
        ("cpu", None, "cpu"),
        ("cpu", 1, "cpu"),
    ],
)
def test_a_cuda_device_has_a_number(name: str, local_rank: int | None, expected: str) -> None:
    """`torch.cuda.set_device` refuses one that hasn't."""
    device = choose_device(name, local_rank)
    assert device == torch.device(expected)
    if device.type == "cuda":
        torch.cuda._utils._get_device_index(device)  # what set_device asks first


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "local_rank", "words"),
    [
        ("cuda:2", None, "cuda:0 to cuda:1"),
        ("auto", 2, "more processes than the 2 CUDA devices"),
        ("cuda:1", 0, "one device for several processes"),
        ("tpu", None, "use auto, cpu, cuda"),
    ],
)
def test_a_device_that_is_not_there(name: str, local_rank: int | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose_device(name, local_rank)


def test_compiled_code_lies_by_processor_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is restored afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    begin_compiling()
    place = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert place.parent == tmp_path / "mosaickd" / "compiled"
    assert len(place.name) == 12
