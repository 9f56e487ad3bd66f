"""Figures that ask a run's teacher, of runs that were really outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Cli, Tiny, read_json
from hydra.core.hydra_config import HydraConfig

from mosaickd.errors import UserError
from mosaickd.figures.__main__ import main
from mosaickd.loaded_run import LoadedRun


@pytest.fixture(autouse=True)
def _no_hydra() -> Iterator[None]:
    """Other tests of this process may have left Hydra set up."""
    before, HydraConfig.instance().cfg = HydraConfig.instance().cfg, None
    yield
    HydraConfig.instance().cfg = before


@pytest.fixture(scope="module")
def outputs(shared_cli: Cli, tiny: Tiny) -> Path:
    shared_cli(*tiny.mosaic("train.steps=4", "train.eval_every=2", "hydra.run.dir=drawn",
                            "dataset.reader.test_images=240"))  # fmt: skip
    return shared_cli.folder / "drawn"


@pytest.fixture
def run(outputs: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(outputs, tmp_path / "run")


def change(run: Path, path: str, value: Any) -> None:
    """A setting in the run's config."""
    file = run / ".hydra" / "config.yaml"
    content = yaml.safe_load(file.read_text())
    node = content
    *sections, name = path.split(".")
    for section in sections:
        node = node[section]
    node[name] = value
    file.write_text(yaml.safe_dump(content))


def test_distances_by_patch_size(outputs: Path, tmp_path: Path) -> None:
    main(["domains", str(outputs), "--out", str(tmp_path), "--patches", "16", "4"])
    numbers = read_json(tmp_path / "domains.json")
    assert numbers["sizes"] == [4, 16]
    assert numbers["patches"] == 120, "half of the test images, beside the other half"
    assert set(numbers["distances"]) == {
        "letters – strokes", "letters – synthetic", "strokes – synthetic", "letters – itself",
    }  # fmt: skip
    assert all(len(line) == 2 and min(line) > 0 for line in numbers["distances"].values())


def test_few_images_give_no_distance(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (("--images 24", "at least 100 are needed"), ("--patches 17", "16x16")):
        with pytest.raises(SystemExit, match=message):
            main(["domains", str(outputs), "--out", str(tmp_path), *options.split()])


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_the_teachers_view_in_a_plane(projection: str, outputs: Path, tmp_path: Path) -> None:
    main(["embedding", str(outputs), "--out", str(tmp_path), "--projection", projection,
          "--images", "40"])  # fmt: skip
    numbers = read_json(tmp_path / "embedding.json")
    assert {name: len(points["at"]) for name, points in numbers["points"].items()} == {
        "letters": 40, "strokes": 40, "synthetic": 40,
    }  # fmt: skip
    assert (tmp_path / "embedding.png").stat().st_size > 1000


def test_a_revived_run_makes_what_it_made(outputs: Path) -> None:
    """Its generator is the checkpoint's: on the noise of the sample grids it makes their images."""
    from mosaickd.build import derived_seed
    from mosaickd.report.sample_grids import newest

    from mosaickd.methods.base import Latents

    revived = LoadedRun(outputs, device="cpu")
    seed = derived_seed(revived.cfg.seed, "samples")
    noise = Latents(revived.parts.latents.dim, torch.device("cpu"), seed)(100)
    with torch.no_grad():
        made = revived.parts.in_domain.inverse(revived.outputs.synthesize(noise)).clamp(0, 1)
    pixels = made.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    _, shown = newest(outputs)
    assert sorted(map(bytes, pixels)) == sorted(map(bytes, shown.pixels))
    assert np.array_equal(revived.synthetic(7), revived.synthetic(300)[:7]), "of the same noise"


def test_other_images_are_not_taken_for_the_runs(run: Path) -> None:
    change(run, "ood.limit", 200)
    with pytest.raises(UserError, match="these are not its images"):
        LoadedRun(run)


def test_another_teacher_is_not_taken_for_the_runs(run: Path, tmp_path: Path) -> None:
    result = read_json(run / "result.json") | {"teacher_fingerprint": "0" * 16}
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match="not its teacher"):
        LoadedRun(run)
    change(run, "teacher.checkpoint", str(tmp_path / "gone.safetensors"))
    with pytest.raises(UserError, match=r"gone\.safetensors"):
        LoadedRun(run)


def test_a_foreign_config_builds_nothing_that_was_not_allowed(run: Path, tmp_path: Path) -> None:
    """Neither by naming it, nor by vouching for itself."""
    mark = tmp_path / "mark"
    change(run, "student", {"_target_": "os.mkdir", "path": str(mark), "name": "wrn16_1"})
    with pytest.raises(UserError, match="os"):
        LoadedRun(run)
    change(run, "allow_targets", ["os"])
    with pytest.raises(UserError, match="os"):
        LoadedRun(run)
    assert not mark.exists()


@pytest.mark.parametrize("content", ["", "a: [", "3", "train: 3", "dataset: null"])
def test_a_config_that_is_none_is_told(content: str, run: Path) -> None:
    (run / ".hydra" / "config.yaml").write_text(content)
    with pytest.raises(UserError):
        LoadedRun(run)


def test_a_run_without_its_checkpoint_has_no_generator(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint"):
        LoadedRun(run).synthetic(5)


def test_a_run_without_a_generator_is_drawn_without(
    cli: Cli, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli(*tiny.distil("kd", "train.steps=2", "hydra.run.dir=kd"))
    main(["embedding", str(cli.folder / "kd"), "--out", str(tmp_path), "--projection", "pca",
          "--images", "20"])  # fmt: skip
    assert "makes no images" in capsys.readouterr().err
    assert set(read_json(tmp_path / "embedding.json")["points"]) == {"letters", "strokes"}


def test_a_run_without_a_teacher_is_told(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    cli(*tiny.scratch("train.steps=2", "hydra.run.dir=scratch"))
    with pytest.raises(SystemExit, match="no teacher to ask"):
        main(["embedding", str(cli.folder / "scratch"), "--out", str(tmp_path)])
