"""Whether a run has its method's own recipe: result.json says so, and the report goes by it."""

from __future__ import annotations

import json

from conftest import Cli, Tiny, read_json

SMALL_SET = """
defaults: [letters, _self_]
name: small
reader: {train_images: 48, test_images: 48}
recipe: {epochs: 1, batch_size: 16}
"""
PLAIN = [
    "method=scratch", "student=wrn16_1", "seed=3", "device=cpu", "tracker=none",
    "train.precision=fp32", "train.compile=false", "train.log_every=1", "teachers_dir=mine",
    "hydra.run.dir=run",
]  # fmt: skip


def test_only_runs_by_the_recipe_stand_in_the_papers_table(cli: Cli, tiny: Tiny) -> None:
    own = cli.folder / "conf" / "dataset"
    own.mkdir(parents=True)
    (own / "small.yaml").write_text(SMALL_SET)
    home = ["--config-dir", str(own.parent), "dataset=small", f"dataset.root={tiny.glyphs}"]
    cli(*home, *PLAIN)
    result = read_json(cli.folder / "run" / "result.json")
    assert (result["status"], result["steps"], result["variant"]) == ("finished", 3, None)

    # ---- A cell of the paper's table, and one that is none: as if they had run for days.
    cell = {"method": "kd", "dataset": "cifar100", "ood": "cifar10", "teacher": "wrn40_2"}
    for name, number, variant in (("a", 47.11, None), ("b", 33.22, "ood.limit=500")):
        accuracy = result["accuracy"] | {"last": number, "best": number}
        changed = result | cell | {"accuracy": accuracy, "variant": variant}
        folder = cli.folder / "days" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(changed | {"teacher_accuracy": 75.0}))
    shown = cli.report("days")
    table, _, others = shown.partition("other settings")
    assert "Table 1" in table
    assert "47.47" in table, "the paper's number"
    assert "47.11" in table
    assert "33.22" not in table
    assert "33.22 %" in others
    assert "ood.limit=500" in others
    assert "47.11" not in others
