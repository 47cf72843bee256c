"""Averages are kept beside teleports: what one evaluates computes the same before and after."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from paired import NETWORKS, observed, pairs_in, random_move, write
from torch import Tensor, nn

import metaopt
from metaopt.base.config import ConfigError, check
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.optim.stepper import ModelGround
from metaopt.rules.averaging import AHEAD, BETWEEN
from metaopt.rules.composed import stepped
from metaopt.rules.first import TeleportFirst
from metaopt.rules.learned.matrix import MatrixUpdateLSTM
from metaopt.rules.learned.matrix_starts import STARTS
from metaopt.rules.learned.matrix_steps import Orthogonal
from metaopt.rules.learned.pair import PairLSTM
from metaopt.symmetry.groups import Group, Slot, Symmetry
from metaopt.symmetry.limits import BoundedNorm
from metaopt.symmetry.maps import Exponential
from metaopt.teleport.pair_engine import PairEngine

AVERAGED = STARTS["averaged"]


def update() -> MatrixUpdateLSTM:
    return MatrixUpdateLSTM(4, 1.0, Orthogonal(), AVERAGED, -1.0, None, 0.2, 1, 0, "u").double()


def data(width: int, seed: int) -> Tensor:
    return torch.randn(6, width, generator=torch.Generator().manual_seed(seed)).double()


def rule(teleports: bool) -> metaopt.LearnedRule:
    """An untrained one in float64, with loud heads."""
    rules = {
        "update": {"kind": "matrix_lstm", "hidden": 4, "iterates": "averaged", "scale": 50.0},
        "teleport": {"kind": "pair_lstm", "hidden": 4},
    }
    content = {
        "name": "averaged",
        "dtype": "float64",
        "task": {"family": "metaopt.tasks.factorised:Sensing", "options": {"size": 6, "rank": 2}},
        "rules": rules if teleports else {"update": rules["update"]},
        "meta": {"hide": {"loss": 0.5}},
    }
    config = check(TrainConfig, content, "averaged")
    return metaopt.LearnedRule(meta_optimizer(config), config)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, width: int, steps: int) -> None:
    for seed in range(steps):
        optimizer.zero_grad()
        net(data(width, seed)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_next_step_of_all_iterates_is_that_of_a_run_begun_there(name: str) -> None:
    """y', d' and x' after a move are those of a run whose iterates were there all along."""
    make, width = NETWORKS[name]
    net = make()
    pairs, own = pairs_in(net, width), update()
    move = random_move(pairs)
    seen = [observed(net, pairs, data(width, seed)) for seed in range(5)]
    z = tuple(w + 0.1 * torch.randn_like(w) for w in seen[0].weights)
    here, there = own.initial_state(seen[0]), own.initial_state(seen[0])
    apart = zip(z, seen[0].weights, strict=True)
    here[AHEAD] = torch.cat([(a - w).flatten(1) for a, w in apart], dim=1)[:, None]
    both = zip(move.weights(z), move.weights(seen[0].weights), strict=True)
    there[AHEAD] = torch.cat([(a - w).flatten(1) for a, w in both], dim=1)[:, None]
    for one in seen:
        _, here = own.propose(one, here)
        moved = replace(one, weights=move.weights(one.weights), grads=move.gradients(one.grads))
        _, there = own.propose(moved, there)
    turned = own.turned(here, move, seen[0].weights)
    torch.testing.assert_close(turned[AHEAD], there[AHEAD], rtol=0, atol=1e-13)
    # What is evaluated has moved as weights do.
    x = move.weights(own.evaluated(seen[0].weights, here))
    torch.testing.assert_close(own.evaluated(moved.weights, turned), x, rtol=0, atol=1e-12)
    # With the same memory of the network (its cells, squares, and what features compare with).
    memory = {n: there[n] for n in there if n[0] in "hcv" or n == "power"}
    ends = []
    for state in (turned | memory, there):
        proposal, after = own.propose(moved, state)
        assert proposal.updates is not None
        ends.append(stepped(moved.weights, proposal.updates, proposal.averaging, {"update": after}))
    (y, states), (y_there, states_there) = ends
    for a, b in zip(y, y_there, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    ahead, ahead_there = states["update"][AHEAD], states_there["update"][AHEAD]
    torch.testing.assert_close(ahead, ahead_there, rtol=0, atol=1e-11)
    assert (ahead - turned[AHEAD]).abs().max() > 1e-3


def test_a_teleport_first_step_averages_at_the_moved_weights() -> None:
    """d of the step before moves by g, then all iterates take the step."""
    make, width = NETWORKS["adapters"]
    net = make()
    pairs, own = pairs_in(net, width), update()
    rules = {"update": own, "teleport": PairLSTM(4, 1.0, 0.1, None, 1, 0, "t").double()}
    engine = PairEngine(Exponential(5.0), BoundedNorm(5.0))
    pair, ground = TeleportFirst(rules, engine), ModelGround(None, None, pairs)
    seen = observed(net, pairs, data(width, 0))
    state = pair.initial_rule_states(seen)
    for seed in range(3):
        before, known = seen, state
        taken = pair.step(before.weights, before, known, ground)
        state = taken.state
        write(net, taken.weights)
        seen = observed(net, pairs, data(width, seed + 1))
    proposal, _ = rules["teleport"].propose(before, known["teleport"])
    assert proposal.generators is not None
    W, report = engine.teleport(before.weights, proposal.generators, ground, proposal.frames)
    moved = report.moved(own, known["update"])
    assert (moved[AHEAD] - known["update"][AHEAD]).abs().max() > 1e-4
    at = replace(before, weights=W, grads=report.move.gradients(before.grads))
    wanted, _ = own.propose(at, moved)
    assert wanted.updates is not None
    assert wanted.averaging is not None
    y, ahead = wanted.averaging.step(W, wanted.updates)
    for a, b in zip(y, taken.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(state["update"][AHEAD], ahead, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_users_teleport_keeps_what_both_modes_compute(mode: str) -> None:
    make, width = NETWORKS["adapters"]
    net = make()
    optimizer = metaopt.LearnedOptimizer(net, rule(teleports=False))
    train(net, optimizer, width, 5)
    x, outputs = data(width, 9), {}
    for name in ("eval", "train"):
        getattr(optimizer, name)()
        outputs[name] = net(x).detach()
    assert (outputs["eval"] - outputs["train"]).abs().max() > 1e-3
    getattr(optimizer, mode)()
    factors = {n: p.detach().clone() for n, p in net.named_parameters()}
    metaopt.teleport(net, 0.5, 1, metaopt.symmetries(net), optimizer=optimizer)
    assert any((p - factors[n]).abs().max() > 1e-2 for n, p in net.named_parameters())
    for name in ("train", "eval", "train"):
        getattr(optimizer, name)()
        torch.testing.assert_close(net(x).detach(), outputs[name], rtol=1e-9, atol=1e-9)


def test_a_translation_moves_all_iterates_alike() -> None:
    net = nn.Sequential(nn.Linear(4, 3)).double()
    optimizer = metaopt.LearnedOptimizer(net, rule(teleports=False))
    x = data(4, 0)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).softmax(-1)[:, 0].sum().backward()
        optimizer.step()
    key = f"update.{AHEAD}"
    before = [optimizer.state[p][key].clone() for p in net.parameters()]
    optimizer.eval()
    outputs = net(x).softmax(-1).detach()
    slots = Slot("0", "weight", 0), Slot("0", "bias", 0)
    allows = frozenset({Group.TRANSLATION})
    found = [Symmetry("0", Group.TRANSLATION, 3, slots, (), allows=allows, free=5)]
    metaopt.teleport(net, symmetries=found, optimizer=optimizer)
    torch.testing.assert_close(net(x).softmax(-1).detach(), outputs)
    for p, d in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(optimizer.state[p][key], d, rtol=0, atol=0)


def test_scaled_units_scale_how_far_the_fast_iterate_is() -> None:
    make, width = NETWORKS["chain"]
    net = make()
    seen, own = observed(net, pairs_in(net, width), data(width, 0)), update()
    state = own.initial_state(seen)
    state[AHEAD] = torch.randn_like(state[AHEAD])
    logs = tuple(torch.randn_like(w) for w in seen.weights)
    found = own.scaled(state, torch.zeros(1, 1), logs)
    scaled = tuple(log.exp() * w for log, w in zip(logs, seen.weights, strict=True))
    averages = own.evaluated(seen.weights, state)
    for log, x, new in zip(logs, averages, own.evaluated(scaled, found), strict=True):
        torch.testing.assert_close(new, log.exp() * x)


def test_a_pair_keeps_its_averages_in_a_users_loop() -> None:
    """x' = x + c (z' - x) at every step, through the elements that the pair has applied."""
    make, width = NETWORKS["adapters"]
    net = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = metaopt.LearnedOptimizer(net, rule(teleports=True))
        train(net, optimizer, width, 6)
    assert optimizer.teleports_off is None
    y = {p: p.detach().clone() for p in net.parameters() if p.requires_grad}
    optimizer.eval()
    for p, trained in y.items():
        d = optimizer.state[p][f"update.{AHEAD}"].reshape(p.shape)
        torch.testing.assert_close(p.detach(), trained - (1 - BETWEEN) / BETWEEN * d)
    assert any((p - trained).abs().max() > 1e-3 for p, trained in y.items())


def test_averages_refuse_actions_that_are_not_linear() -> None:
    content = {
        "name": "through",
        "rules": {
            "update": {"kind": "matrix_lstm", "iterates": "averaged"},
            "teleport": {"kind": "lstm"},
        },
    }
    with pytest.raises(ConfigError, match=r"rules.update.iterates: found averaged, with telep"):
        meta_optimizer(check(TrainConfig, content, "through"))
