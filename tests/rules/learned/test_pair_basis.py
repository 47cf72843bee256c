"""Teleports to the basis of gradients, and the update rule whose second moments follow them."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from in_basis import content, data, factorised, linear, rule, similarities, updates
from paired import NETWORKS, adapters, observed, pairs_in
from torch import Tensor, nn

import metaopt
from metaopt.base.config import ConfigError, check
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.rules.averaging import AHEAD
from metaopt.rules.composed import stepped
from metaopt.rules.learned import pair_moments
from metaopt.rules.learned.pair_basis import ALWAYS, WAITING, WAITS, PairBasisLSTM
from metaopt.teleport.pair_engine import PairMove

STEPS = 12


@pytest.mark.parametrize("directions", [("adam",), ("adam", "orthogonal", "sign")])
@pytest.mark.parametrize("name", [*NETWORKS, "square"])
def test_the_next_step_is_that_of_a_run_begun_there(name: str, directions: tuple[str, ...]) -> None:
    """All that is kept follows: beside frames of the other side too, where gradients fix them."""
    make, width = NETWORKS.get(name, (square, 5))
    net, rows = make(), 40 if name == "square" else 6
    pairs = pairs_in(net, width)
    own = updates(1024 if name == "square" else 1, directions)
    move = similarities(pairs, 3)
    seen = [observed(net, pairs, data(i, width, rows)) for i in range(2 * STEPS)]
    here, there = own.initial_state(seen[0]), own.initial_state(seen[0])
    here[AHEAD] = torch.randn_like(here[AHEAD])
    there[AHEAD] = move.rows_of_weights(here[AHEAD], seen[0].weights)
    for one in seen:
        _, here = own.propose(one, here)
        moved = replace(one, weights=move.weights(one.weights), grads=move.gradients(one.grads))
        _, there = own.propose(moved, there)
    turned = own.turned(here, move, seen[0].weights)
    second = set(pair_moments.within(here))
    followed = {"m", "v", "products", AHEAD} | second
    assert second
    for key in followed:
        torch.testing.assert_close(turned[key], there[key], rtol=1e-9, atol=1e-11, msg=key)
    for key in followed - {"products", pair_moments.SEEN}:
        # The outputs do not depend on the biases of keys.
        if here[key].abs().max() > 1e-12:
            assert not torch.allclose(here[key], turned[key]), key
    # The network's memory of sizes of weights apart, the step is the same.
    memory = {n: there[n] for n in there if n not in followed}
    steps = []
    for state in (turned | memory, there):
        proposal, after = own.propose(moved, state)
        assert proposal.updates is not None
        steps.append(stepped(moved.weights, proposal.updates, proposal.averaging, {"u": after})[0])
    for a, b in zip(*steps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
def test_squares_of_entries_are_the_diagonal_of_second_moments(name: str) -> None:
    """v and diag V are kept apart, and stay the same through steps, teleports and new frames."""
    make, width = NETWORKS[name]
    net = make()
    pairs, own = pairs_in(net, width), updates()
    state = own.initial_state(observed(net, pairs, data(0, width)))
    for i in range(2 * STEPS):
        one = observed(net, pairs, data(i, width))
        if i % 5 == 4:
            state = own.turned(state, similarities(pairs, i), one.weights)
        _, state = own.propose(one, state)
        sizes = [w[0].numel() for w in one.weights]
        parts = [v.view_as(w) for v, w in zip(state["v"].split(sizes, 2), one.weights, strict=True)]
        second = pair_moments.within(state)
        for a, b in zip(pair_moments.written(pairs, second, parts), parts, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def square() -> nn.Sequential:
    """One pair whose gradients are of full rank, so that rounding chooses no eigenvectors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).double()


@pytest.mark.parametrize("c", [1.0, 1e-2, 30.0])
def test_whatever_its_factors_were_a_pair_trains_alike(c: float) -> None:
    """A run from (c Q A, B Q^T / c) computes what one from (A, B) does, after every step."""
    runs, Q = [], torch.linalg.qr(data(7, 5, 5))[0]
    for g in (torch.eye(5).double(), c * Q):
        net = square()
        with torch.no_grad():
            first, second = linear(net)
            first.weight.copy_(g @ first.weight)
            first.bias.copy_(g @ first.bias)
            second.weight.copy_(second.weight @ torch.linalg.inv(g))
        optimizer = metaopt.LearnedOptimizer(net, rule())
        assert optimizer.teleports_off is None
        outputs = []
        for i in range(STEPS):
            optimizer.zero_grad()
            net(data(i)).square().mean().backward()
            optimizer.step()
            outputs.append(net(data(99)).detach())
        runs.append(torch.stack(outputs))
    assert (runs[0][-1] - runs[0][0]).abs().max() > 1e-3
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-6, atol=1e-8)


