"""What a config's sections ask for, and a user's own files beside ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import compose_config, composed, composing, own

from mosaickd.config.schema import required_inputs, training_source
from mosaickd.config.validation import validate
from mosaickd.errors import UserError


@pytest.mark.parametrize(
    ("method", "inputs"),
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
def test_a_methods_signature_says_what_it_needs(method: str, inputs: set[str]) -> None:
    with composing():
        cfg = compose_config(f"method={method}")
    assert required_inputs(cfg) == inputs
    assert training_source(cfg) == ("dataset" if method == "scratch" else "ood")


def test_files_of_a_config_dir_become_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own: `python run.py --config-dir mine teacher=tiny ood=pets`."""
    files = {
        "model/tiny.yaml": "_target_: mosaickd.models.wresnet.WideResNet\n"
        "name: tiny\ncheckpoint: null\ndepth: 10\nwiden_factor: 1\n",
        "dataset/pets.yaml": "defaults: [folder, _self_]\nname: pets\nroot: here\n",
        "experiment/trusting.yaml": "# @package _global_\nallow_targets: [timm]\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    monkeypatch.setattr("sys.argv", ["run.py", "--config-dir", str(tmp_path)])
    with composing():
        mine = f"hydra.searchpath=[pkg://sweeps,file://{tmp_path}]"
        cfg = composed(mine, "teacher=tiny", "student=tiny", "ood=pets", "allow_targets=[timm]")
        assert cfg.teacher.name == cfg.student.name == "tiny"
        assert cfg.ood.name == "pets"
        validate(own(cfg))

        trusting = composed(mine, "experiment=trusting")
        with pytest.raises(UserError, match=r"allow_targets.*on the command line"):
            validate(own(trusting))
