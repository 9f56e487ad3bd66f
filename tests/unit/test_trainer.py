"""The game: whose turn moves what, which terms are computed, when schedules advance."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mosaickd.data.loader import Normalize
from mosaickd.engine.player import Player
from mosaickd.engine.schedules import cosine
from mosaickd.engine.trainer import Trainer
from mosaickd.losses import class_balance, kl_divergence, label_alignment, patch_gan_loss
from mosaickd.methods.base import Batch, Images, Latents, Loss, Method, Turn, frozen
from mosaickd.methods.kd import KD
from mosaickd.methods.mosaic import MosaicKD
from mosaickd.methods.scratch import Scratch
from mosaickd.models.discriminator import PatchDiscriminator
from mosaickd.models.generator import Generator

SIZE, BATCH, CLASSES, STEPS = 8, 6, 4, 10


def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


class Table:
    """A mosaic game with everyone who sits at it."""

    def __init__(self, **settings: Any) -> None:
        torch.manual_seed(0)
        self.student = classifier()
        self.teacher = classifier().requires_grad_(False).eval()
        self.generator = Generator(image_size=SIZE, latent_dim=5, width=4)
        self.discriminator = PatchDiscriminator(width=4)
        self.method = MosaicKD(
            student=self.student,
            teacher=self.teacher,
            generator=self.generator,
            discriminator=self.discriminator,
            normalize=Normalize((0.5,) * 3, (0.5,) * 3),
            latents=Latents(5, torch.device("cpu"), 0),
            batch_size=BATCH,
            **settings,
        )
        factory = partial(torch.optim.SGD, lr=0.05)
        self.players = {
            name: Player(module, factory, cosine, steps=STEPS)
            for name, module in self.method.players.items()
        }
        self.trainer = Trainer(self.method, self.players)
        self.trainer.train_mode()

    def batch(self, seed: int = 0) -> Batch:
        rng = torch.Generator().manual_seed(seed)
        return {
            name: [
                Images(
                    torch.randn(BATCH, 3, SIZE, SIZE, generator=rng),
                    torch.zeros(BATCH, dtype=torch.int64),
                )
                for _ in range(stream.draws)
            ]
            for name, stream in self.method.streams.items()
        }

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Of each seat at the table, parameters only."""
        return {
            name: {k: p.detach().clone() for k, p in getattr(self, name).named_parameters()}
            for name in ("student", "teacher", "generator", "discriminator")
        }

    def count_calls(self) -> dict[str, list[int]]:
        """How many images each network has been asked about, call by call."""
        calls: dict[str, list[int]] = {}
        for name in ("student", "teacher", "generator", "discriminator"):
            seen = calls[name] = []
            getattr(self, name).register_forward_hook(
                lambda m, inputs, out, seen=seen: seen.append(len(inputs[0]))
            )
        return calls


def changed(before: dict[str, dict[str, Tensor]], after: dict[str, dict[str, Tensor]]) -> set[str]:
    return {n for n in before if any(not torch.equal(before[n][k], after[n][k]) for k in before[n])}


# ----------------------------------------------------------------------------------------- turns


def test_a_turn_moves_only_its_players_weights() -> None:
    table = Table(student_steps=2)
    states = [table.weights()]
    table.trainer.play_turns(
        table.batch(), after_turn=lambda player: states.append(table.weights())
    )
    moved = [changed(a, b) for a, b in pairwise(states)]
    assert moved == [{"discriminator"}, {"generator"}, {"student"}, {"student"}]


def test_no_turn_leaves_gradients_in_others_weights() -> None:
    table = Table(student_steps=1)
    table.trainer.play_turns(table.batch())
    assert all(p.grad is None for p in table.teacher.parameters())
    for name in ("student", "generator", "discriminator"):
        for parameter in getattr(table, name).parameters():
            parameter.grad = None
    turns = table.method.turns(table.batch(1))
    for player in ("discriminator", "generator", "student"):
        turn = next(turns)
        assert turn.player == player
        table.players[player].step(turn.objective())
        for other in {"student", "generator", "discriminator"} - {player}:
            grads = [p.grad for p in getattr(table, other).parameters()]
            assert all(g is None for g in grads), f"{other} in the {player}'s turn"
        for parameter in getattr(table, player).parameters():
            parameter.grad = None


