"""ood_subset=true: distil from those images only that the teacher is least sure about."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Cli, Outcome, Tiny, read_json
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mosaickd.data.glyphs import read
from mosaickd.models.wresnet import WideResNet

IMAGES = 64  # of strokes
ASKED = "asking the teacher about all OOD images: "
KEPT = Path("checkpoints") / "letters" / "subsets"


def subset(size: int) -> list[str]:
    return ["ood_subset=true", f"ood_subset_size={size}"]


def command(cli: Cli, tiny: Tiny, *more: str) -> list[str]:
    return tiny.experiment(cli.folder, f"teacher.checkpoint={tiny.teacher}", *more)


def strokes(tiny: Tiny) -> Tensor:
    """uint8 [N, 3, H, W]"""
    return read(
        root=tiny.glyphs, split="train", image_size=16, alphabet="strokes",
        train_images=IMAGES, test_images=48,
    ).images  # fmt: skip


def entropies(weights: Path, images: Tensor) -> Tensor:
    """Of the teacher's predictions, in nats, float64 [N]."""
    teacher = WideResNet(num_classes=24, depth=16, widen_factor=2).eval()
    teacher.load_state_dict(load_file(weights))
    with torch.no_grad():
        p = teacher((images / 255 - 0.5) / 0.5).double().softmax(dim=1)
    return torch.special.entr(p).sum(dim=1)


def files(cli: Cli) -> dict[str, int]:
    """When each choice was written."""
    return {p.name: p.stat().st_mtime_ns for p in (cli.folder / KEPT).glob("*.safetensors")}


def indices(cli: Cli, name: str) -> set[int]:
    with safe_open(cli.folder / KEPT / name, "pt") as file:
        return set(file.get_tensor("indices").tolist())


def assert_most_uncertain(kept: set[int], entropy: Tensor) -> None:
    others = sorted(set(range(len(entropy))) - kept)
    assert float(entropy[sorted(kept)].min()) > float(entropy[others].max()) - 1e-4


def assert_says(outcome: Outcome, *words: str) -> None:
    (message,) = outcome.err.splitlines()
    assert message.startswith("error: ")
    for word in words:
        assert word in message, message


@pytest.mark.slow
def test_the_images_of_highest_entropy_are_kept_and_remembered(cli: Cli, tiny: Tiny) -> None:
    home = cli.folder / "outputs"
    sweep = ["-m", *command(cli, tiny, *subset(40)), f"hydra.sweep.dir={home}"]
    outcome = cli(*sweep, "method=kd,balanced,mosaic")
    assert outcome.out.count(ASKED) == 1, "the first run's choice serves the others"
    for method in ("kd", "balanced", "mosaic"):
        result = read_json(
            home / method / "letters-strokes-subset" / "wrn16_2-wrn16_1" / "seed0" / "result.json"
        )
        assert (result["status"], result["ood"], result["ood_subset"]) == (
            "finished", "strokes", True,
        )  # fmt: skip
        assert result["steps"] == 3, "an epoch is one pass over the 40"
    assert "KD on strokes (OOD subset)" in outcome.out
    (name,) = files(cli)
    assert name.startswith("strokes-40-by-wrn16_2-")
    kept = indices(cli, name)
    assert len(kept) == 40
    assert tiny.teacher is not None
    assert_most_uncertain(kept, entropies(tiny.teacher, strokes(tiny)))


@pytest.mark.slow
def test_another_number_or_teacher_is_another_choice(cli: Cli, tiny: Tiny) -> None:
    kd = [*command(cli, tiny, "method=kd", "train.steps=1")]
    cli(*kd, *subset(40), "hydra.run.dir=first")
    ((first, written),) = files(cli).items()
    assert tiny.teacher is not None
    other = cli.folder / "other.safetensors"
    weights = load_file(tiny.teacher)
    save_file(weights | {"fc.weight": weights["fc.weight"].flip(1)}, other)
    sweep = ["hydra.sweep.dir=varied", "hydra.sweep.subdir=${hydra.job.num}", "ood_subset=true"]
    varied = ["ood_subset_size=40,30", f"teacher.checkpoint={tiny.teacher},{other}"]
    outcome = cli("-m", *kd, *sweep, *varied)
    assert outcome.out.count(ASKED) == 3
    found = files(cli)
    assert len(found) == 4
    assert found[first] == written, "used again, not written again"
    (smaller,) = (name for name in found if indices(cli, name) < indices(cli, first))
    assert smaller.startswith("strokes-30-by-wrn16_2-")
    assert_most_uncertain(indices(cli, smaller), entropies(tiny.teacher, strokes(tiny)))


@pytest.mark.slow
def test_of_a_part_of_the_images_it_is_a_part(cli: Cli, tiny: Tiny) -> None:
    limits = ["ood.limit=null,40", "ood.classes=null,[0,1,2,3,4,5,6,7,8,9]"]
    some = ["-m", *command(cli, tiny, *subset(30), *limits, "train.steps=1", "method=kd")]
    cli(*some, "hydra.sweep.dir=limited", "hydra.sweep.subdir=${hydra.job.num}")
    found = files(cli)
    assert len(found) == 4
    assert len({tuple(sorted(indices(cli, name))) for name in found}) == 4
    highest = [max(indices(cli, name)) for name in found]
    assert sum(index < 44 for index in highest) == 3, "indices into the images that are left"


