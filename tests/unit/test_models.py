"""The networks compute what the authors' do, at any size, and can be watched by hooks."""

from __future__ import annotations

import copy
import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from mosaickd.errors import UserError
from mosaickd.models.discriminator import PatchDiscriminator
from mosaickd.models.generator import Generator
from mosaickd.models.resnet import ResNet
from mosaickd.models.vgg import VGG
from mosaickd.models.wresnet import WideResNet

ROOT = Path(__file__).parents[2]
KEYS: dict[str, list[str]] = json.loads((ROOT / "tests/golden/state_dict_keys.json").read_text())
LOGITS: dict[str, Any] = json.loads((ROOT / "tests/golden/logits.json").read_text())["models"]

classifiers = pytest.mark.parametrize("name", sorted(LOGITS))


def read_yaml(group: str, name: str) -> dict[str, Any]:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/{group}/{name}.yaml"))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def build(name: str, num_classes: int) -> tuple[nn.Module, list[str], str]:
    """A classifier from its YAML, with the module paths of its features and its embedding."""
    config = read_yaml("model", name)
    assert config.pop("name") == name
    assert config.pop("checkpoint") is None
    features, embedding = config.pop("features"), config.pop("embedding")
    return instantiate(config, num_classes=num_classes, _convert_="all"), features, embedding


def wave(shape: torch.Size, step: float, shift: float = 0.0) -> Tensor:
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(step * index + shift).reshape(shape)


def formula_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of logits.json, by its formula."""
    state = model.state_dict()
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        value = wave(tensor.shape, 0.37, zlib.crc32(key.encode()) % 1000)
        if key.endswith("running_var"):
            value = 1 + 0.5 * value
        elif key.endswith(("running_mean", "bias")):
            value = 0.1 * value
        elif tensor.ndim == 1:
            value = 1 + 0.2 * value
        else:
            value = value * math.sqrt(2 / math.prod(tensor.shape[1:]))
        state[key] = value.to(tensor.dtype)
    return state


@classifiers
def test_logits_equal_the_reference(name: str) -> None:
    golden = LOGITS[name]
    model, _, _ = build(name, 100)
    assert sum(p.numel() for p in model.parameters()) == golden["parameters"]
    assert zlib.crc32("\n".join(sorted(model.state_dict())).encode()) == golden["key_crc32"]
    assert sorted(model.state_dict()) == KEYS[name]

    model.load_state_dict(formula_weights(model))
    with torch.no_grad():
        logits = model.eval()(wave(torch.Size((2, 3, 32, 32)), 0.013).float())
    # Relative to the norm: the formula's logits reach millions in the narrow networks, and single
    # ones are the small difference of large sums, whose order is the machine's choice.
    norm = golden["logits_norm"]
    assert logits.norm().item() == pytest.approx(norm, rel=1e-4)
    difference = logits[0, :5] - torch.tensor(golden["logits_first_five"])
    assert difference.norm().item() < 1e-4 * norm


@classifiers
@pytest.mark.parametrize("size", [4, 16, 20])
def test_other_sizes_and_class_counts(name: str, size: int) -> None:
    model, _, _ = build(name, 10)
    logits = model.eval()(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@classifiers
def test_hooks_see_unmodified_features(name: str) -> None:
    model, features, embedding = build(name, 10)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(path: str) -> Any:
        return lambda _module, _inputs, output: seen.update({path: (output, output.clone())})

    for path in ["conv1", "bn1", *features]:
        if path in dict(model.named_modules()):
            model.get_submodule(path).register_forward_hook(keep(path))
    classifier = model.get_submodule(embedding)
    classifier.register_forward_pre_hook(
        lambda _module, inputs: seen.update(embedding=(inputs[0], inputs[0].clone()))
    )
    logits = model(torch.randn(2, 3, 16, 16))

    assert {*features, "embedding"} <= set(seen)
    for path, (after, during) in seen.items():
        assert torch.equal(after, during), f"{path} was overwritten after the hook"
    torch.testing.assert_close(classifier(seen["embedding"][1]), logits)


@classifiers
def test_every_weight_gets_a_gradient(name: str) -> None:
    model, _, _ = build(name, 10)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    without = [k for k, p in model.named_parameters() if p.grad is None]
    assert not without


def test_vgg_stages_see_the_same_size_at_32_and_64() -> None:
    model, _, _ = build("vgg11", 10)
    shapes = []
    model.get_submodule("block4").register_forward_hook(lambda _m, _i, o: shapes.append(o.shape))
    for size in (32, 64):
        model.eval()(torch.randn(1, 3, size, size))
    assert shapes[0] == shapes[1] == (1, 512, 4, 4)


def test_initialisation_of_wide_resnet() -> None:
    model, _, _ = build("wrn40_2", 100)
    weight = model.get_parameter("block3.layer.1.conv1.weight")
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert not model.get_parameter("fc.bias").any()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: WideResNet(depth=17, widen_factor=1, num_classes=10), "6n \\+ 4.*got 17"),
        (lambda: ResNet(blocks=[2, 2], num_classes=10), "four numbers.*got \\[2, 2\\]"),
        (lambda: VGG(stages=[[64], []], num_classes=10), "five lists"),
        (lambda: Generator(image_size=30), "multiple of 4, got 30.*dataset.image_size"),
    ],
)
def test_wrong_settings_are_explained(make: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


@pytest.mark.parametrize("name", ["dcgan", "small"])
@pytest.mark.parametrize("size", [16, 32])
def test_generator_paints_images(name: str, size: int) -> None:
    generator = instantiate(read_yaml("generator", name), image_size=size)
    images = generator(10 * torch.randn(3, generator.latent_dim))
    assert images.shape == (3, 3, size, size)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0


@pytest.mark.parametrize("compiled", [False, True])
def test_generator_in_channels_last(compiled: bool) -> None:
    torch.manual_seed(0)
    plain = Generator(image_size=16, latent_dim=8, width=8)
    turned = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    latent = torch.randn(4, 8)
    # Without code generation, but with the traced backward pass that compiling means.
    run = torch.compile(turned, backend="aot_eager", fullgraph=True) if compiled else turned
    outputs = [plain(latent), run(latent)]
    torch.testing.assert_close(*outputs)
    for images in outputs:
        images.square().sum().backward()
    for a, b in zip(plain.parameters(), turned.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_adversaries_are_the_papers() -> None:
    generator = instantiate(read_yaml("generator", "dcgan"), image_size=32)
    assert generator.latent_dim == 100
    assert sorted(generator.state_dict()) == KEYS["generator"]
    discriminator = instantiate(read_yaml("discriminator", "patch"))
    assert sorted(discriminator.state_dict()) == KEYS["patch_discriminator"]
    assert discriminator.get_parameter("main.0.weight").shape == (128, 3, 4, 4)


@pytest.mark.parametrize("name", ["patch", "small"])
@pytest.mark.parametrize("size", [16, 32])
def test_one_logit_for_every_four_by_four_pixels(name: str, size: int) -> None:
    logits = instantiate(read_yaml("discriminator", name))(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 1, size // 4, size // 4)


def test_a_patch_logit_sees_ten_by_ten_pixels() -> None:
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    # Evaluation mode: batch statistics would make every logit depend on every pixel.
    PatchDiscriminator(width=32).eval()(images)[0, 0, 3, 4].backward()
    assert images.grad is not None
    seen = images.grad.abs().sum((0, 1)) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert (rows.min(), rows.max(), rows.numel()) == (9, 18, 10)
    assert (columns.min(), columns.max(), columns.numel()) == (13, 22, 10)
