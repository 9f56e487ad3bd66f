"""What every method keeps to, read off conf/method: a new one is tested without an edit here."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from composing import asked, check, composing, own
from omegaconf import DictConfig, OmegaConf
from tables import METHODS, Table, changed, small, state_of
from torch import Tensor, nn

from mosaickd.config.validation import validate
from mosaickd.errors import UserError
from mosaickd.methods import display_name

STEPS = 4  # enough for both phases of those that have two

every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True, scope="module")
def _composing() -> Iterator[None]:
    with composing():
        yield


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    node: Any = OmegaConf.to_container(cfg.method, resolve=True)
    return {key: value for key, value in node.items() if key not in ("_target_", "name")}


def table(name: str) -> Table:
    """A trainer of the method by its YAML, made small."""
    settings = settings_of(asked(f"method={name}")) | small(name)
    return Table(name, **{"steps": STEPS} | settings)


@every_method
def test_a_method_plays_by_its_yaml_and_each_turn_moves_its_player_alone(name: str) -> None:
    assert check(f"method={name}").method.name == name
    at = table(name)
    teacher = state_of(at.teacher)

    def weights() -> dict[str, Tensor]:
        return {
            player: nn.utils.parameters_to_vector(p.module.parameters()).detach()
            for player, p in at.players.items()
        }

    turns: list[str] = []
    before = weights()

    def check_turn(player: str) -> None:
        nonlocal before
        after = weights()
        moved = changed(before, after)  # by the turn, or by the end of the turn before
        assert player in moved
        assert moved <= {player, *turns[-1:]}, f"in a turn of {player}"
        before = after
        turns.append(player)

    for step in range(STEPS):
        for output in at.trainer.train_step(at.batch(step), check_turn):
            for loss, value in output.losses.items():
                assert value.isfinite(), f"{output.player}/{loss}"
    assert set(turns) == set(at.players), "each has a turn"
    assert set(asked(f"method={name}").players) == set(at.players)
    assert not changed(teacher, state_of(at.teacher))
    assert all(p.grad is None for p in at.teacher.parameters())
    assert all(p.requires_grad for p in at.student.parameters())


@every_method
def test_a_run_goes_on_exactly_from_its_state(name: str) -> None:
    whole, first, second = table(name), table(name), table(name)
    whole.play(STEPS)
    first.play(STEPS - 1)
    states = {"trainer": first.trainer, "latents": first.latents}
    file = io.BytesIO()
    torch.save(
        {k: v.state_dict() for k, v in states.items()} | {"rng": first.rng.get_state()}, file
    )
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second.play(1)  # whatever it has done before
    second.trainer.load_state_dict(state["trainer"])
    second.latents.load_state_dict(state["latents"])
    second.rng.set_state(state["rng"])
    second.play(1, start=STEPS - 1)
    for player, other in second.players.items():
        assert not changed(state_of(whole.players[player].module), state_of(other.module)), player


@every_method
def test_no_setting_may_be_of_another_type(name: str) -> None:
    cfg = own(check(f"method={name}"))
    validate(cfg)
    for key in settings_of(cfg):
        wrong = cfg.copy()
        wrong.method[key] = "nonsense"
        with pytest.raises(UserError, match=rf"method\.{key} "):
            validate(wrong)


@every_method
def test_tables_call_a_method_by_its_class_attribute(name: str) -> None:
    assert display_name(name) == METHODS[name].display_name


@pytest.mark.parametrize("name", ["unheard", "base", "../methods/kd", ""])
def test_what_has_no_display_name_goes_by_its_own(name: str) -> None:
    assert display_name(name) == name


@every_method
def test_ood_images_are_normalized_as_the_setting_says(name: str) -> None:
    if "ood_statistics" not in settings_of(asked(f"method={name}")):
        return
    for whose in ("dataset", "ood"):
        streams = Table(name, **small(name), ood_statistics=whose).method.streams
        augmented = [stream for stream in streams.values() if stream.augment]
        assert [(stream.source, stream.normalization) for stream in augmented] == [("ood", whose)]


# ---------------------------------------------------------------------------------- weights of 0

TERMS = {
    "mosaic": ["local", "align", "adv", "balance"],
    "dfq": ["adv", "oh", "ie", "bn"],
    "dafl": ["oh", "balance", "act"],
    "zskt": ["attention"],
    "deepinv": ["oh", "bn", "tv", "adv"],
    "rkd": ["distance", "angle"],
    "sskd": ["tf", "ss"],
}


@pytest.mark.parametrize(
    ("name", "term"), [(n, term) for n, terms in TERMS.items() for term in terms]
)
def test_a_term_of_weight_0_is_not_computed(name: str, term: str) -> None:
    at = Table(name, **small(name), steps=STEPS, **{term: 0.0})
    asked_student: list[Tensor] = []
    at.student.register_forward_hook(lambda *_: asked_student.append(torch.empty(0)))
    outputs = at.play(STEPS)
    names = {loss for output in outputs for loss in output.losses}
    assert term not in names
    assert names >= set(TERMS[name]) - {term}
    if term == "adv":  # the only one that needs the student outside of its own turns
        assert len(asked_student) == [output.player for output in outputs].count("student")


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        (name, [t for t in TERMS[name] if t != "tv"])
        for name in ("mosaic", "dfq", "dafl", "deepinv")
    ],
)
def test_something_must_guide_the_images(name: str, weights: list[str]) -> None:
    with pytest.raises(ValueError, match="nothing guides the"):
        Table(name, **dict.fromkeys(weights, 0.0))


@pytest.mark.parametrize("name", ["mosaic", "dfq", "zskt", "deepinv"])
def test_in_the_images_turn_gradients_pass_the_student_and_end_at_its_weights(name: str) -> None:
    at = Table(name, **small(name))
    calls: list[tuple[bool, bool]] = []
    at.student.register_forward_pre_hook(
        lambda m, inputs: calls.append(
            (inputs[0].requires_grad, any(p.requires_grad for p in m.parameters()))
        )
    )
    at.play(1)
    assert calls[0] == (True, False), "gradients to the images, none to the weights"
    assert all(call == (False, True) for call in calls[1:]), "and the other way round"
