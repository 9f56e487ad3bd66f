"""The equations, against loops over single numbers in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from mosaickd import losses
from mosaickd.losses import class_balance, jensen_shannon, kl_divergence, pairwise_distances

BATCH, CLASSES = 6, 10


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = draw(BATCH, CLASSES, scale=3), draw(BATCH, CLASSES, seed=1, scale=4)


def softmax(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    powers = np.exp((logits.double() / temperature).numpy())
    return powers / powers.sum(axis=1, keepdims=True)


# ------------------------------------------------------------------------------- of predictions


def test_cross_entropy_is_the_mean_surprise_at_the_label() -> None:
    labels = torch.tensor([0, 3, 9, 1, 1, 5])
    expected = np.mean([-math.log(row[i]) for row, i in zip(softmax(STUDENT), labels, strict=True)])
    assert losses.cross_entropy(STUDENT, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_sums_over_classes_averages_over_the_batch_and_scales_by_temperature_squared(
    temperature: float,
) -> None:
    p, q = softmax(TEACHER, temperature), softmax(STUDENT, temperature)
    expected = (p * np.log(p / q)).sum() / BATCH * temperature**2
    actual = kl_divergence(STUDENT, TEACHER, temperature).item()
    assert actual == pytest.approx(expected, rel=1e-5)


def test_entropy_is_in_nats_and_one_number_an_image() -> None:
    p = softmax(TEACHER)
    expected = -(p * np.log(p)).sum(axis=1)
    assert losses.entropy(TEACHER).tolist() == pytest.approx(expected, rel=1e-5)
    assert losses.label_alignment(TEACHER).item() == pytest.approx(expected.mean(), rel=1e-5)


def test_one_hot_is_the_surprise_at_the_teachers_own_choice_and_makes_it_surer() -> None:
    teacher = TEACHER.clone().requires_grad_()
    value = losses.one_hot(teacher)
    expected = np.mean([-math.log(max(row)) for row in softmax(TEACHER)])
    assert value.item() == pytest.approx(expected, rel=1e-5)
    (slope,) = torch.autograd.grad(value, teacher)
    assert (slope.gather(1, teacher.argmax(dim=1, keepdim=True)) < 0).all()


@pytest.mark.parametrize("base", [2.0, math.e, 10.0])
def test_class_balance_is_the_negative_entropy_of_the_mean_prediction(base: float) -> None:
    expected = sum(p * math.log(p, base) for p in softmax(TEACHER).mean(axis=0))
    assert class_balance(TEACHER, base).item() == pytest.approx(expected, rel=1e-5)
    even = class_balance(torch.zeros(3, CLASSES), base).item()
    assert even == pytest.approx(-math.log(CLASSES, base)), "the least there is"


def test_class_balance_of_several_processes_is_that_of_the_whole_batch() -> None:
    """Each has a half; the loop averages values and gradients."""
    whole = draw(6, 4).requires_grad_()
    expected = class_balance(whole)
    expected.backward()
    halves = whole.detach().split(3)
    means = [half.softmax(dim=1).mean(dim=0, keepdim=True) for half in halves]
    for number, half in enumerate(halves):
        others = means[1 - number]
        own = half.clone().requires_grad_()
        value = class_balance(own, gather=lambda mean, others=others: torch.cat([mean, others]))
        value.backward()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(own.grad / 2, whole.grad[3 * number :][:3])


@pytest.mark.parametrize("authentic", [True, False])
def test_patches_are_summed_and_divided_by_the_batch_alone(authentic: bool) -> None:
    logits = draw(5, 1, 8, 8)
    sign = -1 if authentic else 1
    expected = np.log1p(np.exp(sign * logits.double().numpy())).sum() / 5
    actual = losses.patch_gan_loss(logits, authentic=authentic).item()
    assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_jensen_shannon_is_the_mean_distance_from_the_mixture(temperature: float) -> None:
    p, q = softmax(STUDENT, temperature), softmax(TEACHER, temperature)
    m = (p + q) / 2
    expected = (p * np.log(p / m) + q * np.log(q / m)).sum() / 2 / BATCH
    value = jensen_shannon(STUDENT, TEACHER, temperature).item()
    assert value == pytest.approx(expected, rel=1e-4)
    assert value == pytest.approx(jensen_shannon(TEACHER, STUDENT, temperature).item(), rel=1e-5)


# ------------------------------------------------------------------- where a probability is zero

SURE = torch.tensor([[300.0, 0.0, -300.0], [250.0, 0.0, 0.0]])  # probabilities of exactly 0
UNSURE = torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.3, 0.2]])
OF_LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "label_alignment": losses.label_alignment,
    "class_balance": class_balance,
    "kl_divergence": lambda teacher: kl_divergence(UNSURE, teacher),
    "kl_divergence of a student": lambda student: kl_divergence(student, SURE.flip(1)),
    "jensen_shannon": lambda student: jensen_shannon(student, SURE.flip(1).roll(1, dims=0)),
}


@pytest.mark.parametrize("name", OF_LOGITS)
def test_values_and_gradients_are_finite_where_a_probability_is_0(name: str) -> None:
    logits = SURE.clone().requires_grad_()
    value = OF_LOGITS[name](logits)
    (slope,) = torch.autograd.grad(value, logits)
    assert value.isfinite()
    assert slope.isfinite().all(), slope
    if name == "kl_divergence of a student":
        assert slope.abs().max() > 0.1, "surely wrong, it is moved"


# ------------------------------------------------------------------------- images and statistics


def test_total_variation_adds_up_four_directions() -> None:
    images = draw(2, 3, 5, 7)
    pixels = images.double().numpy()
    expected = 0.0
    for down, right in ((0, 1), (1, 0), (1, -1), (1, 1)):
        expected += np.mean([
            abs(pixels[b, c, y + down, x + right] - pixels[b, c, y, x])
            for b, c, y, x in product(range(2), range(3), range(5), range(7))
            if y + down < 5 and 0 <= x + right < 7
        ])  # fmt: skip
    assert losses.total_variation(images).item() == pytest.approx(expected, rel=1e-5)


def test_statistics_distance_by_layer_sums_norms_and_else_is_one_norm() -> None:
    batch = [draw(n, seed=n) for n in (3, 5, 2)]
    running = [draw(n, seed=10 + n) for n in (3, 5, 2)]
    squares = [float((a - b).double().square().sum()) for a, b in zip(batch, running, strict=True)]
    by_layer = losses.statistics_distance(batch, running, by_layer=True).item()
    assert by_layer == pytest.approx(sum(math.sqrt(s) for s in squares), rel=1e-5)
    whole = losses.statistics_distance(batch, running, by_layer=False).item()
    assert whole == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)


@pytest.mark.parametrize("by_layer", [True, False])
def test_statistics_that_agree_pull_nowhere(by_layer: bool) -> None:
    batch = [draw(4).requires_grad_()]
    value = losses.statistics_distance(batch, [batch[0].detach().clone()], by_layer)
    (slope,) = torch.autograd.grad(value, batch)
    assert slope.abs().max() == 0, "not NaN, as a root's gradient at 0 would be"


def attention_map(features: Tensor, size: tuple[int, int]) -> np.ndarray:
    """One image's: features averaged in equal tiles, their mean square over channels, length 1."""
    channels, height, width = features.shape
    tiles = (channels, size[0], height // size[0], size[1], width // size[1])
    result = (features.double().numpy().reshape(tiles).mean(axis=(2, 4)) ** 2).mean(axis=0)
    return result / math.sqrt((result**2).sum())


def test_attention_transfer_of_stages_with_other_channels_and_other_sizes() -> None:
    shapes = [((4, 8, 8), (6, 8, 8), (8, 8)), ((5, 8, 4), (3, 4, 4), (4, 4)),
              ((7, 2, 2), (2, 6, 6), (2, 2))]  # fmt: skip
    student = [draw(3, *shape, seed=i) for i, (shape, _, _) in enumerate(shapes)]
    teacher = [draw(3, *shape, seed=9 + i) for i, (_, shape, _) in enumerate(shapes)]
    expected = 0.0
    for own, other, (_, _, size) in zip(student, teacher, shapes, strict=True):
        expected += np.mean([
            (attention_map(a, size) - attention_map(b, size)) ** 2
            for a, b in zip(own, other, strict=True)
        ])  # fmt: skip
    assert losses.attention_transfer(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_attention_of_a_dead_stage_has_a_finite_gradient() -> None:
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(losses.attention_transfer([dead], [draw(2, 3, 4, 4)]), dead)
    assert slope.isfinite().all()


# -------------------------------------------------------------------------------------- relations


def huber(difference: float) -> float:
    """Smooth L1, as RKD's authors take it: squared below 1."""
    size = abs(difference)
    return size**2 / 2 if size < 1 else size - 0.5


def distances(embedding: Tensor) -> np.ndarray:
    """Between rows, over their mean over pairs of different rows."""
    rows = embedding.double().numpy()
    result = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    return result / (result.sum() / (len(rows) * (len(rows) - 1)))


def angle(rows: np.ndarray, i: int, j: int, k: int) -> float:
    """The cosine at `j` between the directions to `i` and `k`; 0 where there is no angle."""
    one, other = rows[i] - rows[j], rows[k] - rows[j]
    lengths = math.sqrt((one**2).sum()) * math.sqrt((other**2).sum())
    return float((one * other).sum() / lengths) if lengths else 0.0


def test_relational_distance_compares_all_pairs() -> None:
    student, teacher = draw(BATCH, 5), draw(BATCH, 9, seed=1, scale=20)
    own, other = distances(student), distances(teacher)
    assert pairwise_distances(student).double().numpy() == pytest.approx(own, abs=1e-5)
    expected = np.mean([huber(d) for d in (own - other).flatten()])
    actual = losses.relational_distance(student, teacher).item()
    assert actual == pytest.approx(expected, rel=1e-4)


def test_relational_angle_compares_all_triples() -> None:
    student, teacher = draw(BATCH, 5), draw(BATCH, 9, seed=1)
    own, other = student.double().numpy(), teacher.double().numpy()
    triples = product(range(BATCH), repeat=3)
    expected = np.mean([huber(angle(own, *t) - angle(other, *t)) for t in triples])
    assert losses.relational_angle(student, teacher).item() == pytest.approx(expected, rel=1e-4)


RELATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "distance": losses.relational_distance,
    "angle": losses.relational_angle,
}
relations = pytest.mark.parametrize("name", RELATIONS)


@relations
def test_relations_survive_scaling_and_rotation(name: str) -> None:
    teacher = draw(BATCH, 5)
    turned = 3 * teacher @ torch.linalg.qr(draw(5, 5, seed=1)).Q
    assert RELATIONS[name](turned, teacher).item() == pytest.approx(0, abs=1e-6)


@relations
def test_images_that_coincide_do_not_blow_up_the_gradient(name: str) -> None:
    """Two in the student alone, which the teacher tells apart; then all of them."""
    teacher, student = draw(BATCH, 9), draw(BATCH, 5, seed=1)
    twins = student.clone()
    twins[1] = twins[0]
    slopes = []
    for embedding in (student, twins, torch.zeros(BATCH, 5)):
        embedding.requires_grad_()
        (slope,) = torch.autograd.grad(RELATIONS[name](embedding, teacher), embedding)
        assert slope.isfinite().all()
        slopes.append(slope.norm().item())
    assert slopes[1] < 10 * slopes[0], "no larger than that of images that lie apart"
    assert slopes[2] < 10


def test_cosine_similarities_of_every_row_with_every_row() -> None:
    one, other = draw(4, 7), draw(3, 7, seed=1)
    rows = [x.double() / x.double().norm(dim=1, keepdim=True) for x in (one, other)]
    torch.testing.assert_close(losses.cosine_similarities(one, other).double(), rows[0] @ rows[1].T)


def test_noise_contrast_is_the_papers_equation() -> None:
    """h = g / (g + K / N): log h for the partner, log(1 - h) for each of K others (Eq. 18, 19)."""
    rng = torch.Generator().manual_seed(0)
    positive, negatives = torch.rand(4, generator=rng), torch.rand(4, 9, generator=rng)
    h = [(g / (g + 9 / 50)).double() for g in (positive, negatives)]
    expected = -(h[0].log().sum() + (1 - h[1]).log().sum()).item() / 4
    assert losses.noise_contrast(positive, negatives, 50).item() == pytest.approx(expected, 1e-4)


# --------------------------------------------------------------------------------- half precision

OF_PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **RELATIONS,
    "cosines": losses.cosine_similarities,
    "kl": kl_divergence,
    "jensen_shannon": jensen_shannon,
    "attention": lambda a, b: losses.attention_transfer([a[..., None, None]], [b[..., None, None]]),
    "statistics": lambda a, b: losses.statistics_distance([a[0]], [b[0]], by_layer=True),
    "cross_entropy": lambda a, b: losses.cross_entropy(a, b.argmax(dim=1)),
    "entropy": lambda a, b: losses.entropy(a),
    "class_balance": lambda a, b: class_balance(a),
    "patches": lambda a, b: losses.patch_gan_loss(a[:, None, None], authentic=True),
}


@pytest.mark.parametrize("name", OF_PAIRS)
def test_everything_is_computed_in_float32(name: str) -> None:
    """The loop's forward passes run in bfloat16, the equations must not."""
    # Far from 0 and close together, as embeddings behind a ReLU are.
    one, other = draw(BATCH, 8, scale=0.1) + 2, draw(BATCH, 8, seed=1, scale=0.1) + 2
    one, other = one.bfloat16(), other.bfloat16()
    expected = OF_PAIRS[name](one.float(), other.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = OF_PAIRS[name](one, other)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