def test_gradients_that_no_one_takes_are_not_computed() -> None:
    """The discriminator's turn ends at its own input, the generator's passes frozen weights."""
    table = Table(student_steps=1)
    asked: dict[str, list[tuple[bool, bool]]] = {"discriminator": [], "student": []}
    for name, seen in asked.items():
        getattr(table, name).register_forward_hook(
            lambda m, inputs, out, seen=seen: seen.append(
                (inputs[0].requires_grad, all(p.requires_grad for p in m.parameters()))
            )
        )
    table.trainer.play_turns(table.batch())
    # (gradients to the images, gradients to the weights), call by call
    assert asked["discriminator"] == [(False, True), (False, True), (True, False)]
    assert asked["student"] == [(True, False), (False, True)]


def test_fakes_of_the_discriminators_and_the_generators_turn_are_the_same_student_ones_fresh() -> (
    None
):
    table = Table(student_steps=2)
    fakes: list[Tensor] = []
    table.generator.register_forward_hook(lambda m, i, out: fakes.append(out.detach().clone()))
    judged: list[Tensor] = []
    table.discriminator.register_forward_hook(lambda m, i, out: judged.append(i[0].detach()))
    table.trainer.play_turns(table.batch())
    assert len(fakes) == 3  # one for both adversaries, one for each student turn
    assert not torch.equal(fakes[1], fakes[2])
    assert len(judged) == 3  # fakes, reals, and the fakes again
    assert torch.equal(judged[0], judged[2])


def test_the_students_statistics_move_in_the_generators_turn_and_the_teachers_never() -> None:
    table = Table(student_steps=1)
    teacher = {k: v.clone() for k, v in table.teacher.state_dict().items()}
    norm = table.student[1]  # type: ignore[index]
    seen = [norm.running_mean.clone()]
    table.trainer.play_turns(
        table.batch(), after_turn=lambda p: seen.append(norm.running_mean.clone())
    )
    discriminator, generator, student = (not torch.equal(a, b) for a, b in pairwise(seen))
    assert not discriminator
    assert generator
    assert student
    assert all(torch.equal(teacher[k], v) for k, v in table.teacher.state_dict().items())


def test_the_generators_statistics_move_in_the_students_turns() -> None:
    table = Table(student_steps=2)
    norm: Any = table.generator.conv_blocks[0]
    seen: list[Tensor] = []
    table.trainer.play_turns(
        table.batch(), after_turn=lambda p: seen.append(norm.running_mean.clone())
    )
    assert not torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], seen[3])


def test_losses_are_the_equations_of_what_the_players_say() -> None:
    table = Table(adv=2.0, align=3.0, local=0.5, balance=7.0, student_steps=1, temperature=4.0)
    batch = table.batch()
    logits: dict[str, list[Tensor]] = {"student": [], "teacher": [], "discriminator": []}
    for name, seen in logits.items():
        getattr(table, name).register_forward_hook(
            lambda m, i, out, seen=seen: seen.append(out.detach().clone())
        )
    outputs = table.trainer.play_turns(batch)
    judged = logits["discriminator"]
    student, teacher = logits["student"], logits["teacher"]
    expected = [
        {
            "fake": (patch_gan_loss(judged[0], False), 0.25),
            "real": (patch_gan_loss(judged[1], True), 0.25),
        },
        {
            "local": (patch_gan_loss(judged[2], True), 0.5),
            "align": (label_alignment(teacher[0]), 3.0),
            "adv": (-kl_divergence(student[0], teacher[0]), 2.0),
            "balance": (class_balance(teacher[0]), 7.0),
        },
        {"kd": (kl_divergence(student[1], teacher[1], 4.0), 1.0)},
    ]
    for turn, terms in zip(outputs, expected, strict=True):
        assert turn.losses.keys() == terms.keys()
        for name, (value, weight) in terms.items():
            assert turn.losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
            assert turn.weights[name] == weight, name
            assert not turn.losses[name].requires_grad


def test_the_generator_descends_all_its_terms() -> None:
    """With its three partners still, one small step lowers the weighted sum it was given."""
    table = Table(student_steps=1)
    torch.manual_seed(1)
    fixed = torch.randn(BATCH, 5)
    table.method.latents = lambda count: fixed

    def objective() -> Tensor:
        losses = table.method.generator_losses(table.method.generate())
        return Turn("generator", losses).objective()

    before = objective()
    gradient = torch.autograd.grad(before, list(table.generator.parameters()))
    with torch.no_grad():
        for parameter, slope in zip(table.generator.parameters(), gradient, strict=True):
            parameter.sub_(1e-5 * slope)
    expected = 1e-5 * sum(g.square().sum().item() for g in gradient)
    assert (before - objective()).item() == pytest.approx(expected, rel=0.2)


