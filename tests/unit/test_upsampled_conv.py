"""The generator's layer that upsamples and convolves, computed in two ways."""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d, interpolate

from mosaickd.models.generator import UpsampledConv2d


def test_both_ways_are_upsampling_and_convolution() -> None:
    """Borders and gradients included; the fast way is the one under autocast (bf16: 8 bits)."""
    torch.manual_seed(0)
    layer = UpsampledConv2d(5, 7)
    x = torch.randn(2, 5, 6, 4, requires_grad=True)
    expected = conv2d(interpolate(x, scale_factor=2.0), layer.weight, padding=1)
    toward = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, [x, layer.weight], toward)

    assert torch.equal(layer(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = layer(x)
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(fast.float(), expected, rtol=0.02, atol=0.05)
    found = torch.autograd.grad(fast, [x, layer.weight], toward.bfloat16())
    for mine, exact in zip(found, gradients, strict=True):
        assert (mine.float() - exact).norm() < 0.02 * exact.norm()
