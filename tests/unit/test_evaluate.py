"""Accuracy: top-1, top-5, in eval mode, without a trace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mosaickd.engine.evaluate import evaluate


class Fixed(nn.Module):
    """Takes the logits from the images' pixels: [B, 1, 1, C] -> [B, C]."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def batches(logits: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(logits[:, None, None].split(size), labels.split(size), strict=True))


def naive(logits: Tensor, labels: Tensor, k: int) -> float:
    """The share of images whose label is among the k largest logits, in percent."""
    hits = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        hits += label in sorted(range(len(row)), key=lambda c: -row[c])[:k]
    return 100 * hits / len(labels)


@pytest.mark.parametrize("size", [7, 10, 50])
def test_top1_and_top5_whatever_the_batch_size(size: int) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 12, generator=rng)
    labels = torch.randint(12, (50,), generator=rng)
    accuracy = evaluate(Fixed(), batches(logits, labels, size))
    assert accuracy.top1 == pytest.approx(naive(logits, labels, 1))
    assert accuracy.top5 == pytest.approx(naive(logits, labels, 5))
    assert 0 < accuracy.top1 < accuracy.top5 < 100


def test_with_five_classes_or_fewer_top5_is_100() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 1.0]])
    accuracy = evaluate(Fixed(), batches(logits, torch.tensor([1, 2]), 2))
    assert accuracy[:2] == (50.0, 100.0)


@pytest.mark.parametrize("size", [1, 3, 9])
def test_each_class_is_counted_by_itself(size: int) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3])
    predicted = torch.tensor([0, 0, 1, 1, 1, 0, 2, 1, 3])
    logits = nn.functional.one_hot(predicted, 6).float()
    accuracy = evaluate(Fixed(), batches(logits, labels, size))
    assert accuracy.by_class == ((2, 3), (2, 2), (0, 0), (1, 4), (0, 0), (0, 0))
    assert accuracy.top1 == pytest.approx(100 * 5 / 9)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_measured_in_eval_mode_and_left_as_it_was(training: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten())
    model.train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    # In eval mode this is the identity; statistics of the batch or dropout would change the ranks.
    logits = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)) * 5 + 30
    labels = logits.argmax(dim=1)
    assert evaluate(model, batches(logits, labels, 8)).top1 == 100
    assert model.training is training
    assert model[1].training is training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_stop_in_the_middle_leaves_the_model_in_its_mode() -> None:
    def stopping() -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)
        raise KeyboardInterrupt

    model = Fixed()
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, stopping())
    assert model.training


def test_it_computes_under_autocast_and_without_a_graph() -> None:
    outputs: list[Tensor] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    model.register_forward_hook(lambda m, i, output: outputs.append(output))
    data = batches(torch.randn(3, 4), torch.zeros(3, dtype=torch.int64), 3)
    evaluate(model, data, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    evaluate(model, data)
    assert [output.dtype for output in outputs] == [torch.bfloat16, torch.float32]
    assert not any(output.requires_grad for output in outputs)
