"""DeepInversion: rounds of making images and of learning from them."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Any

import pytest
import torch
from recipes import departures
from tables import BATCH, CLASSES, SIZE, Table, changed, inputs_of, outputs_of, state_of
from torch import Tensor, nn

from mosaickd.losses import (
    cross_entropy,
    jensen_shannon,
    kl_divergence,
    statistics_distance,
    total_variation,
)
from mosaickd.methods.deepinv import shift_and_flip

ADAM = partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.99))


def test_the_recipe() -> None:
    recipe = {
        "method.oh": 1,
        "method.bn": 10,
        "method.tv": 1e-3,
        "method.adv": 1,
        "method.adv_temperature": 3,
        "method.temperature": 20,
        "method.inversion_steps": 1000,
        "players.images.optimizer": {
            "_target_": "torch.optim.Adam", "lr": 0.1, "betas": [0.5, 0.99],
        },
        "players.student.optimizer._target_": "torch.optim.SGD",
        "train.epochs": 200,
        "train.steps": None,
        "train.batch_size": 256,
    }  # fmt: skip
    assert departures(recipe, "method=deepinv") == {}


def table(**settings: Any) -> Table:
    """Rounds of three turns that make images and two in which the student learns."""
    chosen = {"inversion_steps": 3, "student_steps": 2} | settings
    return Table("deepinv", optimizers={"images": chosen.pop("adam", ADAM)}, **chosen)


def as_uint8(at: Table) -> Tensor:
    """What lies in the pool of the images as they are now."""
    return (at.normalize.inverse(at.method.images.pixels.detach()) * 255).round().byte()


# ------------------------------------------------------------------------------------------ order


def test_images_are_made_first_then_the_student_learns_round_by_round() -> None:
    outputs = table().play(12)
    order = [(player, len(list(turns))) for player, turns in groupby(t.player for t in outputs)]
    assert order == [("images", 3), ("student", 2), ("images", 3), ("student", 2), ("images", 2)]


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 9, 13, 20])
def test_each_player_is_told_how_many_turns_it_will_have(steps: int) -> None:
    at = table()
    outputs = [turn.player for turn in at.play(steps)]
    for player in ("images", "student"):
        assert at.method.iterations(player, steps) == outputs.count(player)


def test_making_images_leaves_the_students_statistics_alone() -> None:
    at = table()
    before = state_of(at.student)
    at.play(3)
    assert not changed(before, state_of(at.student))
    assert all(module.training for module in at.student.modules())


# ----------------------------------------------------------------------------------------- images


def test_images_stay_colours_that_a_pixel_can_have() -> None:
    at = table(adam=partial(ADAM, lr=3.0))  # far too fast: many pixels would leave the range
    for _ in range(8):
        (turn,) = at.play(1)
        pixels = at.normalize.inverse(at.method.images.pixels.detach())
        assert pixels.min() > -1e-6
        assert pixels.max() < 1 + 1e-6
        if turn.player == "images":
            assert pixels.min() < 1e-6, "some are at the edge: the test can fail"
            assert pixels.max() > 1 - 1e-6


def test_each_round_begins_with_other_noise_and_other_classes() -> None:
    at = table()
    seen = inputs_of(at.teacher)
    at.play(1)
    first = at.method.labels.clone()
    at.play(2)
    assert torch.equal(at.method.labels, first), "within a round images keep their classes"
    finished = at.method.images.pixels.detach().clone()
    at.play(3)
    assert not torch.equal(at.method.labels, first)
    assert at.method.labels.unique().numel() > 1
    assert set(at.method.labels.tolist()) <= set(range(CLASSES))
    assert (at.method.images.pixels.detach() - finished).abs().mean() > 0.5, "not the old ones"
    assert seen[0].std().item() == pytest.approx(1, abs=0.15), "noise of deviation 1"


def test_adam_forgets_exactly_when_new_images_begin() -> None:
    at = table()
    optimizer = at.players["images"].optimizer
    counts = []
    for _ in range(13):
        (turn,) = at.play(1)
        if turn.player == "images":
            (state,) = optimizer.state.values()
            counts.append(int(state["step"]))
            gradient = at.method.images.pixels.grad
            assert gradient is not None
            fresh = torch.allclose(state["exp_avg"], 0.5 * gradient, atol=1e-7)
            assert fresh is (counts[-1] == 1), "momentum of the last images would show"
    assert counts == [1, 2, 3] * 3


def test_losses_are_the_equations_of_what_the_networks_said() -> None:
    at = table(oh=2.0, bn=3.0, tv=0.5, adv=4.0, adv_temperature=2.0)
    teacher, student = outputs_of(at.teacher), outputs_of(at.student)
    norms = [m for m in at.teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    given = [inputs_of(norm) for norm in norms]
    at.play(1)
    images = at.method.images.pixels.detach().clone()
    (turn,) = at.play(1)
    means = [x[1].mean((0, 2, 3)) for x in given]
    variances = [x[1].transpose(0, 1).flatten(1).var(1) for x in given]
    running: list[list[Any]] = [[n.running_mean for n in norms], [n.running_var for n in norms]]
    expected = {
        "oh": cross_entropy(teacher[1], at.method.labels),
        "bn": statistics_distance(means, running[0], by_layer=True)
        + statistics_distance(variances, running[1], by_layer=True),
        "tv": total_variation(images),
        "adv": -jensen_shannon(student[1], teacher[1], 2.0),
    }
    assert turn.weights == {"oh": 2.0, "bn": 3.0, "tv": 0.5, "adv": 4.0}
    assert turn.losses.keys() == expected.keys()
    for name, value in expected.items():
        assert turn.losses[name].item() == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.parametrize("term", ["oh", "bn"])
def test_images_come_closer_to_what_the_teacher_wants(term: str) -> None:
    at = table(inversion_steps=60, **({"oh": 0.0, "bn": 0.0, "adv": 0.0} | {term: 1.0}))
    with torch.no_grad():
        at.teacher.fc.weight.mul_(30)  # a teacher that is sure of something
    outputs = at.play(60)
    assert outputs[-1].losses[term] < 0.8 * outputs[0].losses[term]


def test_all_images_are_shifted_and_flipped_alike() -> None:
    images = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    variants = {
        (down, right, flipped): torch.roll(
            images.flip(3) if flipped else images, (down, right), (2, 3)
        )
        for down in range(-2, 3)
        for right in range(-2, 3)
        for flipped in (False, True)
    }
    rng = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(400):
        moved = shift_and_flip(images, 2, rng)
        matches = [k for k, variant in variants.items() if torch.equal(variant, moved)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert seen == set(variants), "each shift by up to the limit, in both orientations"


# ------------------------------------------------------------------------------------------- pool


def test_finished_images_lie_in_the_pool_as_uint8() -> None:
    at = table()
    assert at.method.synthesize(None) is None, "there is nothing to see yet"
    at.play(2)
    assert len(at.method.pool.images) == 0, "half-made ones don't"
    at.play(1)
    pool = at.method.pool.images
    assert pool.dtype == torch.uint8
    assert torch.equal(pool, as_uint8(at))
    torch.testing.assert_close(
        at.method.synthesize(None), at.method.images.pixels.detach(), atol=0.02, rtol=0
    )


def test_a_full_pool_drops_its_oldest_images() -> None:
    at = table(pool_size=2 * BATCH + 2)
    made: list[Tensor] = []
    for _ in range(4):
        at.play(3)
        made.append(as_uint8(at))
        assert torch.equal(at.method.pool.images, torch.cat(made)[-(2 * BATCH + 2) :])
        at.play(2)
    assert len(at.method.pool.images) == 2 * BATCH + 2


def test_a_pool_too_small_for_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.pool_size is 5: .* a batch of 6"):
        table(pool_size=BATCH - 1)


def test_the_student_learns_from_all_rounds_images() -> None:
    at = table(student_steps=40)
    at.method.augment = lambda images: images
    at.play(43 + 3)
    seen, logits, answers = inputs_of(at.student), outputs_of(at.student), outputs_of(at.teacher)
    outputs = at.play(40)
    pool = at.method.pool.images
    assert len(pool) == 2 * BATCH
    drawn = set()
    for images, student, teacher, turn in zip(seen, logits, answers, outputs, strict=True):
        raw = (at.normalize.inverse(images) * 255).round().byte()
        for image in raw:
            (found,) = (pool == image).flatten(1).all(1).nonzero().flatten().tolist()
            drawn.add(found)
        expected = kl_divergence(student, teacher, 20.0)
        assert turn.losses["kd"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert drawn == set(range(2 * BATCH))
