"""Looking inside a network: the right tensors, of any network, without leaving a trace."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from mosaickd.errors import UserError
from mosaickd.models.features import BatchNormStatsHook, FeatureExtractor

MODELS = sorted((Path(__file__).parents[2] / "conf/model").glob("*.yaml"))
EXAMPLE = torch.zeros(1, 3, 16, 16)


def build(file: Path) -> tuple[nn.Module, list[str], str]:
    """A classifier of conf/model, with its `features` and its `embedding`."""
    config: Any = OmegaConf.to_container(OmegaConf.load(file))
    del config["name"], config["checkpoint"]
    features, embedding = config.pop("features"), config.pop("embedding")
    return instantiate(config, num_classes=5, _convert_="all"), features, embedding


def images(count: int = 3, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def probe(network: nn.Module, *paths: str, **changes: Any) -> FeatureExtractor:
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


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.stem)
def test_features_and_embedding_are_what_a_hook_sees(file: Path) -> None:
    network, features, embedding = build(file)
    looks = probe(network, *features)
    behind = probe(network, embedding, of="input", setting="student.embedding")
    expected: dict[str, Tensor] = {}
    for path in features:
        network.get_submodule(path).register_forward_hook(
            lambda m, i, out, path=path: expected.update({path: out.clone()})
        )
    network.get_submodule(embedding).register_forward_hook(
        lambda m, inputs, out: expected.update(embedding=inputs[0].clone(), logits=out.clone())
    )
    network.eval()
    with torch.no_grad():
        logits, taken = looks(images())
        _, (vector,) = behind(images())
    assert torch.equal(logits, expected["logits"])
    assert len(taken) == len(features)
    for path, tensor in zip(features, taken, strict=True):
        assert torch.equal(tensor, expected[path]), path
    assert torch.equal(vector, expected["embedding"])
    assert looks.shapes == [tuple(t.shape[1:]) for t in taken]
    assert behind.shapes == [(vector.shape[1],)]
    assert len(vector) == 3


@pytest.mark.parametrize("of", ["output", "input"])
def test_gradients_flow_through_what_was_taken(of: Any) -> None:
    network = Stages()
    looks = probe(network, "second", of=of)
    seen = images().requires_grad_()
    _, (taken,) = looks(seen)
    taken.square().sum().backward()
    assert seen.grad is not None
    assert seen.grad.abs().sum() > 0
    weight: Any = network.first[0].weight
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_a_network_of_torchvision_needs_nothing_special() -> None:
    network = torchvision.models.resnet18(num_classes=10)
    looks = probe(network, "layer1", "layer4", example=torch.zeros(1, 3, 32, 32))
    behind = probe(network, "fc", of="input", example=torch.zeros(1, 3, 32, 32))
    assert looks.shapes == [(64, 8, 8), (512, 1, 1)]
    assert behind.shapes == [(512,)]
    network.eval()
    batch = images(size=32)
    logits, (_, last) = looks(batch)
    _, (embedding,) = behind(batch)
    torch.testing.assert_close(embedding, last.mean((2, 3)))
    torch.testing.assert_close(network.fc(embedding), logits)
    assert len(BatchNormStatsHook(network, what="the teacher")(batch)[1]) == 20


def test_several_probes_of_one_network_do_not_disturb_each_other() -> None:
    network = Stages().eval()
    first, second = probe(network, "first"), probe(network, "second")
    statistics = BatchNormStatsHook(network, what="the teacher")
    a, b, c = first(images()), second(images()), statistics(images())
    assert a[1][0].shape[1] == 4
    assert b[1][0].shape[1] == 6
    assert len(a[1]) == len(b[1]) == 1
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[0], c[0])


# -------------------------------------------------------------------------------- without a trace


def test_probing_changes_neither_logits_nor_weights_nor_modes() -> None:
    network = Stages()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    looks = probe(network, "first", "second")
    BatchNormStatsHook(network, what="the teacher")
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "by looking once"
    assert all(module.training for module in network.modules())
    network.eval()
    logits, _ = looks(images())
    assert torch.equal(logits, network(images()))
    assert list(network.state_dict()) == list(before)


@pytest.mark.parametrize("kind", ["features", "statistics"])
def test_no_tensor_stays_alive(kind: str) -> None:
    network = Stages()
    made: list[weakref.ref[Tensor]] = []
    network.first[1].register_forward_hook(lambda m, i, out: made.append(weakref.ref(out)))
    network.first[1].register_forward_pre_hook(lambda m, i: made.append(weakref.ref(i[0])))
    looks: Any = probe(network, "first") if kind == "features" else BatchNormStatsHook(
        network, what="the teacher"
    )  # fmt: skip
    logits, taken = looks(images())
    assert any(ref() is not None for ref in made)
    del logits, taken
    gc.collect()
    assert all(ref() is None for ref in made)

    with torch.no_grad():
        network(images())  # not through the probe: hooks are idle
    assert all(ref() is None for ref in made)


def test_a_forward_pass_that_fails_leaves_the_probe_as_it_was() -> None:
    network = Stages()
    looks = probe(network, "first")
    with pytest.raises(RuntimeError):
        looks(torch.randn(2, 5, 16, 16))
    _, (taken,) = looks(images())
    assert taken.shape == (3, 4, 16, 16)


# ---------------------------------------------------------------------------------- bad settings


def test_an_unknown_path_lists_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"student\.features: .*'third'") as caught:
        probe(Stages(), "first", "third")
    for path in ("first", "second", "fc"):
        assert path in str(caught.value)
    with pytest.raises(UserError, match=r"within second: second\.0, second\.1"):
        probe(Stages(), "second.7")


def test_a_module_that_takes_no_part_is_named() -> None:
    with pytest.raises(UserError, match="spare take no part"):
        probe(Stages(), "first", "spare")


def test_features_that_are_no_maps_are_refused_where_they_are_set() -> None:
    with pytest.raises(UserError, match=r"teacher\.features: flat .*\[1, 6\].*height, width"):
        probe(Stages(), "flat", setting="teacher.features")


def test_an_embedding_of_any_shape_is_a_vector_an_image() -> None:
    assert probe(Stages(), "second", of="input").shapes == [(4 * 16 * 16,)]
    assert probe(Stages(), "flat", of="input").shapes == [(6,)]


# ------------------------------------------------------------------------------------- statistics


def test_statistics_are_those_of_what_each_batch_norm_is_given() -> None:
    network = Stages()
    network(2 * images(8) + 1)  # so that something is remembered
    network.eval()
    given: list[Tensor] = []
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda m, inputs: given.append(inputs[0].clone()))
    logits, statistics = BatchNormStatsHook(network, what="the teacher")(images())
    assert torch.equal(logits, network(images()))
    assert len(statistics) == len(norms) == 2
    for (mean, var, running_mean, running_var), x, norm in zip(
        statistics, given, norms, strict=False
    ):
        for channel in range(x.shape[1]):
            values = x[:, channel].flatten().double().tolist()
            average = sum(values) / len(values)
            squares = sum((v - average) ** 2 for v in values)
            assert mean[channel].item() == pytest.approx(average, abs=1e-5)
            assert var[channel].item() == pytest.approx(squares / (len(values) - 1), rel=1e-4)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert torch.equal(running_mean, norm.running_mean)
        assert torch.equal(running_var, norm.running_var)
        assert not torch.equal(running_mean, torch.zeros_like(running_mean))


def test_statistics_follow_weights_that_are_loaded_later() -> None:
    network, trained = Stages().eval(), Stages()
    looks = BatchNormStatsHook(network, what="the teacher")
    trained(2 * images(8) + 1)
    network.load_state_dict(trained.state_dict())
    _, statistics = looks(images())
    assert torch.equal(statistics[0][2], trained.state_dict()["first.1.running_mean"])


def test_statistics_in_half_precision_are_computed_in_float32() -> None:
    network = Stages().eval()
    looks = BatchNormStatsHook(network, what="the teacher")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, statistics = looks(images())
    assert {s.dtype for layer in statistics for s in layer} == {torch.float32}


def test_a_teacher_without_batch_norm_is_refused_in_words() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 5))
    forgetful = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    for network in (plain, forgetful):
        with pytest.raises(UserError, match=r"the teacher vit has no batch norm.*another teacher"):
            BatchNormStatsHook(network, what="the teacher vit")