def test_in_its_basis_second_moments_are_diagonal_and_the_side_that_makes_has_its_size() -> None:
    """S_A / tr S_A + S_B / tr S_B is diagonal; ||A|| = sqrt(k) exp(u), waiting and after it."""
    net = adapters()
    pairs = pairs_in(net, 5)
    made = PairBasisLSTM(4, 1e-9, None, 5, 0, "t").double()
    seen = observed(net, pairs, data(0))
    state = made.initial_state(seen)
    for step in range(1, WAITS + 3):
        proposal, state = made.propose(seen, state)
        assert proposal.elements is not None
        move = PairMove(pairs, proposal.elements)
        assert proposal.elements[0] is not None
        g, g_inv = proposal.elements[0]
        torch.testing.assert_close(g @ g_inv, torch.eye(3).double().expand_as(g))
        after = pairs.widths[0].products(move.weights(seen.weights))[:, 0]
        size = after.diagonal(dim1=-2, dim2=-1).mean(-1).sqrt()
        wanted = torch.full_like(size, WAITING if step <= WAITS else 1.0)
        torch.testing.assert_close(size, wanted, rtol=1e-6, atol=0)
        S = made.turned(state, move, seen.weights)["s0"]
        S = (S / S.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]).sum(1)
        torch.testing.assert_close(S, torch.diag_embed(S.diagonal(dim1=-2, dim2=-1)))


@pytest.mark.parametrize("every", [1, 4])
def test_teleports_come_at_the_first_steps_and_then_as_often_as_is_said(every: int) -> None:
    net = adapters()
    pairs = pairs_in(net, 5)
    made = PairBasisLSTM(4, 1.0, None, every, 0, "t").double()
    seen = observed(net, pairs, data(0))
    state, moves = made.initial_state(seen), []
    for _ in range(ALWAYS + 9):
        proposal, state = made.propose(seen, state)
        moves.append(proposal.elements is not None)
    assert moves == [t <= ALWAYS or t % every == 0 for t in range(1, ALWAYS + 10)]


def test_sides_of_zeros_and_without_gradients_are_left() -> None:
    net = adapters()
    pairs = pairs_in(net, 5)
    seen = observed(net, pairs, data(0))
    nothing = replace(
        seen,
        weights=tuple(torch.zeros_like(w) for w in seen.weights),
        grads=tuple(torch.zeros_like(g) for g in seen.grads),
    )
    made = PairBasisLSTM(4, 50.0, None, 5, 0, "t").double()
    proposal, _ = made.propose(nothing, made.initial_state(nothing))
    assert proposal.elements is not None
    assert proposal.elements[0] is not None
    (g, _), eye = proposal.elements[0], torch.eye(3).double()
    # In some order.
    torch.testing.assert_close(g.abs().sort(dim=-1)[0], eye.sort(dim=-1)[0].expand_as(g))


class Apart(nn.Module):
    """Attention of two heads, whose queries, keys and values have a layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(6, 6) for name in "qkvo"})

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (-1, 6))
        q, k, v = (self.layers[n](x).unflatten(-1, (2, 3)).transpose(1, 2) for n in "qkv")
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.layers["o"](mixed)


def test_heads_of_one_layer_get_one_size_and_a_basis_each() -> None:
    net = Apart().double()
    pairs = pairs_in(net, 24)
    made = PairBasisLSTM(4, 50.0, None, 5, 0, "t").double()
    seen = observed(net, pairs, data(0, 24))
    proposal, _ = made.propose(seen, made.initial_state(seen))
    assert proposal.elements is not None
    for width, (g, _) in zip(pairs.widths, filter(None, proposal.elements), strict=True):
        c = torch.linalg.det(g[0]).abs()
        torch.testing.assert_close(c, c[width.first])
        assert len(set(width.first.tolist())) < width.count
        assert not torch.allclose(g[0, 0].abs(), g[0, 1].abs())


def test_a_packed_projection_turns_and_keeps_its_size() -> None:
    make, width = NETWORKS["heads"]
    net = make()
    pairs = pairs_in(net, width)
    assert not any(alone.any() for alone in pairs.alone)
    made = PairBasisLSTM(4, 50.0, None, 5, 0, "t").double()
    seen = observed(net, pairs, data(0, width))
    proposal, _ = made.propose(seen, made.initial_state(seen))
    assert proposal.elements is not None
    for g, _ in filter(None, proposal.elements):
        eye = torch.eye(g.shape[-1]).double().expand_as(g)
        torch.testing.assert_close(g @ g.mT, eye)
        assert not torch.allclose(g, eye)


@pytest.mark.parametrize("between", [pair_moments.WIDEST, pair_moments.WIDEST + 1])
def test_pairs_that_are_too_wide_stay_and_keep_frames_of_their_own(between: int) -> None:
    net = factorised(between)
    pairs = pairs_in(net, 24)
    seen = observed(net, pairs, data(0, 24))
    is_kept = any(x.dim() == 5 for x in updates().initial_state(seen).values())
    made = PairBasisLSTM(4, 50.0, None, 5, 0, "t").double()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        state = made.initial_state(seen)
    assert len(told) == (between > pair_moments.WIDEST)
    proposal, _ = made.propose(seen, state)
    stays = proposal.elements is None
    assert (is_kept, stays) == ((True, False) if between <= pair_moments.WIDEST else (False, True))
    given = pair_moments.given(pairs, 3)
    assert given[0] == (is_kept, False)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"teleport": "pair_lstm", "pairs": "moved"},
            r"expected rules\.update of kind matrix_lstm",
        ),
        ({"pairs": "framed"}, r"field rules\.update\.pairs: found framed"),
        ({"teleport": "", "pairs": "moved"}, r"update\.pairs: found moved, without a teleport"),
    ],
)
def test_what_cannot_follow_is_refused(given: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        meta_optimizer(check(TrainConfig, content(**given), "basis"))


def test_nothing_warns_where_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metaopt.LearnedOptimizer(factorised(), rule())
