"""A run by its method's own recipe has no variant: result.json says so."""

from __future__ import annotations

import pytest
from conftest import Cli, Tiny, read_json

SMALL_SET = """
defaults: [letters, _self_]
name: small
reader: {train_images: 48, test_images: 48}
recipe: {epochs: 1, batch_size: 16}
"""


@pytest.mark.slow
def test_how_it_is_computed_and_watched_makes_it_no_other(cli: Cli, tiny: Tiny) -> None:
    own = cli.folder / "conf" / "dataset"
    own.mkdir(parents=True)
    (own / "small.yaml").write_text(SMALL_SET)
    cli(
        "--config-dir", str(own.parent), "dataset=small", f"dataset.root={tiny.glyphs}",
        "method=scratch", "student=wrn16_1", "seed=3", "device=cpu", "tracker=none",
        "train.precision=fp32", "train.compile=false", "train.log_every=1", "teachers_dir=mine",
        "hydra.run.dir=run",
    )  # fmt: skip
    result = read_json(cli.folder / "run" / "result.json")
    assert (result["status"], result["steps"], result["variant"]) == ("finished", 3, None)


@pytest.mark.slow
def test_a_method_of_ones_own_by_the_name_of_ours_is_a_variant(cli: Cli, tiny: Tiny) -> None:
    own = cli.folder / "conf" / "method"
    own.mkdir(parents=True)
    (own / "kd_mine.yaml").write_text("defaults: [kd, _self_]\nname: kd\ntemperature: 1.0\n")
    home = tiny.experiment(cli.folder, "method=kd_mine", f"teacher.checkpoint={tiny.teacher}")
    cli(*home, "train.steps=1", "hydra.run.dir=run", "seed=1")
    assert "method=kd_mine" in read_json(cli.folder / "run" / "result.json")["variant"]
