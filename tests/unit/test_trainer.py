"""Turns, players and schedules: what a step moves, when rates fall, how all goes on from a state.

(Each method's own turns: test_methods.py.)
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from tables import BATCH, STEPS, Classifier, Table, changed, small, state_of
from torch import Tensor, nn

from mosaickd.engine.player import Player
from mosaickd.engine.schedules import constant, cosine, multistep
from mosaickd.engine.trainer import Trainer
from mosaickd.errors import UserError
from mosaickd.methods.base import Batch, Loss, Method, Turn, frozen

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)
ADAM = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.999))
Optimizer = Callable[..., torch.optim.Optimizer]

# ----------------------------------------------------------------------------------------- turns


class TwoTurns(Method):
    """One player, two turns an iteration, two weighted terms each."""

    def __init__(self) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.network.weight, 2.0)
        self.players = {"one": self.network}
        self.streams = {}

    def turns(self, batch: Batch) -> Iterator[Turn]:
        for _ in range(2):
            value = self.network.weight.sum()
            yield Turn("one", {"linear": Loss(value, 3.0), "square": Loss(value**2, 0.5)})


def test_the_second_turn_sees_what_the_first_did() -> None:
    method = TwoTurns()
    factory = partial(torch.optim.SGD, lr=0.1)
    trainer = Trainer(method, {"one": Player(method.network, factory, cosine, steps=10)})
    outputs = trainer.train_step({})
    # d/dw (3 w + w² / 2) = 3 + w: 2 -> 2 - 0.1 * 5 = 1.5 -> 1.5 - 0.1 * 4.5 = 1.05
    assert [turn.losses["linear"].item() for turn in outputs] == pytest.approx([2.0, 1.5])
    assert [turn.losses["square"].item() for turn in outputs] == pytest.approx([4.0, 2.25])
    assert outputs[0].weights == {"linear": 3.0, "square": 0.5}
    assert method.network.weight.item() == pytest.approx(1.05)


def test_a_turn_of_an_unknown_player_is_named() -> None:
    method = TwoTurns()
    player = Player(method.network, partial(torch.optim.SGD, lr=0.1), cosine, steps=10)
    with pytest.raises(UserError, match="TwoTurns yields a turn of 'one', and its players are two"):
        Trainer(method, {"two": player}).train_step({})


def test_gradients_that_no_one_takes_are_not_computed() -> None:
    """The discriminator's turn ends at its own input, the generator's passes frozen weights."""
    at = Table("mosaic", student_steps=1)
    calls: dict[str, list[tuple[bool, bool]]] = {"discriminator": [], "student": []}
    for name, entries in calls.items():
        getattr(at, name).register_forward_hook(
            lambda m, inputs, out, entries=entries: entries.append(
                (inputs[0].requires_grad, all(p.requires_grad for p in m.parameters()))
            )
        )
    at.play(1)
    # (gradients to the images, gradients to the weights), call by call
    assert calls["discriminator"] == [(False, True), (False, True), (True, False)]
    assert calls["student"] == [(True, False), (False, True)]


def test_batch_norms_also_remember_what_comes_in_others_turns() -> None:
    """As in the paper's runs: the student's in the generator's turn, and the other way round."""
    at = Table("mosaic", student_steps=2)
    networks = (at.student, at.generator)
    norms = [next(m for m in n.modules() if isinstance(m, nn.BatchNorm2d)) for n in networks]
    means: list[list[Tensor | None]] = [[norm.running_mean.clone() for norm in norms]]  # type: ignore[union-attr]
    players: list[str] = []

    def after_turn(player: str) -> None:
        players.append(player)
        means.append([norm.running_mean.clone() for norm in norms])  # type: ignore[union-attr]

    at.trainer.play_turns(at.batch(), after_turn)
    moved = [tuple(not a.equal(b) for a, b in zip(*pair, strict=True)) for pair in pairwise(means)]  # type: ignore[union-attr,arg-type]
    assert players == ["discriminator", "generator", "student", "student"]
    # (the student's, the generator's): fakes of the first two turns are made in the first.
    assert moved == [(False, True), (True, False), (True, True), (True, True)]