@pytest.mark.slow
def test_it_trains_on_those_images_and_no_others(cli: Cli, tiny: Tiny) -> None:
    """Bit for bit what it learns from a folder with just these."""
    cli(*command(cli, tiny, "method=kd", *subset(40), "hydra.run.dir=subset"))
    (name,) = files(cli)
    images = strokes(tiny)
    root = cli.folder / "mine"
    root.mkdir()
    for index in sorted(indices(cli, name)):
        pixels = images[index].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(root / f"{index:03d}.png")
    folder = (cli.folder / "conf" / "experiment" / "tiny.yaml").read_text()
    folder = folder.replace("override /ood: strokes", "override /ood: folder")
    folder = folder.replace(
        "  reader: {train_images: 64, test_images: 48}\ngenerator",
        "  image_size: 16\n  name: mine\ngenerator",
    )
    (cli.folder / "conf" / "experiment" / "mine.yaml").write_text(folder)
    mine = ["experiment=mine", f"ood.root={root}", "method=kd", "hydra.run.dir=mine-run"]
    cli("--config-dir", str(cli.folder / "conf"), *mine, f"teacher.checkpoint={tiny.teacher}")
    ours, theirs = (
        load_file(cli.folder / run / "student.safetensors") for run in ("subset", "mine-run")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.slow
def test_two_runs_started_together_ask_once(cli: Cli, tiny: Tiny) -> None:
    both = [
        cli.start(*command(cli, tiny, "method=kd", *subset(40), f"seed={seed}")) for seed in (1, 2)
    ]
    ended = [run.wait() for run in both]
    assert [outcome.code for outcome in ended] == [0, 0], ended[0].text + ended[1].text
    assert sum(outcome.out.count(ASKED) for outcome in ended) == 1
    assert len(files(cli)) == 1


@pytest.mark.slow
def test_a_damaged_choice_is_made_again(cli: Cli, tiny: Tiny) -> None:
    cli(*command(cli, tiny, "method=kd", *subset(40), "hydra.run.dir=first"))
    (name,) = files(cli)
    kept = indices(cli, name)
    path = cli.folder / KEPT / name
    path.write_bytes(path.read_bytes()[:100])
    outcome = cli(*command(cli, tiny, "method=kd", *subset(40), "hydra.run.dir=second"))
    assert f"{KEPT / name} is not the choice that was meant" in outcome.out
    assert outcome.out.count(ASKED) == 1
    assert indices(cli, name) == kept
    first, second = (load_file(cli.folder / run / "student.safetensors")
                     for run in ("first", "second"))  # fmt: skip
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_as_many_as_the_domain_has_where_no_size_is_given(cli: Cli, tiny: Tiny) -> None:
    """240 letters, 300 strokes."""
    more = ["method=kd", "ood_subset=true", "ood.reader.train_images=300", "train.steps=1"]
    cli(*command(cli, tiny, *more))
    (name,) = files(cli)
    assert len(indices(cli, name)) == 240


REFUSED = [
    (["method=kd", *subset(65)], ["65 images", "strokes has 64", "ood_subset_size=N"]),
    (["method=kd", *subset(33), "ood.limit=32"], ["33 images", "strokes has 32"]),
    (["method=kd", *subset(40), "ood.classes=[0,2]"], ["40 images", "strokes has 1"]),
    (["method=kd", "ood_subset=true"], ["240 images", "strokes has 64"]),
    (["method=kd", *subset(15)], ["batch of 16", "ood_subset", "15 training images"]),
    (["method=kd", *subset(0)], ["ood_subset_size", "at least 1"]),
    (["method=kd", "ood_subset_size=9"], ["ood_subset_size", "ood_subset=true"]),
    (
        ["method=kd", "ood_subset=true", "dataset.classes=[0,1]"],
        ["dataset.train_size", "ood_subset_size=N"],
    ),
    (["method=dfq", "ood_subset=true"], ["ood_subset", "method=dfq", "leave it out"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"), REFUSED, ids=[" ".join(overrides) for overrides, _ in REFUSED]
)
def test_a_subset_that_cannot_be_meant(
    cli: Cli, tiny: Tiny, overrides: list[str], said: list[str]
) -> None:
    outcome = cli(*command(cli, tiny, *overrides, "hydra.run.dir=run"), code=1)
    assert_says(outcome, *said)
    assert "accuracy" not in outcome.out, "found before anything was trained or measured"
    assert not (cli.folder / "checkpoints").exists()


@pytest.mark.slow
def test_a_model_from_scratch_has_no_subset(cli: Cli, tiny: Tiny) -> None:
    outcome = cli(*tiny.scratch("ood_subset=true", "hydra.run.dir=run"), code=1)
    assert_says(outcome, "ood_subset", "method=scratch", "leave it out")
