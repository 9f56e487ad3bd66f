"""Features and batch-norm statistics: the right tensors, of any network, without side effects."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torchvision
from test_models import build, classifiers
from torch import Tensor, nn

from mosaickd.errors import UserError
from mosaickd.models.features import BatchNormStatsHook, FeatureExtractor

EXAMPLE = torch.zeros(1, 3, 16, 16)


def make_images(count: int = 3, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def extractor(network: nn.Module, *paths: str, **changes: Any) -> FeatureExtractor:
    settings: dict[str, Any] = {"example": EXAMPLE, "setting": "student.features"}
    return FeatureExtractor(network, paths, **(settings | changes))


class Stages(nn.Module):
    """Some modules take part in the forward pass, `spare` does not; `flat` gives out vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, 2, padding=1), nn.BatchNorm2d(6))
        self.spare = nn.Conv2d(3, 4, 1)
        self.flat = nn.Flatten()
        self.fc = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.flat(self.second(self.first(images).relu()).mean((2, 3))))


# ---------------------------------------------------------------------- features and embeddings


@classifiers
def test_features_and_embedding_are_what_a_hook_sees(name: str) -> None:
    network, paths, embedding = build(name, 5)
    features = extractor(network, *paths)
    embed = extractor(network, embedding, of="input")
    expected: dict[str, Tensor] = {}
    for path in paths:
        network.get_submodule(path).register_forward_hook(
            lambda m, i, out, path=path: expected.update({path: out.clone()})
        )
    network.get_submodule(embedding).register_forward_hook(
        lambda m, inputs, out: expected.update(embedding=inputs[0].clone(), logits=out.clone())
    )
    network.eval()
    with torch.no_grad():
        logits, maps = features(make_images())
        _, (vectors,) = embed(make_images())
    assert torch.equal(logits, expected["logits"])
    for path, tensor in zip(paths, maps, strict=True):
        assert torch.equal(tensor, expected[path]), path
    assert torch.equal(vectors, expected["embedding"])
    assert features.shapes == [tuple(t.shape[1:]) for t in maps]
    assert embed.shapes == [(vectors.shape[1],)]
    assert len(vectors) == 3


@pytest.mark.parametrize("of", ["output", "input"])
def test_gradients_flow_through_features(of: Any) -> None:
    network = Stages()
    images = make_images().requires_grad_()
    _, (feature,) = extractor(network, "second", of=of)(images)
    feature.square().sum().backward()
    for tensor in (images, network.get_parameter("first.0.weight")):
        assert tensor.grad is not None
        assert tensor.grad.any()


def test_a_network_of_torchvision_needs_nothing_special() -> None:
    network = torchvision.models.resnet18(num_classes=10)
    features = extractor(network, "layer1", "layer4", example=torch.zeros(1, 3, 32, 32))
    embed = extractor(network, "fc", of="input", example=torch.zeros(1, 3, 32, 32))
    assert features.shapes == [(64, 8, 8), (512, 1, 1)]
    network.eval()
    images = make_images(size=32)
    logits, (_, last) = features(images)
    _, (embedding,) = embed(images)
    torch.testing.assert_close(embedding, last.mean((2, 3)))
    torch.testing.assert_close(network.fc(embedding), logits)
    assert len(BatchNormStatsHook(network, what="the teacher")(images)[1]) == 20


# ------------------------------------------------------------------------------- no side effects


def test_watching_changes_nothing_and_several_watch_one_network() -> None:
    network = Stages()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, second = extractor(network, "first"), extractor(network, "second")
    stats = BatchNormStatsHook(network, what="the teacher")
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(module.training for module in network.modules())
    network.eval()
    logits = network(make_images())
    outputs = [watch(make_images()) for watch in (first, second, stats)]
    assert all(torch.equal(logits, output[0]) for output in outputs)
    assert [len(output[1]) for output in outputs] == [1, 1, 2]


@pytest.mark.parametrize("kind", ["features", "stats"])
def test_no_tensor_stays_alive(kind: str) -> None:
    network = Stages()
    tensors: list[weakref.ref[Tensor]] = []
    network.first[1].register_forward_hook(lambda m, i, out: tensors.append(weakref.ref(out)))
    network.first[1].register_forward_pre_hook(lambda m, i: tensors.append(weakref.ref(i[0])))
    watch: Any = (
        extractor(network, "first")
        if kind == "features"
        else BatchNormStatsHook(network, what="the teacher")
    )
    result = watch(make_images())
    assert any(ref() is not None for ref in tensors)
    del result
    gc.collect()
    assert all(ref() is None for ref in tensors)
    with torch.no_grad():
        network(make_images())  # not through the extractor: its hooks are idle
    assert all(ref() is None for ref in tensors)


# ---------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["first", "third"], r"student\.features: .*'third'; there are first, second, .*fc"),
        (["second.7"], r"within second: second\.0, second\.1"),
        (["first", "spare"], "spare take no part"),
        (["flat"], r"student\.features: flat .*\[1, 6\].*height, width"),
    ],
)
def test_wrong_paths_are_explained(paths: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        extractor(Stages(), *paths)


def test_an_embedding_of_any_shape_is_a_vector_an_image() -> None:
    assert extractor(Stages(), "second", of="input").shapes == [(4 * 16 * 16,)]
    assert extractor(Stages(), "flat", of="input").shapes == [(6,)]


# ------------------------------------------------------------------------- batch-norm statistics


def test_stats_are_those_of_what_each_batch_norm_gets() -> None:
    network, trained = Stages().eval(), Stages()
    hook = BatchNormStatsHook(network, what="the teacher")
    trained(2 * make_images(8) + 1)
    network.load_state_dict(trained.state_dict())  # later than the hook
    inputs: list[Tensor] = []
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda m, args: inputs.append(args[0].clone()))
    logits, stats = hook(make_images())
    assert torch.equal(logits, network(make_images()))
    for (mean, var, running_mean, running_var), x, norm in zip(
        stats, inputs[:2], norms, strict=True
    ):
        channels = x.transpose(0, 1).flatten(1).double()
        torch.testing.assert_close(mean.double(), channels.mean(1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(var.double(), channels.var(1), atol=0, rtol=1e-4)
        assert torch.equal(running_mean, norm.get_buffer("running_mean"))
        assert torch.equal(running_var, norm.get_buffer("running_var"))
        assert running_mean.any()


def test_stats_in_half_precision_are_computed_in_float32() -> None:
    hook = BatchNormStatsHook(Stages().eval(), what="the teacher")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, stats = hook(make_images())
    assert {tensor.dtype for layer in stats for tensor in layer} == {torch.float32}


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)])
def test_a_teacher_without_running_statistics_is_refused(norm: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(UserError, match=r"the teacher vit has no batch norm.*another teacher"):
        BatchNormStatsHook(network, what="the teacher vit")
