"""Teleports of linear pairs: frames that count from the start, and states that follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paired import NETWORKS, adapters, observed, pairs_in, random_move, write
from torch import Tensor

from metaopt.optim.stepper import ModelGround
from metaopt.rules.config import RulesConfig
from metaopt.rules.first import TeleportFirst
from metaopt.rules.learned.matrix import MatrixUpdateLSTM
from metaopt.rules.learned.matrix_starts import STARTS
from metaopt.rules.learned.matrix_steps import Both, MatrixSteps, Normalised, Orthogonal
from metaopt.rules.learned.pair import PairLSTM
from metaopt.symmetry.actions import InexactActionError
from metaopt.symmetry.limits import BoundedNorm
from metaopt.symmetry.maps import Exponential
from metaopt.symmetry.pairs import LinearPairs
from metaopt.teleport.pair_engine import PairEngine, PairReport

LIMIT = 5.0


def engine() -> PairEngine:
    return PairEngine(Exponential(LIMIT), BoundedNorm(LIMIT))


def generators(pairs: LinearPairs, norm: float, seed: int = 0) -> tuple[Tensor, ...]:
    drawn = torch.Generator().manual_seed(seed)
    shapes = [(1, width.count, width.size, width.size) for width in pairs.widths]
    return tuple(norm * torch.randn(s, generator=drawn).double() for s in shapes)


def data(width: int, seed: int = 1) -> Tensor:
    return torch.randn(6, width, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_whatever_the_generators(name: str) -> None:
    make, width = NETWORKS[name]
    net = make()
    pairs = pairs_in(net, width)
    seen, outputs = observed(net, pairs, data(width)), net(data(width)).detach()
    weights, frames = seen.weights, None
    for step in range(5):
        ground = ModelGround(None, None, pairs)
        T = generators(pairs, 3.0, step)
        weights, report = engine().teleport(weights, T, ground, frames)
        frames = report.move.frames
    write(net, weights)
    assert (net(data(width)) - outputs).abs().max() < 1e-9 * outputs.abs().max()


def test_the_frame_of_generators_zero_is_where_it_began() -> None:
    """However far it went: frames count from the start, and no rule can carry weights away."""
    net = adapters()
    pairs = pairs_in(net, 5)
    start = observed(net, pairs, data(5)).weights
    ground = ModelGround(None, None, pairs)
    weights, report = engine().teleport(start, generators(pairs, 1.0), ground)
    for seed in range(3):
        T = generators(pairs, 1.0, seed)
        weights, report = engine().teleport(weights, T, ground, report.move.frames)
    nothing = tuple(0 * T for T in generators(pairs, 1.0))
    back, _ = engine().teleport(weights, nothing, ground, report.move.frames)
    for W, V in zip(start, back, strict=True):
        assert torch.allclose(W, V, atol=1e-10)


def test_elements_and_inverses_multiply_to_one_at_any_norm() -> None:
    net = adapters()
    pairs = pairs_in(net, 5)
    start = observed(net, pairs, data(5)).weights
    T = tuple(x.float() for x in generators(pairs, 30.0))
    single = tuple(W.float() for W in start)
    _, report = engine().teleport(single, T, ModelGround(None, None, pairs))
    assert len(report.move.elements) == len(pairs.widths)
    for g, g_inv in filter(None, report.move.elements):
        assert (g @ g_inv - torch.eye(3)).abs().max() < 1e-4 * g.abs().max() * g_inv.abs().max()
    assert float(report.norm.max()) < LIMIT * 3**0.5


def test_without_pairs_it_refuses() -> None:
    with pytest.raises(InexactActionError, match="linear pairs"):
        engine().check(ModelGround(None, None, None), ())


@pytest.mark.parametrize(
    "step", [Normalised(), Orthogonal(), Both()], ids=["normalised", "orthogonal", "both"]
)
def test_the_next_step_is_that_of_a_run_begun_there(step: MatrixSteps) -> None:
    """Momenta of five gradients, moved with the weights, are those of the moved gradients."""
    net = adapters()
    pairs = pairs_in(net, 5)
    rule = MatrixUpdateLSTM(4, 1.0, step, STARTS["last"], 0.0, None, 0.2, 1, 0, "test").double()
    move = random_move(pairs)
    seen = [observed(net, pairs, data(5, seed)) for seed in range(5)]
    here = rule.initial_state(seen[0])
    there = rule.initial_state(seen[0])
    for one in seen:
        _, here = rule.propose(one, here)
        moved = type(one)(
            move.weights(one.weights), move.gradients(one.grads), (), one.loss, None, pairs
        )
        _, there = rule.propose(moved, there)
    turned = rule.turned(here, move, seen[0].weights)
    assert torch.allclose(turned["m"], there["m"], atol=1e-13)
    assert torch.equal(turned["v"], there["v"])
    # With the same memory of the network (its cells, and what its features compare with), the
    # same step.
    memory = {name: there[name] for name in there if name[0] in "hc" or name == "power"}
    first, _ = rule.propose(moved, turned | memory)
    second, _ = rule.propose(moved, there)
    assert first.updates is not None
    assert second.updates is not None
    for a, b in zip(first.updates, second.updates, strict=True):
        assert torch.allclose(a, b, atol=1e-11)


def test_a_teleport_first_step_is_the_update_at_the_moved_weights() -> None:
    """w' = g . w + f, f what the update rule proposes to a run whose gradient is taken at g . w."""
    net = adapters()
    pairs = pairs_in(net, 5)
    update = MatrixUpdateLSTM(
        4, 1.0, Orthogonal(), STARTS["last"], -1.0, None, 0.2, 1, 0, "update"
    ).double()
    teleport = PairLSTM(4, 1.0, 0.1, None, 1, 0, "teleport").double()
    pair = TeleportFirst({"update": update, "teleport": teleport}, engine())
    seen = observed(net, pairs, data(5))
    ground = ModelGround(None, None, pairs)
    state = pair.initial_rule_states(seen)
    taken = pair.step(seen.weights, seen, state, ground)
    proposal, _ = teleport.propose(seen, state["teleport"])
    assert proposal.generators is not None
    moved, _ = engine().teleport(seen.weights, proposal.generators, ground)
    write(net, moved)
    again = observed(net, pairs, data(5))
    expected, _ = update.propose(again, state["update"])
    assert expected.updates is not None
    for W, f, found in zip(moved, expected.updates, taken.weights, strict=True):
        assert torch.allclose(W + f, found, atol=1e-11)
    assert any((W - V).abs().max() > 1e-3 for W, V in zip(moved, seen.weights, strict=True))


