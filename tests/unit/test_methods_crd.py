"""CRD: who is compared with whom, and what is remembered of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recipes import VANILLA, departures
from tables import BATCH, INSTANCES, Table, changed, inputs_of, outputs_of, state_of
from torch import Tensor

from mosaickd.losses import kl_divergence, noise_contrast
from mosaickd.methods.crd import Memory

DIM = 7


def test_the_recipe() -> None:
    recipe = VANILLA | {
        "method.contrast": 0.8,
        "method.dim": 128,
        "method.negatives": 16384,
        "method.contrast_temperature": 0.07,
        "method.momentum": 0.5,
    }
    assert departures(recipe, "method=crd") == {}


def table(**settings: Any) -> Table:
    return Table("crd", **({"negatives": 20, "dim": DIM} | settings))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def memory(temperature: float = 0.5, momentum: float = 0.5) -> Memory:
    torch.manual_seed(3)
    return Memory(INSTANCES, DIM, temperature, momentum)


# --------------------------------------------------------------------------------------- negatives


def test_negatives_are_any_other_images_and_the_same_for_both_networks() -> None:
    at = table(negatives=300)
    calls: list[tuple[Tensor, Tensor]] = []
    for memory in (at.method.student_memory, at.method.teacher_memory):
        memory.scores = lambda anchors, own, others, scores=memory.scores: (
            calls.append((own, others)) or scores(anchors, own, others)  # type: ignore[func-returns-value]
        )
    (images,) = at.batch(0)["ood"]
    at.play(2)
    for own, others in calls[:2]:
        assert torch.equal(own, images.indices)
        assert others.shape == (BATCH, 300)
        for index, row in zip(own.tolist(), others, strict=True):
            assert set(row.tolist()) == set(range(INSTANCES)) - {index}
    assert torch.equal(calls[0][1], calls[1][1])
    assert not torch.equal(calls[0][1], calls[2][1]), "others at every iteration"


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
        at.update(unit(5, DIM, seed=4), own)  # after the scores; the gradient is of those before
        results.append((positive, negatives[:, :3], slope))
    for few, many in zip(*results, strict=True):
        torch.testing.assert_close(few, many)


# ------------------------------------------------------------------------------------------ memory


def test_memory_is_a_running_mean_of_directions_of_the_images_in_the_batch() -> None:
    at = memory(momentum=0.75)
    indices, others = torch.tensor([5, 2]), [i for i in range(INSTANCES) if i not in (5, 2)]
    before = at.vectors.clone()
    for vectors in (unit(2, DIM), unit(2, DIM, seed=1)):
        expected = F.normalize(0.75 * at.vectors[indices] + 0.25 * vectors, dim=1)
        at.update(vectors, indices)
        torch.testing.assert_close(at.vectors[indices], expected)
    assert torch.equal(at.vectors[others], before[others])


def test_each_anchor_is_compared_with_the_other_networks_memory() -> None:
    at = table(negatives=30, contrast=0.5, temperature=3.0)
    student, teacher = outputs_of(at.student), outputs_of(at.teacher)
    ours, theirs = outputs_of(at.method.project_student), outputs_of(at.method.project_teacher)
    given = inputs_of(at.method.project_student), inputs_of(at.student.fc)
    memories = {
        k: getattr(at.method, k).vectors.double().clone()
        for k in ("student_memory", "teacher_memory")
    }
    rng = torch.Generator()
    rng.set_state(at.rng.get_state())
    (images,) = at.batch(0)["ood"]
    (turn,) = at.play(1)
    step = torch.randint(1, INSTANCES, (BATCH, 30), generator=rng)
    chosen = torch.cat([images.indices[:, None], (images.indices[:, None] + step) % INSTANCES], 1)
    total = 0.0
    for anchors, vectors in (
        (ours[0], memories["teacher_memory"]),
        (theirs[0], memories["student_memory"]),
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
