"""CRD: who is compared with whom, and what is remembered of it."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tables import BATCH, INSTANCES, Table, changed, inputs_of, outputs_of, state_of
from torch import Tensor

from mosaickd.losses import kl_divergence, noise_contrast
from mosaickd.methods.crd import Memory

DIM = 7


def table(**settings: Any) -> Table:
    return Table("crd", **({"negatives": 20, "dim": DIM} | settings))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def memory(temperature: float = 0.5, momentum: float = 0.5) -> Memory:
    torch.manual_seed(3)
    return Memory(INSTANCES, DIM, temperature, momentum)


# --------------------------------------------------------------------------------------- negatives


def test_negatives_are_any_other_images_and_never_an_images_own() -> None:
    at = table(negatives=300)
    asked: list[tuple[Tensor, Tensor]] = []
    scores = at.method.of_teacher.scores
    at.method.of_teacher.scores = lambda anchors, own, others: (
        asked.append((own, others)) or scores(anchors, own, others)  # type: ignore[func-returns-value]
    )
    batches = [at.batch(seed)["ood"][0] for seed in range(6)]
    at.play(6)
    for (own, others), images in zip(asked, batches, strict=True):
        assert torch.equal(own, images.indices)
        assert others.shape == (BATCH, 300)
        for index, row in zip(own.tolist(), others, strict=True):
            assert set(row.tolist()) == set(range(INSTANCES)) - {index}
    assert not torch.equal(asked[0][1], asked[1][1]), "others at every iteration"


def test_both_networks_are_compared_with_the_same_negatives() -> None:
    at = table()
    others: list[Tensor] = []
    for side in (at.method.of_student, at.method.of_teacher):
        side.scores = lambda a, own, other, call=side.scores: (
            others.append(other) or call(a, own, other)  # type: ignore[func-returns-value]
        )
    at.play(1)
    assert torch.equal(*others)


def test_one_image_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="one is too few"):
        Table("crd", instances=1)


# ------------------------------------------------------------------------------------------ scores


def test_scores_are_exponentials_of_similarities_over_a_constant() -> None:
    at = memory()
    anchors = unit(4, DIM)
    own, others = torch.tensor([3, 0, 39, 7]), torch.randint(INSTANCES, (4, 9))
    vectors = at.vectors.double()
    raw = [
        [float((a.double() @ vectors[i] / 0.5).exp()) for i in [int(o), *row.tolist()]]
        for a, o, row in zip(anchors, own, others, strict=True)
    ]
    total = sum(sum(row) for row in raw) / (4 * 10) * INSTANCES
    positive, negatives = at.scores(anchors, own, others)
    assert at.total.item() == pytest.approx(total, rel=1e-5), "the first batch sets it"
    for p, n, row in zip(positive, negatives, raw, strict=True):
        assert [p.item(), *n.tolist()] == pytest.approx([v / total for v in row], rel=1e-5)
    at.scores(unit(4, DIM, seed=1), own, others)
    assert at.total.item() == pytest.approx(total, rel=1e-5), "and no other one"


def test_few_and_many_negatives_give_the_same_scores() -> None:
    """Few are gathered one by one, many are picked from the comparison with all."""
    anchors, own = unit(5, DIM), torch.arange(5)
    others = torch.randint(INSTANCES, (5, 64), generator=torch.Generator().manual_seed(0))
    assert INSTANCES > 8 * (1 + 3), "three negatives are few, 64 are many"
    assert INSTANCES <= 8 * (1 + 64)
    results = []
    for count in (3, 64):
        at = memory()
        at.total.fill_(2.0)
        x = anchors.clone().requires_grad_()
        positive, negatives = at.scores(x, own, others[:, :count])
        (slope,) = torch.autograd.grad((positive + negatives[:, :3].sum(1)).sum(), x)
        at.remember(unit(5, DIM, seed=4), own)  # after the scores, before a backward pass
        results.append((positive, negatives[:, :3], slope))
    for few, many in zip(*results, strict=True):
        torch.testing.assert_close(few, many)


@pytest.mark.parametrize("count", [3, 64])
def test_what_is_remembered_later_does_not_disturb_the_backward_pass(count: int) -> None:
    at, own = memory(), torch.arange(5)
    others = torch.randint(INSTANCES, (5, count), generator=torch.Generator().manual_seed(0))
    slopes = []
    for moved in (False, True):
        x = unit(5, DIM).requires_grad_()
        at.total.fill_(2.0)
        positive, _ = at.scores(x, own, others)
        if moved:
            at.remember(unit(5, DIM, seed=4), own)
        slopes.append(torch.autograd.grad(positive.sum(), x)[0])
    assert torch.equal(*slopes)


def test_scores_in_half_precision_are_computed_in_float32() -> None:
    own = torch.arange(5)
    for count in (3, 64):
        others = torch.randint(INSTANCES, (5, count), generator=torch.Generator().manual_seed(0))
        expected = memory(0.07).scores(unit(5, DIM), own, others)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = memory(0.07).scores(unit(5, DIM), own, others)
        torch.testing.assert_close(actual, expected)


# ------------------------------------------------------------------------------------------ memory


def test_memory_moves_for_the_images_that_were_seen_and_stays_of_length_1() -> None:
    at = table()
    for memories in (at.method.of_student, at.method.of_teacher):
        before = memories.vectors.clone()
        seen = at.batch(0)["ood"][0].indices
        at.trainer.play_turns(at.batch(0))
        moved = (memories.vectors != before).any(dim=1).nonzero().flatten()
        assert moved.tolist() == sorted(seen.tolist())
        lengths = memories.vectors[seen].norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(BATCH))


def test_memory_is_a_running_mean_of_directions() -> None:
    at = memory(momentum=0.75)
    indices, first, second = torch.tensor([5, 2]), unit(2, DIM), unit(2, DIM, seed=1)
    old = at.vectors[indices].clone()
    at.remember(first, indices)
    expected = F.normalize(0.75 * old + 0.25 * first, dim=1)
    torch.testing.assert_close(at.vectors[indices], expected)
    at.remember(second, indices)
    expected = F.normalize(0.75 * expected + 0.25 * second, dim=1)
    torch.testing.assert_close(at.vectors[indices], expected)


def test_each_anchor_is_compared_with_the_other_networks_memory() -> None:
    at = table(negatives=30, contrast=0.5, temperature=3.0)
    student, teacher = outputs_of(at.student), outputs_of(at.teacher)
    ours, theirs = outputs_of(at.method.project_student), outputs_of(at.method.project_teacher)
    given = inputs_of(at.method.project_student), inputs_of(at.student.fc)
    memories = {
        k: getattr(at.method, k).vectors.double().clone() for k in ("of_student", "of_teacher")
    }
    rng = torch.Generator()
    rng.set_state(at.rng.get_state())
    (images,) = at.batch(0)["ood"]
    (turn,) = at.play(1)
    step = torch.randint(1, INSTANCES, (BATCH, 30), generator=rng)
    chosen = torch.cat([images.indices[:, None], (images.indices[:, None] + step) % INSTANCES], 1)
    total = 0.0
    for anchors, vectors in (
        (ours[0], memories["of_teacher"]),
        (theirs[0], memories["of_student"]),
    ):
        directions = F.normalize(anchors.double(), dim=1)
        powers = (torch.einsum("bd,bkd->bk", directions, vectors[chosen]) / 0.07).exp()
        scores = powers / (powers.mean() * INSTANCES)
        total += noise_contrast(scores[:, 0], scores[:, 1:], INSTANCES).item()
    assert torch.equal(given[0][0], given[1][0]), "the embedding is what the classifier is given"
    expected = {"kd": kl_divergence(student[0], teacher[0], 3.0).item(), "contrast": total}
    assert {k: v.item() for k, v in turn.losses.items()} == pytest.approx(expected, rel=1e-4)
    assert turn.weights == {"kd": 1.0, "contrast": 0.5}


# ---------------------------------------------------------------------------------------- learning


def test_the_student_learns_to_tell_images_apart() -> None:
    at = table(steps=180, contrast=1.0, dim=32, contrast_temperature=0.3)
    at.pixels = 2 * torch.randn(INSTANCES, 3, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.no_grad():
        for network in (at.student, at.teacher):  # nothing but the contrast teaches
            network.fc.weight.zero_()
            network.fc.bias.zero_()
    losses = [turn.losses["contrast"].item() for turn in at.play(180)]
    even = torch.full((1, 21), 1 / INSTANCES)
    chance = 2 * noise_contrast(even[:, 0], even[:, 1:], INSTANCES).item()
    assert sum(losses[-30:]) / 30 < 0.9 * chance


def test_projections_learn_beside_the_student_and_are_not_part_of_it() -> None:
    at = table()
    names = set(at.student.state_dict())
    projections = [at.method.project_student, at.method.project_teacher]
    before = [state_of(p) for p in projections]
    at.play(2)
    for projection, state in zip(projections, before, strict=True):
        assert changed(state, state_of(projection)) == {"weight", "bias"}
    assert set(at.student.state_dict()) == names
    learning = at.players["student"].parameters
    assert len(learning) == len(list(at.student.parameters())) + 4


def test_a_game_goes_on_exactly_from_its_state() -> None:
    whole, first, second = table(), table(), table()
    whole.play(5)
    first.play(2)
    file = io.BytesIO()
    torch.save({"game": first.trainer.state_dict(), "rng": first.rng.get_state()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second.trainer.load_state_dict(state["game"])
    second.rng.set_state(state["rng"])
    second.play(3, start=2)
    modules = [state_of(at.players["student"].module) for at in (whole, second)]
    assert not changed(*modules), "memories and projections included"
