"""A method is a Python file and a YAML (and its test): here in a package of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from conftest import Tiny, losses, metrics, read_json
from forked import finish

from mosaickd.methods import display_name
from mosaickd.methods.inputs import INPUTS

METHOD = """
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mosaickd.constraints import Positive
from mosaickd.losses import kl_divergence
from mosaickd.methods.base import Batch, Loss, Method, Stream, Turn


@dataclass(kw_only=True, eq=False)
class Everything(Method):
    display_name: ClassVar[str] = "Everything"

{inputs}
    strength: Positive = 1.0

    def __post_init__(self) -> None:
        self.players = {{"student": self.student}}
        self.streams = {{"ood": Stream("ood", augment=True, normalization="dataset")}}
        images = self.normalize(self.generator(self.latents(self.batch_size)))
        self.augment(images)
        torch.rand(1, generator=self.rng)
        assert self.discriminator(images).shape[:2] == (self.batch_size, 1)
        assert self.gather(images).shape == images.shape == (
            self.batch_size, 3, self.image_size, self.image_size
        )
        for role in ("student", "teacher"):
            logits, maps = getattr(self, f"{{role}}_features")(images)
            assert logits.shape == (self.batch_size, self.num_classes)
            assert [m.dim() for m in maps] == 3 * [4]
            _, (vectors,) = getattr(self, f"{{role}}_embedding")(images)
            assert vectors.dim() == 2
        assert len(self.teacher_bn_stats(images)[1][0]) == 4
        assert (self.instances, self.steps) == (64, 2)

    def turns(self, batch: Batch) -> Iterator[Turn]:
        (images,) = batch["ood"]
        with torch.no_grad():
            teacher = self.teacher(images.pixels)
        loss = kl_divergence(self.student(images.pixels), teacher)
        yield Turn("student", {{"mine": Loss(loss, self.strength)}})
"""
YAML = """
# @package _global_
defaults:
  - /generator: dcgan
  - /discriminator: patch
cell: ${dataset.name}-${ood.name}/${teacher.name}-${student.name}
method:
  _target_: mymethods.everything.Everything
  name: everything
  strength: 2.0
players:
  student:
    optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 0.1}
    schedule: {_target_: mosaickd.engine.schedules.cosine, _partial_: true}
"""


def trust_this_folder() -> None:
    """As PYTHONPATH=. does, in a process that has started already."""
    sys.path.insert(0, ".")


def test_a_method_of_ones_own_gets_every_input_and_plays(forked: Any, tiny: Tiny) -> None:
    folder: Path = forked.folder
    inputs = "\n".join(f"    {name}: Any" for name in INPUTS)
    (folder / "mymethods").mkdir()
    (folder / "mymethods" / "everything.py").write_text(METHOD.format(inputs=inputs))
    own = tiny.experiment(folder, "method=everything", "allow_targets=[mymethods]")
    (folder / "conf" / "method").mkdir()
    (folder / "conf" / "method" / "everything.yaml").write_text(YAML)
    run = ["train.steps=2", "train.log_every=1", "hydra.run.dir=run"]
    finish(forked.start(*own, f"teacher.checkpoint={tiny.teacher}", *run, before=trust_this_folder))
    result = read_json(folder / "run" / "result.json")
    assert (result["status"], result["method"], result["steps"]) == ("finished", "everything", 2)
    logged = [line for line in metrics(folder / "run") if losses(line)]
    assert [list(losses(line)) for line in logged] == 2 * [["student/mine"]]
    assert all(line["weighted/student/mine"] == 2 * line["loss/student/mine"] for line in logged)
    assert display_name("everything") == "everything", "tables call it by its name"
