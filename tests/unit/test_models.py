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
from mosaickd.models.generator import Generator
from mosaickd.models.resnet import ResNet
from mosaickd.models.vgg import VGG
from mosaickd.models.wresnet import WideResNet

ROOT = Path(__file__).parents[2]
KEYS: dict[str, list[str]] = json.loads((ROOT / "tests/golden/state_dict_keys.json").read_text())
LOGITS: dict[str, Any] = json.loads((ROOT / "tests/golden/logits.json").read_text())["models"]

classifiers = pytest.mark.parametrize("name", sorted(LOGITS))


def read_yaml(group: str, name: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/{group}/{name}.yaml"))
    return dict(config)


def build(name: str, num_classes: int) -> tuple[nn.Module, list[str], str]:
    """Return a classifier of conf/model, and its module paths: of its features, its embedding."""
    config = read_yaml("model", name)
    assert config.pop("name") == name
    assert config.pop("checkpoint") is None
    features, embedding = config.pop("features"), config.pop("embedding")
    return instantiate(config, num_classes=num_classes, _convert_="all"), features, embedding


def wave(shape: torch.Size, step: float, shift: float = 0.0) -> Tensor:
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(step * index + shift).reshape(shape)


def formula_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of logits.json, by its formula."""
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
@pytest.mark.parametrize("size", [4, 20])
def test_other_sizes_and_class_counts(name: str, size: int) -> None:
    model, _, _ = build(name, 10)
    logits = model.eval()(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@classifiers
def test_features_are_not_overwritten_and_all_weights_get_gradients(name: str) -> None:
    model, features, embedding = build(name, 10)
    outputs: dict[str, tuple[Tensor, Tensor]] = {}

    def record(path: str) -> Any:
        return lambda _module, _inputs, output: outputs.update({path: (output, output.clone())})

    for path in ["conv1", "bn1", *features]:
        if path in dict(model.named_modules()):
            model.get_submodule(path).register_forward_hook(record(path))
    classifier = model.get_submodule(embedding)
    classifier.register_forward_pre_hook(
        lambda _module, inputs: outputs.update(embedding=(inputs[0], inputs[0].clone()))
    )
    logits = model(torch.randn(4, 3, 16, 16))

    assert {*features, "embedding"} <= set(outputs)
    for path, (after, during) in outputs.items():
        assert torch.equal(after, during), f"{path} was overwritten after the hook"
    torch.testing.assert_close(classifier(outputs["embedding"][1]), logits)
    logits.square().sum().backward()
    assert not [k for k, p in model.named_parameters() if p.grad is None]


def test_vgg_stages_see_the_same_size_at_32_and_64() -> None:
    model, _, _ = build("vgg11", 10)
    shapes = []
    model.get_submodule("block4").register_forward_hook(lambda _m, _i, o: shapes.append(o.shape))
    for size in (32, 64):
        model.eval()(torch.randn(1, 3, size, size))
    assert shapes[0] == shapes[1] == (1, 512, 4, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WideResNet(depth=17, widen_factor=1, num_classes=10), "6n \\+ 4.*got 17"),
        (lambda: ResNet(blocks=[2, 2], num_classes=10), "four numbers.*got \\[2, 2\\]"),
        (lambda: VGG(stages=[[64], []], num_classes=10), "five lists"),
        (lambda: Generator(image_size=30), "multiple of 4, got 30.*dataset.image_size"),
    ],
)
def test_wrong_settings_are_explained(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("name", ["dcgan", "small"])
@pytest.mark.parametrize("size", [16, 32])
def test_generator_makes_images(name: str, size: int) -> None:
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
    converted = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    latent = torch.randn(4, 8)
    # Without code generation, but with the traced backward pass that compiling means.
    run = torch.compile(converted, backend="aot_eager", fullgraph=True) if compiled else converted
    outputs = [plain(latent), run(latent)]
    torch.testing.assert_close(*outputs)
    for images in outputs:
        images.square().sum().backward()
    for a, b in zip(plain.parameters(), converted.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_generator_and_discriminator_are_the_papers() -> None:
    generator = instantiate(read_yaml("generator", "dcgan"), image_size=32)
    assert generator.latent_dim == 100
    assert sorted(generator.state_dict()) == KEYS["generator"]
    discriminator = instantiate(read_yaml("discriminator", "patch"))
    assert sorted(discriminator.state_dict()) == KEYS["patch_discriminator"]
    assert [layer.weight.shape for layer in discriminator.main if isinstance(layer, nn.Conv2d)] == [
        (128, 3, 4, 4), (256, 128, 4, 4), (1, 256, 1, 1),
    ]  # fmt: skip
    slopes = {m.negative_slope for m in discriminator.main if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2}
    assert discriminator(torch.zeros(2, 3, 32, 32)).shape == (2, 1, 8, 8)