# --------------------------------------------------------------------------------------- settings


def test_the_authors_order_one_discriminator_one_generator_five_students() -> None:
    table = Table()
    outputs = table.trainer.play_turns(table.batch())
    assert [turn.player for turn in outputs] == ["discriminator", "generator", *["student"] * 5]


def test_local_0_leaves_the_discriminator_out() -> None:
    table = Table(local=0.0, student_steps=1)
    calls = table.count_calls()
    outputs = table.trainer.play_turns(table.batch())
    assert [turn.player for turn in outputs] == ["generator", "student"]
    assert calls["discriminator"] == []
    assert "real" not in table.method.streams
    assert "discriminator" not in table.method.players
    assert outputs[0].losses.keys() == {"align", "adv", "balance"}


def test_adv_0_does_not_ask_the_student() -> None:
    table = Table(adv=0.0, student_steps=1)
    calls = table.count_calls()
    outputs = table.trainer.play_turns(table.batch())
    assert outputs[1].losses.keys() == {"local", "align", "balance"}
    assert calls["student"] == [2 * BATCH]  # in its own turn alone


def test_local_alone_does_not_ask_the_teacher() -> None:
    table = Table(adv=0.0, align=0.0, balance=0.0, student_steps=1)
    calls = table.count_calls()
    outputs = table.trainer.play_turns(table.batch())
    assert outputs[1].losses.keys() == {"local"}
    assert calls["teacher"] == [2 * BATCH]


@pytest.mark.parametrize("term", ["align", "balance"])
def test_a_term_of_weight_0_is_not_there(term: str) -> None:
    table = Table(student_steps=1, **{term: 0.0})
    outputs = table.trainer.play_turns(table.batch())
    assert outputs[1].losses.keys() == {"local", "align", "adv", "balance"} - {term}


def test_all_weights_0_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing guides the generator"):
        Table(adv=0.0, align=0.0, local=0.0, balance=0.0)


@pytest.mark.parametrize("joined", [True, False])
def test_ood_images_join_the_students_batch_or_not(joined: bool) -> None:
    table = Table(ood_in_student_batch=joined, student_steps=3)
    calls = table.count_calls()
    assert ("student" in table.method.streams) is joined
    batch = table.batch()
    inputs: list[Tensor] = []
    table.student.register_forward_hook(lambda m, i, out: inputs.append(i[0].detach()))
    table.trainer.play_turns(batch)
    assert calls["student"] == [BATCH, *[2 * BATCH if joined else BATCH] * 3]
    if joined:
        for draw, images in zip(batch["student"], inputs[1:], strict=True):
            assert torch.equal(images[BATCH:], draw.pixels), "each turn has a draw of its own"


@pytest.mark.parametrize("whose", ["ood", "dataset"])
def test_streams_carry_the_references_statistics_and_augmentation(whose: Any) -> None:
    streams = Table(ood_statistics=whose).method.streams
    real, student = streams["real"], streams["student"]
    assert (real.source, real.augment, real.normalization, real.draws) == (
        "ood",
        False,
        "dataset",
        1,
    )
    assert (student.source, student.augment, student.draws) == ("ood", True, 5)
    assert student.normalization == whose


def test_kd_and_scratch_play_one_turn_of_the_student() -> None:
    torch.manual_seed(0)
    student, teacher = classifier(), classifier().requires_grad_(False).eval()
    images = Images(torch.randn(BATCH, 3, SIZE, SIZE), torch.arange(BATCH) % CLASSES)
    kd, scratch = KD(student=student, teacher=teacher, temperature=5.0), Scratch(student=student)
    (turn,) = kd.turns({"ood": [images]})
    assert turn.player == "student"
    expected = kl_divergence(student(images.pixels), teacher(images.pixels), 5.0)
    assert turn.objective().item() == pytest.approx(expected.item(), rel=1e-5)
    (turn,) = scratch.turns({"labelled": [images]})
    expected = nn.functional.cross_entropy(student(images.pixels), images.labels)
    assert turn.objective().item() == pytest.approx(expected.item(), rel=1e-5)
    assert kd.streams["ood"].source == "ood"
    assert scratch.streams["labelled"].source == "dataset"


