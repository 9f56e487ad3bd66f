"""torch.compile as a setting: the same numbers, on the CPU."""

from __future__ import annotations

import pytest
import torch

from mosaickd.engine.device import compile_network
from mosaickd.models.wresnet import WideResNet

pytestmark = pytest.mark.slow


def classifier() -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(depth=10, widen_factor=1, num_classes=10)


def test_a_frozen_network_computes_the_same_with_and_without_gradients() -> None:
    """Also when another frozen network of the same class was compiled before it."""
    images = torch.randn(4, 3, 16, 16)
    for scale in (1.0, 2.0):
        torch.compiler.reset()
        plain = classifier().requires_grad_(False).eval()
        compiled = classifier().requires_grad_(False).eval()
        compile_network(compiled, frozen=True)
        for network in (plain, compiled):  # weights are loaded after the network was compiled
            network.load_state_dict({k: scale * v for k, v in classifier().state_dict().items()})
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), plain(images), rtol=1e-4, atol=1e-4)
        gradients = []
        for network in (plain, compiled):
            seen = images.clone().requires_grad_()
            gradients.append(torch.autograd.grad(network(seen).square().sum(), seen)[0])
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_a_learning_network_is_not_frozen() -> None:
    network, images = classifier().eval(), torch.randn(4, 3, 16, 16)
    compile_network(network, frozen=False)
    with torch.no_grad():
        before = network(images).clone()
        network.fc.bias.add_(1)
        torch.testing.assert_close(network(images), before + 1)
    assert all(not name.startswith("_orig_mod") for name in network.state_dict())
