"""torch.compile as a setting: the same numbers, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from composing import compose_config, composing
from omegaconf import DictConfig
from tables import METHODS, small
from torch import Tensor, nn
from torch._dynamo.utils import counters

from mosaickd.components import Components, build_components, build_players
from mosaickd.engine.device import compile_network
from mosaickd.engine.trainer import Trainer
from mosaickd.methods.base import Images
from mosaickd.models.wresnet import WideResNet

pytestmark = pytest.mark.slow

BATCH, SIZE, CLASSES, INSTANCES, STEPS = 4, 16, 5, 40, 4


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
            x = images.clone().requires_grad_()
            gradients.append(torch.autograd.grad(network(x).square().sum(), x)[0])
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_weights_of_a_network_that_learns_are_no_constants() -> None:
    network, images = classifier().eval(), torch.randn(4, 3, 16, 16)
    compile_network(network, frozen=False)
    with torch.no_grad():
        before = network(images).clone()
        network.fc.bias.add_(1)
        torch.testing.assert_close(network(images), before + 1)
    assert all(not name.startswith("_orig_mod") for name in network.state_dict())


# ------------------------------------------------------------------------------ features, methods


@pytest.fixture
def _composing() -> Iterator[None]:
    with composing():
        yield


def components_of(method: str, *, compiled: bool) -> tuple[DictConfig, Components]:
    """The same networks whether they are compiled or not, as a run builds them.

    Teacher and student have one architecture, and so share compiled code, but not their hooks.
    """
    torch.compiler.reset()
    counters.clear()
    networks = {"mosaic": ["generator=small", "discriminator=small"], "dfq": ["generator=small"],
                "dafl": ["generator=small"]}  # fmt: skip
    settings = [f"method.{key}={value}" for key, value in small(method).items() if key != "dim"]
    overrides = [
        "dataset=letters", "ood=strokes", "teacher=wrn16_1", "student=wrn16_1", "teacher.depth=10",
        "student.depth=10", f"train.batch_size={BATCH}", f"train.compile={compiled}",
        "train.channels_last=false", f"method={method}", *networks.get(method, []),
        *settings,
    ]  # fmt: skip
    cfg = compose_config(*overrides)
    components = build_components(
        cfg, device=torch.device("cpu"), num_classes=CLASSES, instances=INSTANCES, steps=STEPS
    )
    return cfg, components


def images(seed: int = 0) -> Tensor:
    return torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def assert_all_compiled() -> None:
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"], dict(counters["graph_break"])


@pytest.mark.usefixtures("_composing")
def test_features_of_compiled_networks_are_those_of_eager_ones() -> None:
    results: list[list[Tensor]] = []
    for compiled in (False, True):
        method: Any = components_of("fitnet", compiled=compiled)[1].method
        x = images().requires_grad_()
        logits, features = method.student_features(x)
        (slope,) = torch.autograd.grad(features[1].square().mean() + logits.square().mean(), x)
        with torch.no_grad():
            theirs, teachers = method.teacher_features(x)
        results.append([logits, *features, slope, theirs, *teachers])
    assert_all_compiled()
    assert len(results[0]) == 9
    for eager, compiled_one in zip(*results, strict=True):
        torch.testing.assert_close(compiled_one, eager, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("_composing")
def test_statistics_in_a_compiled_teacher_are_those_in_an_eager_one() -> None:
    results: list[list[Tensor]] = []
    for compiled in (False, True):
        method: Any = components_of("dfq", compiled=compiled)[1].method
        x = images().requires_grad_()
        logits, statistics = method.teacher_bn_stats(x)
        (slope,) = torch.autograd.grad(sum(var.sum() for _, var, _, _ in statistics), x)
        results.append([logits, slope, *(tensor for layer in statistics for tensor in layer)])
    assert_all_compiled()
    assert len(results[0]) == 2 + 4 * 7, "seven batch norms"
    for eager, compiled_one in zip(*results, strict=True):
        torch.testing.assert_close(compiled_one, eager, rtol=1e-3, atol=1e-4)


def losses(method: str, *, compiled: bool) -> list[tuple[str, str, float]]:
    """All of four iterations: who, what, how much."""
    cfg, components = components_of(method, compiled=compiled)
    trainer = Trainer(components.method, build_players(cfg, components.method, STEPS))
    trainer.train_mode()
    entries = []
    for step in range(STEPS):
        indices = (torch.arange(BATCH) + BATCH * step) % INSTANCES
        batch = {
            name: [Images(images(step * 9 + i), indices % CLASSES, indices) for i in range(s.draws)]
            for name, s in components.method.streams.items()
        }
        for turn in trainer.train_step(batch):
            entries += [(turn.player, name, float(v)) for name, v in turn.losses.items()]
    return entries


@pytest.mark.usefixtures("_composing")
@pytest.mark.parametrize("method", METHODS)
def test_each_method_computes_the_same_with_traced_networks(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced with the hooks of its feature extractors, then computed eagerly.

    To generate code takes minutes, and is the same for all methods.
    """
    compile_in_place = nn.Module.compile

    def trace(network: nn.Module, **settings: Any) -> None:
        compile_in_place(network, backend="eager", **settings)

    monkeypatch.setattr(nn.Module, "compile", trace)
    eager = losses(method, compiled=False)
    # A network that is traced anew too often would silently run eagerly from then on.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiled = losses(method, compiled=True)
    assert_all_compiled()
    assert [entry[:2] for entry in compiled] == [entry[:2] for entry in eager]
    values = [[value for _, _, value in entries] for entries in (compiled, eager)]
    assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-6)