# ------------------------------------------------------------------------------------------ frozen


def test_frozen_gives_the_same_numbers_without_weight_gradients() -> None:
    torch.manual_seed(0)
    network = classifier()
    x = torch.randn(BATCH, 3, SIZE, SIZE)
    results = []
    for freeze in (False, True):
        copy = classifier()
        copy.load_state_dict(network.state_dict())
        images = x.clone().requires_grad_()
        if freeze:
            with frozen(copy):
                out = copy(images)
        else:
            out = copy(images)
        out.square().sum().backward()
        assert images.grad is not None
        results.append((out.detach(), images.grad, copy[1].running_mean))  # type: ignore[index]
        assert all((p.grad is None) is freeze for p in copy.parameters())
        assert all(p.requires_grad for p in copy.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_frozen_restores_what_learned_before_and_only_that() -> None:
    network = classifier()
    network[0].requires_grad_(False)  # type: ignore[index]
    expected = [p.requires_grad for p in network.parameters()]
    with pytest.raises(ZeroDivisionError), frozen(network, network):  # noqa: PT012
        assert not any(p.requires_grad for p in network.parameters())
        raise ZeroDivisionError
    assert [p.requires_grad for p in network.parameters()] == expected


# ------------------------------------------------------------------------------------------- game


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


def test_an_objective_is_the_weighted_sum() -> None:
    terms = {"a": Loss(torch.tensor(2.0), 3.0), "b": Loss(torch.tensor(5.0), -1.0)}
    assert Turn("x", terms).objective().item() == 1.0
    assert Turn("x", {"a": Loss(torch.tensor(2.0), 3.0)}).objective().item() == 6.0
    assert Turn("x", {"a": Loss(torch.tensor(2.0))}).objective().item() == 2.0


def test_the_second_turn_sees_what_the_first_did() -> None:
    method = TwoTurns()
    factory = partial(torch.optim.SGD, lr=0.1)
    trainer = Trainer(method, {"one": Player(method.network, factory, cosine, steps=10)})
    outputs = trainer.train_step({})
    # d/dw (3 w + w² / 2) = 3 + w: 2 -> 2 - 0.1 * 5 = 1.5 -> 1.5 - 0.1 * 4.5 = 1.05
    assert [turn.losses["linear"].item() for turn in outputs] == pytest.approx([2.0, 1.5])
    assert [turn.losses["square"].item() for turn in outputs] == pytest.approx([4.0, 2.25])
    assert method.network.weight.item() == pytest.approx(1.05)


def test_schedules_advance_once_an_iteration_however_many_turns_there_were() -> None:
    table = Table(student_steps=4)
    for step in range(3):
        for player in table.players.values():
            expected = 0.025 * (1 + torch.cos(torch.tensor(torch.pi * step / STEPS)).item())
            assert player.learning_rate == pytest.approx(expected, rel=1e-5)
        table.trainer.train_step(table.batch(step))


def test_a_game_goes_on_exactly_from_its_state() -> None:
    whole, first, second = Table(), Table(), Table()
    for step in range(4):
        whole.trainer.train_step(whole.batch(step))
    for step in range(2):
        first.trainer.train_step(first.batch(step))
    second.trainer.load_state_dict(first.trainer.state_dict())
    assert isinstance(first.method.latents, Latents)
    assert isinstance(second.method.latents, Latents)
    second.method.latents.load_state_dict(first.method.latents.state_dict())
    for step in range(2, 4):
        second.trainer.train_step(second.batch(step))
    for name in ("student", "generator", "discriminator"):
        expected = getattr(whole, name).state_dict()
        for key, value in getattr(second, name).state_dict().items():
            assert torch.equal(value, expected[key]), f"{name}.{key}"


def test_forward_passes_run_in_the_games_precision_and_updates_outside_of_it() -> None:
    table = Table(student_steps=1)
    trainer = Trainer(
        table.method, table.players, lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )  # fmt: skip
    seen: list[torch.dtype] = []
    table.student.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    inside: list[bool] = []
    outputs = trainer.play_turns(
        table.batch(), after_turn=lambda p: inside.append(torch.is_autocast_enabled("cpu"))
    )
    assert set(seen) == {torch.bfloat16}
    assert not any(inside)
    assert {v.dtype for turn in outputs for v in turn.losses.values()} == {torch.float32}
    assert {p.dtype for p in table.student.parameters()} == {torch.float32}
