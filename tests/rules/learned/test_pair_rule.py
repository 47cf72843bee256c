"""The teleporter of linear pairs: the same teleports in each frame, any rank, width and number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paired import adapters, observed, pairs_in
from torch import Tensor

from metaopt.rules.learned.pair import EPSILON, PairLSTM
from metaopt.rules.learned.spectral import logarithm
from metaopt.symmetry.maps import GroupElement
from metaopt.symmetry.pairs import LinearPairs
from metaopt.tasks.base import Observation
from metaopt.teleport.pair_engine import PairMove


def data(seed: int) -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)).double()


def rule(seed: int = 0) -> PairLSTM:
    made = PairLSTM(6, 1.0, 0.5, None, 1, seed, "test").double()
    with torch.no_grad():
        made.head.W.mul_(30)
    return made


def rotated(pairs: LinearPairs, seed: int) -> PairMove:
    """A random orthogonal matrix for each pair."""
    drawn = torch.Generator().manual_seed(seed)
    elements = []
    for width in pairs.widths:
        shape = (1, width.count, width.size, width.size)
        Q = torch.linalg.qr(torch.randn(shape, generator=drawn).double()).Q
        elements.append(GroupElement(Q, Q.mT))
    return PairMove(pairs, tuple(elements), tuple(elements))


def proposals(seen: list[Observation], made: PairLSTM) -> list[Tensor]:
    state, found = made.initial_state(seen[0]), []
    for one in seen:
        proposal, state = made.propose(one, state)
        assert proposal.generators is not None
        found.append(proposal.generators[0])
    return found


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_generators_turn_with_the_frame(seed: int) -> None:
    """T(Q . w) = Q T(w) Q^T over several steps of both sides."""
    net = adapters()
    pairs = pairs_in(net, 5)
    made, move = rule(seed), rotated(pairs, seed)
    seen = [observed(net, pairs, data(i)) for i in range(3)]
    turned = [
        replace(one, weights=move.weights(one.weights), grads=move.gradients(one.grads))
        for one in seen
    ]
    assert move.elements[0] is not None
    Q, Q_inv = move.elements[0]
    for T, other in zip(proposals(seen, made), proposals(turned, made), strict=True):
        assert torch.allclose(Q @ T @ Q_inv, other, atol=1e-9)
        assert float(T.detach().abs().max()) > 1e-3


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_it_fits_any_rank(rank: int) -> None:
    net = adapters(rank)
    pairs = pairs_in(net, 5)
    (T,) = proposals([observed(net, pairs, data(0))], rule())
    assert T.shape == (1, 3, rank, rank)
    assert bool(torch.isfinite(T).all())
    assert torch.allclose(T, T.mT)


def test_b_zero_is_no_special_case() -> None:
    """At the start of LoRA A has no gradient and B no direction: a teleport, with finite slopes."""
    net = adapters()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("B.weight"):
                p.zero_()
    pairs = pairs_in(net, 5)
    made = rule()
    seen = [observed(net, pairs, data(i)) for i in range(2)]
    total = torch.stack([T.square().sum() for T in proposals(seen, made)]).sum()
    total.backward()
    assert float(total.detach()) > 0
    for p in made.parameters():
        assert p.grad is not None
        assert bool(torch.isfinite(p.grad).all())


def test_whitening_makes_the_momentum_of_the_served_side_orthonormal() -> None:
    """a_m = 1/2 and m B-side momentum: m g^T g has all singular values alike, as in Muon."""
    net = adapters(2)
    pairs = pairs_in(net, 5)
    seen = observed(net, pairs, data(0))
    made = PairLSTM(4, 1.0, 0.0, None, 1, 0, "test").double()
    with torch.no_grad():
        made.head.W.zero_()
        made.head.b.copy_(torch.tensor([0.3, 0, -0.2, 0, 0]))
    (T,) = proposals([seen], made)
    g = torch.linalg.matrix_exp(T[0])
    for pair in range(3):
        m = seen.grads[2 * pair + 1][0]
        values = torch.linalg.svdvals(m)
        relative = values.square() / values.square().mean()
        whitened = values / (relative + EPSILON).sqrt()
        found = torch.linalg.svdvals(m @ g[pair].T @ g[pair])
        assert torch.allclose(found.sort().values, whitened.sort().values)


def test_logarithms_are_undone_by_exponentials_or_not_a_number() -> None:
    x = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    M = x @ x.mT + 0.1 * torch.eye(4).double()
    assert torch.allclose(torch.linalg.matrix_exp(logarithm(M)), M)
    M[1, 0, 0] = torch.inf
    log = logarithm(M)
    assert bool(log[1].isnan().all())
    assert bool(torch.isfinite(log[[0, 2]]).all())
