"""A player takes the steps of one module, and goes on from its state exactly."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mosaickd.engine.player import Player
from mosaickd.engine.schedules import constant, cosine, multistep

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)
ADAM = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.999))


def module(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def batch(seed: int) -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def play(player: Player, steps: range) -> None:
    for step in steps:
        player.step((player.module(batch(step)) - 1).square().mean())
        player.schedule.step()


def test_a_step_is_the_optimizers_step_on_the_objectives_gradient() -> None:
    mine, theirs = module(), module()
    Player(mine, SGD, cosine, steps=10).step(mine(batch(0)).square().sum())
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    theirs(batch(0)).square().sum().backward()
    optimizer.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_step_touches_no_one_elses_weights_or_gradients() -> None:
    mine, other = module(0), nn.Linear(2, 3)
    before, own = weights(other), weights(mine)
    player = Player(mine, SGD, constant, steps=10)
    player.step(other(mine(batch(0))).square().sum())
    assert all(p.grad is None for p in other.parameters())
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())
    assert not torch.equal(own["0.weight"], mine.state_dict()["0.weight"])


def test_gradients_do_not_add_up_over_steps() -> None:
    network = nn.Linear(4, 2, bias=False)
    player = Player(network, partial(torch.optim.SGD, lr=1.0), constant, steps=10)
    for _ in range(3):
        before = network.weight.detach().clone()
        player.step(network.weight.sum())  # a gradient of 1 everywhere
        assert torch.allclose(before - network.weight.detach(), torch.ones(2, 4))


@pytest.mark.parametrize("optimizer", [SGD, ADAM])
def test_a_restart_is_as_if_the_step_were_the_first(
    optimizer: Callable[..., torch.optim.Optimizer],
) -> None:
    """Of the same weights, by an optimizer that has done much and by one that has done nothing."""
    old = Player(module(), optimizer, constant, steps=10)
    play(old, range(4))
    new = Player(module(1), optimizer, constant, steps=10)
    new.module.load_state_dict(old.module.state_dict())
    for player, restart in ((old, True), (new, False), (old, False), (new, False)):
        player.step((player.module(batch(7)) - 1).square().mean(), restart)
    expected = weights(new.module)
    for name, value in weights(old.module).items():
        assert torch.equal(value, expected[name]), name


def test_frozen_weights_of_a_player_stay() -> None:
    network = module()
    network[0].requires_grad_(False)
    before = weights(network)
    player = Player(network, SGD, constant, steps=10)
    player.step(network(batch(0)).square().sum())
    assert torch.equal(before["0.weight"], network.state_dict()["0.weight"])
    assert not torch.equal(before["2.weight"], network.state_dict()["2.weight"])


@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_clip_bounds_the_norm_of_a_whole_step(clip: float | None) -> None:
    network = nn.Linear(4, 2)
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    player = Player(network, partial(torch.optim.SGD, lr=1.0), constant, steps=1, clip=clip)
    player.step(100 * sum(p.sum() for p in network.parameters()))  # type: ignore[arg-type]
    moved = (nn.utils.parameters_to_vector(network.parameters()).detach() - before).norm().item()
    whole = 100 * 10**0.5  # ten weights, 100 each
    assert moved == pytest.approx(min(clip or whole, whole), rel=1e-3)


@pytest.mark.parametrize("optimizer", [SGD, ADAM])
@pytest.mark.parametrize(
    "schedule",
    [cosine, constant, partial(multistep, milestones=[0.3, 0.7]), partial(cosine, stairs=3)],
)
def test_a_player_goes_on_exactly_from_its_state(
    optimizer: Callable[..., torch.optim.Optimizer], schedule: Callable[..., object]
) -> None:
    whole = Player(module(), optimizer, schedule, steps=10)  # type: ignore[arg-type]
    play(whole, range(10))

    first = Player(module(), optimizer, schedule, steps=10)  # type: ignore[arg-type]
    play(first, range(4))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Player(module(5), optimizer, schedule, steps=10)  # type: ignore[arg-type]
    second.load_state_dict(torch.load(file, weights_only=True))  # as checkpoints are read
    assert second.learning_rate == first.learning_rate
    play(second, range(4, 10))

    expected = whole.module.state_dict()
    assert torch.isfinite(expected["0.weight"]).all()
    assert all(torch.equal(v, expected[k]) for k, v in second.module.state_dict().items())
    assert second.learning_rate == whole.learning_rate


def test_a_learning_rate_that_is_a_tensor_keeps_moving_after_a_resume() -> None:
    """Captured iterations read the rate from memory: the schedule must write where they read."""
    players = [
        Player(module(), SGD, cosine, steps=10, capturable=capturable)
        for capturable in (True, False)
    ]
    for player in players:
        play(player, range(3))
        player.load_state_dict(player.state_dict())
    group = players[0].optimizer.param_groups[0]
    assert isinstance(group["lr"], Tensor)
    assert group["lr"].device == next(players[0].module.parameters()).device
    address = group["lr"].data_ptr()
    for player in players:
        play(player, range(3, 6))
    assert players[0].optimizer.param_groups[0]["lr"].data_ptr() == address
    assert players[0].learning_rate == pytest.approx(players[1].learning_rate, rel=1e-5)


# -------------------------------------------------------------------------------------- schedules


def rates(schedule: Callable[..., object], steps: int) -> list[float]:
    player = Player(module(), SGD, schedule, steps=steps)  # type: ignore[arg-type]
    found = []
    for step in range(steps):
        found.append(player.learning_rate)
        play(player, range(step, step + 1))
    return [*found, player.learning_rate]


def test_cosine_goes_from_the_rate_to_zero_over_the_run() -> None:
    found = rates(cosine, 8)
    expected = [0.05 * (1 + torch.cos(torch.tensor(torch.pi * t / 8)).item()) for t in range(9)]
    assert found == pytest.approx(expected, abs=1e-7)
    assert found[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("steps", "stairs"), [(12, 4), (10, 4), (9, 2), (8, 1)])
def test_a_cosine_in_stairs_stays_the_same_within_each(steps: int, stairs: int) -> None:
    """As the rate of schedules that step once an epoch, but over iterations."""
    found = rates(partial(cosine, stairs=stairs), steps)
    firsts = [found[-(-stair * steps // stairs)] for stair in range(stairs)]
    expected = rates(cosine, stairs)[:-1]
    assert firsts == pytest.approx(expected)
    for stair, rate in enumerate(firsts):
        start, end = (-(-s * steps // stairs) for s in (stair, stair + 1))
        assert set(found[start:end]) == {rate}
    assert found[-1] == pytest.approx(0, abs=1e-9), "after the last iteration"


def test_as_many_stairs_as_iterations_are_a_cosine_and_more_are_none_the_worse() -> None:
    assert rates(partial(cosine, stairs=8), 8) == pytest.approx(rates(cosine, 8), abs=1e-9)
    assert rates(partial(cosine, stairs=200), 8) == pytest.approx(rates(cosine, 8), abs=1e-9)


def test_constant_stays() -> None:
    assert set(rates(constant, 5)) == {0.1}


def test_multistep_takes_fractions_of_the_run() -> None:
    found = rates(partial(multistep, milestones=[0.5, 0.75], gamma=0.1), 8)
    assert found == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 3)
