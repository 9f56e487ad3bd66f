"""What a verdict of the patch discriminator depends on, measured pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from mosaickd.errors import UserError
from mosaickd.models.discriminator import PatchDiscriminator

ROOT = Path(__file__).parents[2]
KEYS: list[str] = json.loads((ROOT / "tests/golden/state_dict_keys.json").read_text())[
    "patch_discriminator"
]


def seen_by(network: nn.Module, size: int, *places: tuple[int, int]) -> list[Tensor]:
    """Which pixels the logits at these places depend on. -> bool [size, size] each."""
    images = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    # Evaluation mode: batch statistics would make every logit depend on every pixel.
    logits = network.eval()(images)
    slopes = [
        torch.autograd.grad(logits[0, 0, row, column], images, retain_graph=True)[0]
        for row, column in places
    ]
    return [slope[0, 0] != 0 for slope in slopes]


@pytest.mark.parametrize("patch_size", [*range(1, 23), 23, 30, 33, 46, 47, 63])
def test_a_logit_sees_a_patch_and_every_pixel_of_it(patch_size: int) -> None:
    """An exact square without holes, and its neighbour another one of that size."""
    network = PatchDiscriminator(image_size=64, width=2, channels=1, patch_size=patch_size)
    size = 64 if patch_size <= 46 else 256  # so large that a patch lies inside
    stride = 4 if patch_size <= 10 else 8 if patch_size <= 22 else 16 if patch_size <= 46 else 32
    middle = size // stride // 2 - 1
    corners = []
    for seen in seen_by(network, size, (middle, middle), (middle, middle + 1)):
        rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
        assert len(rows) == len(columns) == patch_size
        assert int(seen.sum()) == patch_size**2, "no pixel within is left out"
        assert int(rows[-1] - rows[0]) == int(columns[-1] - columns[0]) == patch_size - 1
        corners.append((int(rows[0]), int(columns[0])))
    (top, left), (other_top, other_left) = corners
    assert (other_top - top, other_left - left) == (0, stride)


@pytest.mark.parametrize(("patch_size", "side"), [(1, 8), (10, 8), (11, 4), (22, 4), (23, 2)])
def test_each_further_layer_halves_the_map(patch_size: int, side: int) -> None:
    network = PatchDiscriminator(image_size=32, width=2, patch_size=patch_size)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 1, side, side)


def test_ten_pixels_are_the_papers_network() -> None:
    config: Any = OmegaConf.load(ROOT / "conf/discriminator/patch.yaml")
    network = instantiate(config)
    assert sorted(network.state_dict()) == KEYS
    layers = list(network.main)
    assert [type(layer).__name__ for layer in layers] == [
        "Conv2d", "LeakyReLU", "Conv2d", "BatchNorm2d", "LeakyReLU", "Conv2d",
    ]  # fmt: skip
    first, second, last = (layer for layer in layers if isinstance(layer, nn.Conv2d))
    assert first.weight.shape == (128, 3, 4, 4)
    assert second.weight.shape == (256, 128, 4, 4)
    assert last.weight.shape == (1, 256, 1, 1)
    assert first.stride == second.stride == (2, 2)
    assert first.padding == second.padding == (1, 1)
    assert first.bias is not None
    assert second.bias is None
    assert {layer.negative_slope for layer in layers if isinstance(layer, nn.LeakyReLU)} == {0.2}


@pytest.mark.parametrize("size", [4, 12, 16, 20, 32, 64])
@pytest.mark.parametrize("named", [True, False])
def test_a_whole_image_gets_one_logit_that_depends_on_all_of_it(size: int, named: bool) -> None:
    patch_size = size if named else None
    network = PatchDiscriminator(image_size=size, width=2, channels=1, patch_size=patch_size)
    assert network(torch.zeros(2, 1, size, size)).shape == (2, 1, 1, 1)
    (seen,) = seen_by(network, size, (0, 0))
    assert seen.all()


def test_a_patch_larger_than_the_image_is_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"patch_size is 17.*16 pixels.*null takes the whole image"):
        PatchDiscriminator(image_size=16, patch_size=17)
