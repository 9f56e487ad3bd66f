"""The baselines' equations, against loops over single numbers in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from mosaickd.losses import (
    attention_transfer,
    class_balance,
    cosine_similarities,
    jensen_shannon,
    noise_contrast,
    one_hot,
    pairwise_distances,
    relational_angle,
    relational_distance,
    statistics_distance,
    total_variation,
)

BATCH, CLASSES = 6, 10


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    powers = np.exp(logits.double().numpy() / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def huber(difference: float) -> float:
    """Smooth L1, as RKD's authors take it: squared below 1."""
    size = abs(difference)
    return size**2 / 2 if size < 1 else size - 0.5


# --------------------------------------------------------------------------- of the teacher alone


def test_one_hot_is_the_surprise_at_the_teachers_own_choice() -> None:
    teacher = draw(BATCH, CLASSES, scale=3)
    expected = np.mean([-math.log(max(row)) for row in softmax(teacher)])
    assert one_hot(teacher).item() == pytest.approx(expected, rel=1e-5)


def test_one_hot_makes_a_teacher_surer() -> None:
    teacher = draw(BATCH, CLASSES).requires_grad_()
    (slope,) = torch.autograd.grad(one_hot(teacher), teacher)
    chosen = teacher.argmax(dim=1, keepdim=True)
    assert (slope.gather(1, chosen) < 0).all()
    assert (slope.scatter(1, chosen, 1.0) > 0).all()


@pytest.mark.parametrize("base", [2.0, math.e, 10.0])
def test_class_balance_in_any_base(base: float) -> None:
    teacher = draw(BATCH, CLASSES, scale=3)
    mean = softmax(teacher).mean(axis=0)
    expected = sum(p * math.log(p, base) for p in mean)
    assert class_balance(teacher, base).item() == pytest.approx(expected, rel=1e-5)
    even = class_balance(torch.zeros(3, CLASSES), base).item()
    assert even == pytest.approx(-math.log(CLASSES, base)), "the least there is"


# --------------------------------------------------------------------------------- disagreement


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_jensen_shannon_is_the_mean_distance_from_the_mixture(temperature: float) -> None:
    student, teacher = draw(BATCH, CLASSES, scale=3), draw(BATCH, CLASSES, seed=1, scale=4)
    expected = 0.0
    for ps, qs in zip(softmax(student, temperature), softmax(teacher, temperature), strict=True):
        for p, q in zip(ps, qs, strict=True):
            m = (p + q) / 2
            expected += (p * math.log(p / m) + q * math.log(q / m)) / 2 / BATCH
    assert jensen_shannon(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-4)


def test_jensen_shannon_is_symmetric_and_between_0_and_ln_2() -> None:
    for seed, scale in product(range(5), (0.1, 3, 100)):
        one, other = draw(4, CLASSES, seed=seed, scale=scale), draw(4, CLASSES, seed=seed + 9)
        value = jensen_shannon(one, other).item()
        assert value == pytest.approx(jensen_shannon(other, one).item(), abs=1e-6)
        assert 0 <= value <= math.log(2) + 1e-6
    assert jensen_shannon(one, one).item() == pytest.approx(0, abs=1e-6)


def test_jensen_shannon_of_opposite_certainties_is_ln_2_with_finite_gradients() -> None:
    student = torch.tensor([[300.0, -300.0, 0.0], [0.0, 500.0, 0.0]]).requires_grad_()
    teacher = student.detach().flip(1).roll(1, dims=0).requires_grad_()
    value = jensen_shannon(student, teacher)
    assert value.item() == pytest.approx(math.log(2), abs=1e-5)
    for slope in torch.autograd.grad(value, [student, teacher]):
        assert slope.isfinite().all()


# --------------------------------------------------------------------------- images and statistics


def test_total_variation_adds_up_four_directions() -> None:
    images = draw(2, 3, 5, 7)
    pixels = images.double().numpy()
    expected = 0.0
    for down, right in ((0, 1), (1, 0), (1, -1), (1, 1)):
        differences = [
            abs(pixels[b, c, y + down, x + right] - pixels[b, c, y, x])
            for b, c, y, x in product(range(2), range(3), range(5), range(7))
            if y + down < 5 and 0 <= x + right < 7
        ]
        expected += sum(differences) / len(differences)
    assert total_variation(images).item() == pytest.approx(expected, rel=1e-5)
    assert total_variation(torch.ones(1, 3, 4, 4)).item() == 0


