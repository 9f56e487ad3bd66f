"""A user's mistakes: an exit code, and one message that names the setting or the file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Cli, Outcome, Tiny, read_json
from PIL import Image

TWO_STEPS = ["train.steps=2", "hydra.run.dir=run"]


def pictures(folder: Path, count: int = 20, mode: str = "RGB", size: int = 16) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    for index in range(count):
        pixels = noise.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{mode}{size}-{index:03d}.png")


def own_images(tiny: Tiny, kind: str, root: Path) -> list[str]:
    """The quickstart's game on images of one's own."""
    ood = [f"ood={kind}", f"ood.root={root}", "ood.name=mine", "ood.image_size=16"]
    chosen = ["experiment=quickstart", "tracker=none", "train.batch_size=16", *TWO_STEPS]
    return [*chosen, f"teacher.checkpoint={tiny.teacher}", *tiny.source("dataset"), *ood]


def assert_says(outcome: Outcome, *words: str) -> None:
    message = outcome.err[outcome.err.index("error: ") :]
    for word in words:
        assert word in message, message


# ------------------------------------------------------------------------------------- settings


REFUSED = [
    (["method.align=-1"], ["method.align", ">= 0", "-1"]),
    (["players.student.optimizer.lr=-0.1"], ["players.student.optimizer", "-0.1"]),
    (["+players.student.optimizer.momentun=0.9"], ["momentun", "momentum"]),
    (["pair=vgg11-resnet18", "teacher=wrn40_2"], ["pair=", "teacher="]),
    (["device=cuda"], ["device=cuda", "no CUDA device"]),
]


@pytest.mark.parametrize(
    ("overrides", "said"),
    REFUSED,
    ids=[case[0][0] for case in REFUSED],
)
def test_settings_that_cannot_be_meant(cli: Cli, overrides: list[str], said: list[str]) -> None:
    outcome = cli(*overrides, "tracker=none", "hydra.run.dir=run", code=1)
    assert_says(outcome, *said)
    assert not (cli.folder / "data").exists(), "found before any data was looked for"
    assert not (cli.folder / "run" / "checkpoints").exists()


def test_batch_larger_than_the_data_set(cli: Cli, tiny: Tiny) -> None:
    outcome = cli(*tiny.mosaic("train.batch_size=500", *TWO_STEPS), code=1)
    assert_says(outcome, "train.batch_size", "500", "240", "strokes")


def test_output_folder_that_cannot_be_written(cli: Cli, tiny: Tiny) -> None:
    (cli.folder / "file").touch()
    outcome = cli(*tiny.mosaic("train.steps=2", "hydra.run.dir=file/run"), code=1)
    assert_says(outcome, "file/run", "hydra.run.dir")


def test_non_finite_loss_stops_and_keeps_the_last_checkpoint(cli: Cli, tiny: Tiny) -> None:
    settings = ["players.student.optimizer.lr=1e30", "train.checkpoint_every=1", "train.steps=9"]
    outcome = cli(*tiny.mosaic(*settings, "hydra.run.dir=run"), code=1)
    result = read_json(cli.folder / "run" / "result.json")
    assert result["status"] == "failed"
    assert result["error"].split(": ", 1)[1] in outcome.err
    assert_says(outcome, "loss", " at step ", "players.student.optimizer.lr")
    path = cli.folder / "run" / "checkpoints" / "last.pt"
    if path.exists():  # the very first iteration may already be the bad one
        saved = torch.load(path, weights_only=True)
        assert saved["state"]["step"] <= result["steps"]
    assert not (cli.folder / "run" / "student.safetensors").exists()


# ----------------------------------------------------------------------------------------- data


def test_missing_data_without_network(cli: Cli) -> None:
    root = cli.folder / "nowhere"
    outcome = cli("tracker=none", f"dataset.root={root}", "hydra.run.dir=run", code=1)
    assert outcome.seconds < 60
    assert_says(outcome, str(root), "Parquet", "cifar-100-python", "experiment=quickstart")
    assert not (cli.folder / "run" / "result.json").exists(), "no run was begun"


def test_a_folder_without_images(cli: Cli, tiny: Tiny) -> None:
    root = cli.folder / "empty"
    root.mkdir()
    assert_says(cli(*own_images(tiny, "folder", root), code=1), str(root), "no images")


def test_a_damaged_picture_is_named(cli: Cli, tiny: Tiny) -> None:
    root = cli.folder / "mine"
    pictures(root)
    damaged = root / "RGB16-007.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert_says(cli(*own_images(tiny, "folder", root), code=1), str(damaged), "1 of 20",
                "max_broken")  # fmt: skip


def test_a_few_damaged_pictures_are_left_out_counted_and_listed(cli: Cli, tiny: Tiny) -> None:
    root = cli.folder / "mine"
    pictures(root, 200, size=16)
    damaged = (root / "RGB16-123.png").rename(root / "Gr\u00fc\u00dfe\n123.png")
    damaged.write_bytes(b"")
    outcome = cli(*own_images(tiny, "folder", root))
    run = cli.folder / "run"
    assert read_json(run / "result.json")["broken_images"] == {"ood/train": 1}
    (line,) = (run / "broken.txt").read_text().splitlines()
    assert line == f"ood/train\t{root}/Gr\u00fc\u00dfe\\n123.png\tan empty file"
    assert "mine: 1 of 200 train images are broken and left out" in outcome.out


@pytest.mark.parametrize(
    "kept", [0.5, pytest.param(0.0, marks=pytest.mark.slow)], ids=["truncated", "garbage"]
)
def test_damaged_parquet_is_named(cli: Cli, tiny: Tiny, kept: float) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    images = [{"bytes": buffer.getvalue(), "path": None}] * 20
    path = cli.folder / "mine" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"img": images, "label": [0] * 20}), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))] or b"not a Parquet file")
    assert_says(cli(*own_images(tiny, "parquet", path.parent), code=1), str(path))
