"""Figures that ask a run's teacher and generator, of runs that were really trained."""

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

from mosaickd.analysis.figures.grids import read_grid
from mosaickd.components import derived_seed
from mosaickd.errors import UserError
from mosaickd.figures import main
from mosaickd.loaded_run import LoadedRun
from mosaickd.methods.base import Latents


@pytest.fixture(autouse=True)
def _no_hydra() -> Iterator[None]:
    """Other tests of this process may have left Hydra set up."""
    before, HydraConfig.instance().cfg = HydraConfig.instance().cfg, None
    yield
    HydraConfig.instance().cfg = before


@pytest.fixture(scope="module")
def trained(shared_cli: Cli, tiny: Tiny) -> Path:
    shared_cli(*tiny.mosaic("train.steps=4", "train.eval_every=2", "train.precision=fp32",
                            "hydra.run.dir=drawn", "dataset.reader.test_images=240"))  # fmt: skip
    return shared_cli.folder / "drawn"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


def change(run: Path, **settings: Any) -> None:
    """Change settings in a run's config; __ stands for a dot."""
    file = run / ".hydra" / "config.yaml"
    content = yaml.safe_load(file.read_text())
    for path, value in settings.items():
        node = content
        *sections, name = path.split("__")
        for section in sections:
            node = node[section]
        node[name] = value
    file.write_text(yaml.safe_dump(content))


@pytest.mark.slow
def test_distances_by_patch_size(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["domains", str(trained), "--out", str(tmp_path), "--patches", "16", "4"])
    numbers = read_json(tmp_path / "domains.json")
    assert numbers["sizes"] == [4, 16]
    assert numbers["patches"] == 120, "half of the test images, beside the other half"
    assert set(numbers["distances"]) == {
        "letters – strokes", "letters – synthetic", "strokes – synthetic", "letters – itself",
    }  # fmt: skip
    assert all(len(line) == 2 and min(line) > 0 for line in numbers["distances"].values())
    for options, message in (("--images 24", "at least 100 are needed"), ("--patches 17", "16x16")):
        with pytest.raises(SystemExit, match="1"):
            main(["domains", str(trained), "--out", str(tmp_path), *options.split()])
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_the_teachers_view_in_a_plane(projection: str, trained: Path, tmp_path: Path) -> None:
    main(["embedding", str(trained), "--out", str(tmp_path), "--projection", projection,
          "--images", "40"])  # fmt: skip
    numbers = read_json(tmp_path / "embedding.json")
    assert {name: len(points["at"]) for name, points in numbers["points"].items()} == {
        "letters": 40, "strokes": 40, "synthetic": 40,
    }  # fmt: skip


@pytest.mark.slow
def test_a_loaded_run_makes_what_it_made(trained: Path) -> None:
    """Its generator is the checkpoint's: of the noise of the sample grids it makes their images."""
    loaded = LoadedRun(trained, device="cpu")
    assert loaded.components.latents is not None
    seed = derived_seed(loaded.cfg.seed, "samples")
    noise = Latents(loaded.components.latents.dim, torch.device("cpu"), seed)(100)
    with torch.no_grad():
        images = loaded.method.synthesize(noise)
    pixels = loaded.components.normalize.inverse(images).clamp(0, 1).mul(255).round().byte()
    grid = read_grid(sorted((trained / "samples").iterdir())[-1])
    assert sorted(map(bytes, pixels.permute(0, 2, 3, 1).numpy())) == sorted(map(bytes, grid.images))
    assert np.array_equal(loaded.synthetic(7), loaded.synthetic(300)[:7]), "of the same noise"


def test_of_an_ood_subset_the_chosen_images_are_shown(run: Path) -> None:
    change(run, ood_subset=True, ood_subset_size=50)
    assert len(LoadedRun(run).ood(500)) == 50


def test_other_images_and_another_teacher_are_not_taken_for_the_runs(
    run: Path, tmp_path: Path
) -> None:
    change(run, ood__limit=200)
    with pytest.raises(UserError, match="these are not its own"):
        LoadedRun(run)
    change(run, ood__limit=None)
    result = read_json(run / "result.json") | {"teacher_fingerprint": "0" * 16}
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match="trained with other teacher"):
        LoadedRun(run)
    change(run, teacher__checkpoint=str(tmp_path / "gone.safetensors"))
    with pytest.raises(UserError, match=r"gone\.safetensors"):
        LoadedRun(run)


def test_a_foreign_config_builds_nothing_that_was_not_allowed(run: Path, tmp_path: Path) -> None:
    """Neither by naming it, nor by vouching for itself."""
    mark = tmp_path / "mark"
    change(run, student={"_target_": "os.mkdir", "path": str(mark), "name": "wrn16_1"})
    with pytest.raises(UserError, match=r"os\.mkdir.*--allow-targets \[os\]"):
        LoadedRun(run)
    change(run, allow_targets=["os"])
    with pytest.raises(UserError, match=r"os\.mkdir"):
        LoadedRun(run)
    assert not mark.exists()


@pytest.mark.parametrize("content", ["", "a: [", "3", "train: 3", "dataset: null"])
def test_a_config_that_is_none_is_refused(content: str, run: Path) -> None:
    (run / ".hydra" / "config.yaml").write_text(content)
    with pytest.raises(UserError):
        LoadedRun(run)


def test_a_run_without_its_checkpoint_has_no_generator(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint"):
        LoadedRun(run).synthetic(5)


def test_a_run_without_a_generator_is_drawn_without_and_one_without_a_teacher_is_refused(
    cli: Cli, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cli(*tiny.distil("kd", "train.steps=2", "hydra.run.dir=kd"))
    main(["embedding", str(cli.folder / "kd"), "--out", str(tmp_path), "--projection", "pca",
          "--images", "20"])  # fmt: skip
    assert "makes no images" in caplog.text
    assert set(read_json(tmp_path / "embedding.json")["points"]) == {"letters", "strokes"}
    cli(*tiny.scratch("train.steps=2", "hydra.run.dir=scratch"))
    with pytest.raises(SystemExit, match="1"):
        main(["embedding", str(cli.folder / "scratch"), "--out", str(tmp_path)])
    assert "no teacher to ask" in capsys.readouterr().err
