"""What a config's sections need, and a user's own beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import compose_config, composing
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from mosaickd.config import schema as config
from mosaickd.config.validation import validate


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("scratch", {"student"}),
        ("kd", {"student", "teacher"}),
        (
            "mosaic",
            {"student", "teacher", "generator", "discriminator", "normalize", "latents",
             "batch_size", "gather"},
        ),
    ],
)  # fmt: skip
def test_a_methods_signature_says_what_it_needs(method: str, parts: set[str]) -> None:
    with composing():
        cfg = compose_config(f"method={method}")
    assert config.required_inputs(cfg) == parts
    assert config.training_source(cfg) == ("dataset" if method == "scratch" else "ood")


def test_models_and_data_sets_of_a_config_dir_become_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own files: `python run.py --config-dir mine teacher=tiny ood=pets`."""
    (tmp_path / "model").mkdir()
    (tmp_path / "dataset").mkdir()
    (tmp_path / "model" / "tiny.yaml").write_text(
        "_target_: mosaickd.models.wresnet.WideResNet\n"
        "name: tiny\ncheckpoint: null\ndepth: 10\nwiden_factor: 1\n"
    )
    (tmp_path / "dataset" / "pets.yaml").write_text(
        "defaults: [folder, _self_]\nname: pets\nroot: here\n"
    )
    monkeypatch.setattr("sys.argv", ["run.py", "--config-dir", str(tmp_path)])
    config.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        overrides = [f"hydra.searchpath=[pkg://sweeps,file://{tmp_path}]"]
        cfg = compose("config", overrides=[*overrides, "teacher=tiny", "student=tiny", "ood=pets"])
    assert cfg.teacher.name == cfg.student.name == "tiny"
    assert cfg.ood.name == "pets"
    validate(cfg)