def test_pairs_move_at_the_first_step_of_a_turn_alone() -> None:
    net = adapters()
    pairs = pairs_in(net, 5)
    update = MatrixUpdateLSTM(
        4, 1.0, Orthogonal(), STARTS["last"], -1.0, None, 0.2, 3, 0, "update"
    ).double()
    teleport = PairLSTM(4, 1.0, 0.1, None, 3, 0, "teleport").double()
    pair = TeleportFirst({"update": update, "teleport": teleport}, engine())
    ground = ModelGround(None, None, pairs)
    seen = [observed(net, pairs, data(5, seed)) for seed in range(7)]
    state, moved = pair.initial_rule_states(seen[0]), []
    for one in seen:
        taken = pair.step(one.weights, one, state, ground)
        assert isinstance(taken.report, PairReport)
        pairs_of_weights = zip(taken.report.before, taken.report.after, strict=True)
        moved.append(max(float((w - v).abs().max()) for w, v in pairs_of_weights))
        state = taken.state
    assert [change > 1e-3 for change in moved] == [True, False, False, True, False, False, True]
    assert max(moved[1:3] + moved[4:6]) < 1e-12


def test_both_rules_take_turns_of_equal_length() -> None:
    kinds: dict[str, Any] = {"update": {"kind": "matrix_lstm", "every": 2}}
    RulesConfig.model_validate(kinds | {"teleport": {"kind": "pair_lstm", "every": 2}})
    with pytest.raises(ValueError, match=r"update.every: found 2, expected 1, that of teleport"):
        RulesConfig.model_validate(kinds | {"teleport": {"kind": "pair_lstm"}})