def test_statistics_distance_by_layer_sums_norms_and_else_is_one_norm() -> None:
    batch = [draw(n, seed=n) for n in (3, 5, 2)]
    remembered = [draw(n, seed=10 + n) for n in (3, 5, 2)]
    squares = [
        sum((a - b) ** 2 for a, b in zip(one.tolist(), other.tolist(), strict=True))
        for one, other in zip(batch, remembered, strict=True)
    ]
    by_layer = statistics_distance(batch, remembered, by_layer=True).item()
    assert by_layer == pytest.approx(sum(math.sqrt(s) for s in squares), rel=1e-5)
    whole = statistics_distance(batch, remembered, by_layer=False).item()
    assert whole == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)


@pytest.mark.parametrize("by_layer", [True, False])
def test_statistics_that_agree_pull_nowhere(by_layer: bool) -> None:
    batch = [draw(4).requires_grad_()]
    value = statistics_distance(batch, [batch[0].detach().clone()], by_layer)
    assert value.item() == 0
    (slope,) = torch.autograd.grad(value, batch)
    assert slope.abs().max() == 0, "not NaN, as a root's gradient at 0 would be"


def attention_map(features: Tensor, size: tuple[int, int]) -> np.ndarray:
    """One image's: features averaged in equal tiles, their mean square over channels, length 1."""
    values = features.double().numpy()
    channels, height, width = values.shape
    rows, columns = height // size[0], width // size[1]
    averaged = np.zeros((channels, *size))
    for c, y, x in product(range(channels), range(height), range(width)):
        averaged[c, y // rows, x // columns] += values[c, y, x] / (rows * columns)
    result = sum(channel**2 / channels for channel in averaged)
    return result / math.sqrt((result**2).sum())


def test_attention_transfer_of_stages_with_other_channels_and_other_sizes() -> None:
    shapes = [((4, 8, 8), (6, 8, 8), (8, 8)), ((5, 8, 4), (3, 4, 4), (4, 4)),
              ((7, 2, 2), (2, 6, 6), (2, 2))]  # fmt: skip
    student = [draw(3, *one, seed=i) for i, (one, _, _) in enumerate(shapes)]
    teacher = [draw(3, *other, seed=9 + i) for i, (_, other, _) in enumerate(shapes)]
    expected = 0.0
    for ours, theirs, (_, _, size) in zip(student, teacher, shapes, strict=True):
        squares = [
            (attention_map(a, size) - attention_map(b, size)) ** 2
            for a, b in zip(ours, theirs, strict=True)
        ]
        expected += float(np.mean(squares))
    assert attention_transfer(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_attention_does_not_mind_how_large_features_are() -> None:
    student, teacher = [draw(3, 4, 8, 8)], [draw(3, 4, 8, 8, seed=1)]
    value = attention_transfer(student, teacher).item()
    larger = attention_transfer([7 * student[0]], [0.1 * teacher[0]]).item()
    assert larger == pytest.approx(value, rel=1e-4)
    assert attention_transfer(student, [-3 * student[0]]).item() == pytest.approx(0, abs=1e-9)


def test_attention_of_a_dead_stage_has_a_finite_gradient() -> None:
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(attention_transfer([dead], [draw(2, 3, 4, 4)]), dead)
    assert slope.isfinite().all()


# -------------------------------------------------------------------------------------- relations


def distances(embedding: Tensor) -> np.ndarray:
    """Between rows, over their mean over pairs of different rows."""
    rows = embedding.double().numpy()
    count = len(rows)
    result = np.zeros((count, count))
    for i, j in product(range(count), repeat=2):
        result[i, j] = math.sqrt(((rows[i] - rows[j]) ** 2).sum())
    return result / (result.sum() / (count * (count - 1)))


def angle(rows: np.ndarray, i: int, j: int, k: int) -> float:
    """The cosine at `j` between the directions to `i` and `k`; 0 where there is no angle."""
    one, other = rows[i] - rows[j], rows[k] - rows[j]
    lengths = math.sqrt((one**2).sum()) * math.sqrt((other**2).sum())
    return float((one * other).sum() / lengths) if lengths else 0.0


def test_relational_distance_compares_all_pairs() -> None:
    student, teacher = draw(BATCH, 5), draw(BATCH, 9, seed=1, scale=20)
    ours, theirs = distances(student), distances(teacher)
    assert pairwise_distances(student).double().numpy() == pytest.approx(ours, abs=1e-5)
    pairs = product(range(BATCH), repeat=2)
    expected = sum(huber(ours[i, j] - theirs[i, j]) for i, j in pairs) / BATCH**2
    assert relational_distance(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_relational_angle_compares_all_triples() -> None:
    student, teacher = draw(BATCH, 5), draw(BATCH, 9, seed=1)
    ours, theirs = student.double().numpy(), teacher.double().numpy()
    triples = product(range(BATCH), repeat=3)
    differences = [angle(ours, *triple) - angle(theirs, *triple) for triple in triples]
    expected = sum(huber(d) for d in differences) / BATCH**3
    assert relational_angle(student, teacher).item() == pytest.approx(expected, rel=1e-4)


RELATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "distance": relational_distance,
    "angle": relational_angle,
}
relations = pytest.mark.parametrize("name", RELATIONS)


@relations
def test_relations_survive_scaling_and_rotation(name: str) -> None:
    teacher = draw(BATCH, 5)
    turned = 3 * teacher @ torch.linalg.qr(draw(5, 5, seed=1)).Q
    assert RELATIONS[name](turned, teacher).item() == pytest.approx(0, abs=1e-6)
    assert RELATIONS[name](draw(BATCH, 5, seed=2), teacher).item() > 1e-3


@relations
def test_two_images_that_coincide_do_not_blow_up_the_gradient(name: str) -> None:
    """In the student alone: the teacher tells them apart, so there is a difference to mend."""
    teacher, student = draw(BATCH, 9), draw(BATCH, 5, seed=1)
    twins = student.clone()
    twins[1] = twins[0]
    slopes = []
    for embedding in (student, twins):
        embedding.requires_grad_()
        (slope,) = torch.autograd.grad(RELATIONS[name](embedding, teacher), embedding)
        assert slope.isfinite().all()
        slopes.append(slope.norm().item())
    assert slopes[1] < 10 * slopes[0], "no larger than that of images that lie apart"


@relations
def test_a_batch_that_coincides_altogether_gives_no_nan(name: str) -> None:
    embedding = torch.zeros(BATCH, 5, requires_grad=True)
    value = RELATIONS[name](embedding, draw(BATCH, 9))
    (slope,) = torch.autograd.grad(value, embedding)
    assert value.isfinite()
    assert slope.isfinite().all()
    assert slope.norm() < 10


def test_cosine_similarities_of_every_row_with_every_row() -> None:
    one, other = draw(4, 7), draw(3, 7, seed=1)
    actual = cosine_similarities(one, other)
    assert actual.shape == (4, 3)
    for i, j in product(range(4), range(3)):
        a, b = one[i].tolist(), other[j].tolist()
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        expected = dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
        assert actual[i, j].item() == pytest.approx(expected, abs=1e-6)


def test_noise_contrast_is_the_papers_equation() -> None:
    """h = g / (g + K / N): log h for the partner, log(1 - h) for each of K others (Eq. 18, 19)."""
    rng = torch.Generator().manual_seed(0)
    positive, negatives = torch.rand(4, generator=rng), torch.rand(4, 9, generator=rng)
    instances = 50
    expected = 0.0
    for found, others in zip(positive.tolist(), negatives.tolist(), strict=True):
        expected -= math.log(found / (found + 9 / instances)) / 4
        for g in others:
            expected -= math.log(1 - g / (g + 9 / instances)) / 4
    actual = noise_contrast(positive, negatives, instances).item()
    assert actual == pytest.approx(expected, rel=1e-4)


# --------------------------------------------------------------------------------- half precision

UNDER_AUTOCAST: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **RELATIONS,
    "cosines": cosine_similarities,
    "jensen_shannon": jensen_shannon,
    "attention": lambda a, b: attention_transfer([a[..., None, None]], [b[..., None, None]]),
    "statistics": lambda a, b: statistics_distance([a[0]], [b[0]], by_layer=True),
}


@pytest.mark.parametrize("name", UNDER_AUTOCAST)
def test_under_autocast_everything_is_computed_in_float32(name: str) -> None:
    """The loop's forward passes run in bfloat16, the equations within them must not."""
    # Far from 0 and close together, as embeddings behind a ReLU are.
    one, other = draw(BATCH, 8, scale=0.1) + 2, draw(BATCH, 8, seed=1, scale=0.1) + 2
    expected = UNDER_AUTOCAST[name](one, other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = UNDER_AUTOCAST[name](one, other)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
