"""What a logit of the patch discriminator depends on, measured pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mosaickd.errors import UserError
from mosaickd.models.discriminator import PatchDiscriminator


def receptive_fields(network: PatchDiscriminator, size: int, *places: tuple[int, int]) -> Tensor:
    """Return which pixels the logits at these places depend on: bool [places, size, size]."""
    images = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    # Evaluation mode: batch statistics would make every logit depend on every pixel.
    logits = network.eval()(images)
    gradients = [
        torch.autograd.grad(logits[0, 0, row, column], images, retain_graph=True)[0][0, 0]
        for row, column in places
    ]
    return torch.stack(gradients) != 0


@pytest.mark.parametrize("patch_size", [1, 2, 3, 5, 9, 10, 11, 22, 23, 33, 46, 47, 63])
def test_a_logit_sees_a_patch_and_every_pixel_of_it(patch_size: int) -> None:
    """An exact square without holes, and its neighbour another one, a stride further."""
    network = PatchDiscriminator(image_size=64, width=2, channels=1, patch_size=patch_size)
    size = 64 if patch_size <= 46 else 256  # so large that a patch lies inside
    stride = 4 if patch_size <= 10 else 8 if patch_size <= 22 else 16 if patch_size <= 46 else 32
    middle = size // stride // 2 - 1
    first, second = receptive_fields(network, size, (middle, middle), (middle, middle + 1))
    rows, columns = first.any(1).nonzero().flatten(), first.any(0).nonzero().flatten()
    for ends in (rows, columns):
        assert int(ends[-1] - ends[0]) + 1 == patch_size
    assert int(first.sum()) == patch_size**2
    assert torch.equal(second, first.roll(stride, 1))


@pytest.mark.parametrize(("patch_size", "side"), [(1, 8), (10, 8), (11, 4), (22, 4), (23, 2)])
def test_each_further_layer_halves_the_map(patch_size: int, side: int) -> None:
    network = PatchDiscriminator(image_size=32, width=2, patch_size=patch_size)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 1, side, side)


@pytest.mark.parametrize("size", [4, 12, 32])
@pytest.mark.parametrize("named", [True, False])
def test_a_whole_image_gets_one_logit_that_depends_on_all_of_it(size: int, named: bool) -> None:
    patch_size = size if named else None
    network = PatchDiscriminator(image_size=size, width=2, channels=1, patch_size=patch_size)
    assert network(torch.zeros(2, 1, size, size)).shape == (2, 1, 1, 1)
    assert receptive_fields(network, size, (0, 0)).all()


def test_a_patch_larger_than_the_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"patch_size is 17.*16 pixels.*null takes the whole image"):
        PatchDiscriminator(image_size=16, patch_size=17)
