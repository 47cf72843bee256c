"""The layer-wise rule: its formula, what it can do without, and its state in a user's loop."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from cases import LAYER, learned_rule, run_and_resume, train_config
from cases import tasks as sample
from support import signed
from torch import Tensor

from metaopt.base.network import Weights
from metaopt.meta.build import meta_optimizer
from metaopt.meta.unroll import rollout
from metaopt.rules.learned.layer import (
    DECAYS,
    MIXTURE,
    ROUNDING,
    SQUARES_DECAY,
    WEIGHT_DECAY,
    LayerUpdateLSTM,
)
from metaopt.tasks.base import Observation
from metaopt.tasks.variations import Hiding
from metaopt.teleport.optimizer_state import Kept


def silent() -> LayerUpdateLSTM:
    """A rule whose head says nothing."""
    rule = LayerUpdateLSTM(hidden=4, scale=1.0, seed=0, name="update").double()
    with torch.no_grad():
        for parameter in rule.head.parameters():
            parameter.zero_()
    return rule


def weights_and_gradients(step: int) -> tuple[Weights, Weights]:
    shapes = [(4, 5), (4, 1), (3, 4), (1, 1)]
    W = tuple(signed(2, *shape, seed=i) for i, shape in enumerate(shapes))
    G = tuple(signed(2, *shape, seed=100 * step + i) for i, shape in enumerate(shapes))
    return W, G


def test_untrained_it_is_the_stated_mixture_of_means() -> None:
    rule = silent()
    W, _ = weights_and_gradients(0)
    state = rule.initial_state(Observation(W, W, (), None))
    history: list[Weights] = []
    for step in range(1, 5):
        _, G = weights_and_gradients(step)
        history.append(G)
        proposal, state = rule.propose(Observation(W, G, (), None), state)
        assert proposal.updates is not None

        def mean(decay: float, values: list[Tensor], t: int = step) -> Tensor:
            terms = [decay ** (t - 1 - s) * value for s, value in enumerate(values)]
            return (1 - decay) * torch.stack(terms).sum(0) / (1 - decay**t)

        squares = [
            mean(SQUARES_DECAY, [g.square() for g in own]) for own in zip(*history, strict=True)
        ]
        of_all = torch.cat([square.flatten(1) for square in squares], dim=1).mean(1)[:, None, None]
        for i, (w, f) in enumerate(zip(W, proposal.updates, strict=True)):
            own = [G_[i] for G_ in history]
            root = (squares[i] + ROUNDING**2 * of_all).sqrt()
            means = [*(mean(decay, own) for decay in DECAYS), own[-1]]
            mixed = sum(a * m for a, m in zip(MIXTURE, means, strict=True))
            size = math.e / (64 + w.shape[2])
            wanted = -size * (mixed / root + WEIGHT_DECAY * w)
            torch.testing.assert_close(f, wanted, rtol=1e-9, atol=1e-12)


def test_what_is_rounding_is_hardly_moved() -> None:
    rule = silent()
    W, G = weights_and_gradients(1)
    rounding = (G[0], 1e-8 * G[1], *G[2:])
    seen = Observation(W, rounding, (), None)
    proposal, _ = rule.propose(seen, rule.initial_state(seen))
    assert proposal.updates is not None
    largest = math.e / (64 + 1) * (1e-2 + WEIGHT_DECAY * W[1].abs())
    assert (proposal.updates[1].abs() < largest).all()
    plain = rule.propose(replace(seen, grads=G), rule.initial_state(seen))[0].updates
    assert plain is not None
    torch.testing.assert_close(proposal.updates[0], plain[0], rtol=1e-6, atol=1e-10)


def test_parameters_may_come_in_any_order() -> None:
    rule = learned_rule("layer").optimizer.rules["update"]
    W, G = weights_and_gradients(1)
    order = [2, 0, 3, 1]
    loss = torch.tensor([0.3, 2.0]).double()
    here, there = (
        Observation(W, G, (), loss),
        Observation(tuple(W[i] for i in order), tuple(G[i] for i in order), (), loss),
    )
    found = rule.propose(here, rule.initial_state(here))[0].updates
    other = rule.propose(there, rule.initial_state(there))[0].updates
    assert found is not None
    assert other is not None
    for i, place in enumerate(order):
        torch.testing.assert_close(other[i], found[place], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("factor", [1e-6, 1e3])
def test_the_scale_of_gradients_does_not_matter(factor: float) -> None:
    rule = learned_rule("layer").optimizer.rules["update"]
    W, G = weights_and_gradients(1)
    updates = []
    for scale in (1.0, factor):
        seen = Observation(W, tuple(scale * g for g in G), (), None)
        updates.append(rule.propose(seen, rule.initial_state(seen))[0].updates)
    for a, b in zip(*updates, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_what_has_no_gradient_neither_moves_nor_shrinks() -> None:
    rule = silent()
    W, G = weights_and_gradients(1)
    dead = (G[0].clone(), *G[1:])
    dead[0][:, :, 2] = 0
    seen = Observation(W, dead, (), None)
    proposal, _ = rule.propose(seen, rule.initial_state(seen))
    assert proposal.updates is not None
    assert proposal.decays is not None
    assert bool((proposal.updates[0][:, :, 2] == 0).all())
    others = [0, 1, 3, 4]
    wanted = -math.e / (64 + 5) * WEIGHT_DECAY * W[0][:, :, others]
    torch.testing.assert_close(proposal.decays[0][:, :, others], wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_statistics_are_those_of_what_moves(frozen: int) -> None:
    """A parameter without a gradient, however large, changes nothing for the others."""
    rule = learned_rule("layer").optimizer.rules["update"]
    W, G = weights_and_gradients(1)
    large = (1e3 * torch.ones(2, 7, 3, dtype=W[0].dtype),)
    nothing = (torch.zeros_like(large[0]),)
    alone, beside = None, None
    for step in range(3):
        scaled = tuple((step + 1) * g for g in G)
        seen = Observation(W, scaled, (), None)
        alone = rule.initial_state(seen) if alone is None else alone
        wanted, alone = rule.propose(seen, alone)
        more = Observation(
            (*W[:frozen], *large, *W[frozen:]),
            (*scaled[:frozen], *nothing, *scaled[frozen:]),
            (),
            None,
        )
        beside = rule.initial_state(more) if beside is None else beside
        found, beside = rule.propose(more, beside)
        assert wanted.updates is not None
        assert found.updates is not None
        others = (*found.updates[:frozen], *found.updates[frozen + 1 :])
        for a, b in zip(others, wanted.updates, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
        assert bool((found.updates[frozen] == 0).all())


def test_a_parameter_that_is_frozen_on_the_way_leaves_the_statistics() -> None:
    """The squares that are kept of it say nothing of the others."""
    rule = learned_rule("layer").optimizer.rules["update"]
    W, G = weights_and_gradients(1)
    seen = Observation(W, G, (), None)
    _, state = rule.propose(seen, rule.initial_state(seen))
    found = []
    for size in (1.0, 1e6):
        sizes = [w[0].numel() for w in W]
        squares = [part.clone() for part in state["v"].split(sizes, dim=2)]
        squares[0] *= size
        frozen = Observation(W, (torch.zeros_like(G[0]), *G[1:]), (), None)
        proposal, _ = rule.propose(frozen, state | {"v": torch.cat(squares, dim=2)})
        assert proposal.updates is not None
        found.append(proposal.updates[1:])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_the_loss_is_heard_and_can_be_done_without() -> None:
    rule = learned_rule("layer").optimizer.rules["update"]
    W, G = weights_and_gradients(1)
    told = Observation(W, G, (), torch.tensor([0.1, 5.0]).double())
    silent_ = replace(told, loss=None)
    state = rule.initial_state(told)
    with_loss, heard = rule.propose(told, state)
    without, unheard = rule.propose(silent_, state)
    assert with_loss.updates is not None
    assert without.updates is not None
    assert float((with_loss.updates[0] - without.updates[0]).detach().norm()) > 1e-8
    assert torch.equal(heard["heard"], torch.ones(2, 1, 4).double())
    assert torch.equal(unheard["heard"], torch.zeros(2, 1, 4).double())
    again, _ = rule.propose(silent_, unheard)
    assert again.updates is not None


def test_what_is_no_loss_is_not_heard() -> None:
    rule = learned_rule("layer").optimizer.rules["update"]
    W, G = weights_and_gradients(1)
    told = [1.0, -1.0, math.inf, math.nan, 1.0]
    state = deaf = rule.initial_state(Observation(W, G, (), None))
    for value in told:
        seen = Observation(W, G, (), torch.tensor([value, 0.5]).double())
        proposal, state = rule.propose(seen, state)
        assert proposal.updates is not None
        assert all(bool(f.isfinite().all()) for f in proposal.updates)
        if not 0 <= value < math.inf:
            # As if nothing had been said.
            unheard = rule.propose(replace(seen, loss=None), deaf)[0].updates
            assert unheard is not None
            torch.testing.assert_close(proposal.updates[0][0], unheard[0][0], rtol=1e-9, atol=0)
        deaf = state
    assert state["heard"][:, 0, 0].tolist() == [2, 5]
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_every_tensor_of_the_state_has_a_known_place() -> None:
    rule = silent()
    W, G = weights_and_gradients(1)
    state = rule.initial_state(Observation(W, G, (), None))
    entries = sum(w[0].numel() for w in W)
    for name, tensor in state.items():
        columns = len(W) if rule.kept(name) is Kept.TENSORS else entries
        assert tensor.shape[0] == 2
        assert tensor.shape[2] == columns


# What is hidden in meta-training.


def test_shares_of_meta_batches_are_hidden() -> None:
    hiding = Hiding({"loss": 0.25, "inputs": 0.0}, seed=3)
    found = [hiding.of(number) for number in range(400)]
    share = sum("loss" in hidden for hidden in found) / len(found)
    assert 0.17 < share < 0.33
    assert not any("inputs" in hidden for hidden in found)
    assert found == [hiding.of(number) for number in range(400)]
    assert Hiding({"loss": 1.0, "inputs": 1.0}, 0).of(7) == {"loss", "inputs"}


def test_rules_are_not_shown_what_is_hidden() -> None:
    rule = learned_rule("coordinate_directions_update")
    tasks = sample(rule.config.task, count=2)
    shown, hidden = tasks.observe(tasks.initial), tasks.hiding(frozenset({"loss", "inputs"}))
    assert tasks.shown(shown, 0).loss is shown.loss
    assert hidden.shown(shown, 0).loss is None
    assert hidden.shown(shown, 0).inputs == ()
    plain, _ = rollout(tasks, rule.optimizer, 3)
    without, _ = rollout(hidden, rule.optimizer, 3)
    assert torch.equal(plain[0], without[0])
    assert not torch.equal(plain[-1], without[-1])
    assert without.isfinite().all()


def test_meta_training_hides_and_resumes_to_the_same_bits() -> None:
    config = train_config(
        "layer",
        meta={"batch": 2, "outer_steps": 8, "steps": 4, "unroll": 2, "hide": {"loss": 0.5}},
        validation={"every": 4, "tasks": 2},
    )

    hidden = run_and_resume(config, lambda run: run.tasks and run.tasks.hides)
    # How many steps there will be is told to those alone that ask for it.
    assert set(hidden) == {frozenset({"left"}), frozenset({"left", "loss"})}


def test_a_run_is_built_from_its_configuration() -> None:
    config = train_config("layer")
    rule = meta_optimizer(config).rules["update"]
    assert isinstance(rule, LayerUpdateLSTM)
    assert rule.lstm.hidden == LAYER["hidden"]