def test_forward_passes_run_under_autocast_and_updates_outside_of_it() -> None:
    at = Table("mosaic", student_steps=1)
    trainer = Trainer(at.method, at.players, lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    types: set[torch.dtype] = set()
    at.student.register_forward_hook(lambda m, i, out: types.add(out.dtype))
    outputs = trainer.play_turns(
        at.batch(), after_turn=lambda p: types.add(torch.get_autocast_dtype("cpu"))
        if torch.is_autocast_enabled("cpu") else None,
    )  # fmt: skip
    assert types == {torch.bfloat16}
    assert {v.dtype for turn in outputs for v in turn.losses.values()} == {torch.float32}
    assert {p.dtype for p in at.student.parameters()} == {torch.float32}


def test_frozen_gives_the_same_numbers_without_weight_gradients() -> None:
    images = torch.randn(BATCH, 3, 8, 8)
    results = []
    for freeze in (False, True):
        torch.manual_seed(0)
        network, x = Classifier(), images.clone().requires_grad_()
        if freeze:
            with frozen(network):
                out = network(x)
        else:
            out = network(x)
        out.square().sum().backward()
        results.append((out, x.grad, network.stage1[1].running_mean))
        assert all((p.grad is None) is freeze for p in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_frozen_restores_what_learned_before_and_only_that() -> None:
    network = Classifier()
    network.stage1.requires_grad_(False)
    expected = [p.requires_grad for p in network.parameters()]
    with pytest.raises(ZeroDivisionError), frozen(network, network):  # noqa: PT012
        assert not any(p.requires_grad for p in network.parameters())
        raise ZeroDivisionError
    assert [p.requires_grad for p in network.parameters()] == expected


# --------------------------------------------------------------------------------------- players


def module(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def batch(seed: int) -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def take_steps(player: Player, steps: range) -> None:
    for step in steps:
        player.step((player.module(batch(step)) - 1).square().mean())
        player.schedule.step()


def test_a_step_is_the_optimizers_and_touches_no_one_elses_weights() -> None:
    mine, same, other = module(), module(), nn.Linear(2, 3)
    before = state_of(other)
    player = Player(mine, SGD, cosine, steps=10)
    optimizer = torch.optim.SGD(same.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for seed in range(3):  # gradients don't add up
        player.step(other(mine(batch(seed))).square().sum())
        optimizer.zero_grad()
        other(same(batch(seed))).square().sum().backward()
        other.zero_grad()
        optimizer.step()
    for a, b in zip(mine.parameters(), same.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not changed(before, state_of(other))
    player.step(other(mine(batch(0))).square().sum())
    assert all(p.grad is None for p in other.parameters())


@pytest.mark.parametrize("optimizer", [SGD, ADAM])
def test_reset_optimizer_is_as_if_the_step_were_the_first(optimizer: Optimizer) -> None:
    """Of the same weights, by an optimizer that has done much and by one that has done nothing."""
    old = Player(module(), optimizer, constant, steps=10)
    take_steps(old, range(4))
    new = Player(module(1), optimizer, constant, steps=10)
    new.module.load_state_dict(old.module.state_dict())
    for player, reset in ((old, True), (new, False), (old, False), (new, False)):
        player.step((player.module(batch(7)) - 1).square().mean(), reset)
    assert not changed(state_of(new.module), state_of(old.module))


def test_frozen_weights_of_a_player_stay() -> None:
    network = module()
    network[0].requires_grad_(False)
    before = state_of(network)
    Player(network, SGD, constant, steps=10).step(network(batch(0)).square().sum())
    moved = changed(before, state_of(network))
    assert "2.weight" in moved
    assert not {name for name in moved if name.startswith("0.")}


@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_clip_bounds_the_norm_of_a_whole_step(clip: float | None) -> None:
    network = nn.Linear(4, 2)
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    player = Player(network, partial(torch.optim.SGD, lr=1.0), constant, steps=1, clip=clip)
    player.step(100 * sum(p.sum() for p in network.parameters()))  # type: ignore[arg-type]
    moved = (nn.utils.parameters_to_vector(network.parameters()).detach() - before).norm().item()
    whole = 100 * 10**0.5  # ten weights, 100 each
    assert moved == pytest.approx(min(clip or whole, whole), rel=1e-3)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("optimizer", [SGD, ADAM])
@pytest.mark.parametrize(
    "schedule",
    [cosine, constant, partial(multistep, milestones=[0.3, 0.7]), partial(cosine, stairs=3)],
)
def test_a_player_goes_on_exactly_from_its_state(
    optimizer: Optimizer, schedule: Any, capturable: bool
) -> None:
    """capturable: the rate is read from memory, so the schedule must write where it is read."""
    new = partial(Player, optimizer=optimizer, schedule=schedule, steps=10, capturable=capturable)
    whole, first, second = new(module()), new(module()), new(module(5))
    take_steps(whole, range(10))
    take_steps(first, range(4))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))  # as checkpoints are read
    assert second.learning_rate == first.learning_rate
    rate = second.optimizer.param_groups[0]["lr"]
    take_steps(second, range(4, 10))
    if capturable:
        assert second.optimizer.param_groups[0]["lr"] is rate
    assert not changed(state_of(whole.module), state_of(second.module))
    assert second.learning_rate == whole.learning_rate


# ------------------------------------------------------------------------------------- schedules


def rates(schedule: Any, steps: int) -> list[float]:
    player = Player(module(), SGD, schedule, steps=steps)
    values = []
    for step in range(steps):
        values.append(player.learning_rate)
        take_steps(player, range(step, step + 1))
    return [*values, player.learning_rate]


def half_cosine(rate: float, steps: int) -> list[float]:
    return [rate * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps + 1)]


def test_rates_over_a_run() -> None:
    assert rates(cosine, 8) == pytest.approx(half_cosine(0.1, 8), abs=1e-9)
    assert set(rates(constant, 5)) == {0.1}
    fractions = partial(multistep, milestones=[0.5, 0.75], gamma=0.1)
    assert rates(fractions, 8) == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 3)


@pytest.mark.parametrize(("steps", "stairs"), [(12, 4), (10, 4), (9, 2), (8, 1), (8, 8), (8, 200)])
def test_a_cosine_in_stairs_stays_the_same_within_each(steps: int, stairs: int) -> None:
    """As the rate of schedules that step once an epoch, but over iterations."""
    stair = [step * stairs // steps for step in range(steps + 1)]
    cosine_of_stairs = half_cosine(0.1, stairs)
    expected = [cosine_of_stairs[number] for number in stair]
    assert rates(partial(cosine, stairs=stairs), steps) == pytest.approx(expected, abs=1e-9)


def test_schedules_advance_once_an_iteration_however_many_turns_there_were() -> None:
    at = Table("mosaic", student_steps=4)
    expected = half_cosine(0.05, STEPS)
    for step in range(3):
        for player in at.players.values():
            assert player.learning_rate == pytest.approx(expected[step], rel=1e-5)
        at.trainer.train_step(at.batch(step))


@pytest.mark.parametrize("steps", [8, 13, 14])
@pytest.mark.parametrize("name", ["sskd", "deepinv"])
def test_in_phases_each_players_cosine_runs_over_its_own_turns_and_ends_at_zero(
    name: str, steps: int
) -> None:
    at = Table(name, steps=steps, **small(name))
    values: dict[str, list[float]] = {player: [] for player in at.players}
    for _ in range(steps):
        before = {player: at.players[player].learning_rate for player in values}
        (turn,) = at.play(1)
        values[turn.player].append(before[turn.player])
        for other in values.keys() - {turn.player}:
            assert at.players[other].learning_rate == before[other], "not in others' turns"
    for player, own in values.items():
        assert len(own) == at.method.iterations(player, steps)
        own.append(at.players[player].learning_rate)
        assert own == pytest.approx(half_cosine(0.05, len(own) - 1), abs=1e-9)


def test_a_player_that_never_has_a_turn_disturbs_no_one() -> None:
    at = Table("deepinv", steps=2, inversion_steps=3, student_steps=2)
    assert at.method.iterations("student", 2) == 0
    assert [turn.player for turn in at.play(2)] == ["images", "images"]
    assert at.players["student"].learning_rate == pytest.approx(0.05)
