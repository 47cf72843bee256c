"""Teleports by a number for each pair, and the rule whose state follows no other element."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from paired import adapters, observed, pairs_in
from torch import Tensor, nn

import metaopt
from metaopt.base.config import ConfigError, check
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.rules.averaging import AHEAD
from metaopt.rules.composed import stepped
from metaopt.rules.learned.eigen import EigenUpdateLSTM
from metaopt.rules.learned.pair_size import GROWS, WAITING, WAITS, PairSizeLSTM
from metaopt.symmetry.maps import GroupElement
from metaopt.symmetry.pairs import LinearPairs
from metaopt.teleport.pair_engine import PairMove

STEPS = 12


def data(seed: int, width: int = 5) -> Tensor:
    return torch.randn(6, width, generator=torch.Generator().manual_seed(seed)).double()


def content(update: str = "eigen_lstm", teleport: str = "pair_size_lstm") -> dict:
    return {
        "name": "sizes",
        "dtype": "float64",
        "task": {"family": "metaopt.tasks.factorised:Sensing", "options": {"size": 6, "rank": 2}},
        "rules": {
            "update": {"kind": update, "hidden": 4, "scale": 50.0},
            "teleport": {"kind": teleport, "hidden": 4, "scale": 50.0},
        },
        "teleporter": {"action": "linear_pairs", "limit": "capped", "max_norm": 30.0},
        "meta": {"hide": {"loss": 0.5}},
    }


def rule(update: str = "eigen_lstm") -> metaopt.LearnedRule:
    """An untrained one in float64, with loud heads."""
    config = check(TrainConfig, content(update), "sizes")
    return metaopt.LearnedRule(meta_optimizer(config), config)


def multiples(pairs: LinearPairs, seed: int) -> PairMove:
    """A random multiple of I for each pair: a power of 2, whose products are not rounded.

    Gradients of few rows leave directions without any, in which eigenvectors are a matter of
    rounding.
    """
    drawn, elements = torch.Generator().manual_seed(seed), []
    for width in pairs.widths:
        c = 2.0 ** torch.randint(-5, 6, (1, width.count, 1, 1), generator=drawn).double()
        eye = torch.eye(width.size).double()
        elements.append(GroupElement(c * eye, eye / c))
    return PairMove(pairs, tuple(elements), tuple(elements))


@pytest.mark.parametrize("seed", range(3))
def test_the_next_step_is_that_of_a_run_begun_there(seed: int) -> None:
    """Everything that the rule in eigenbases keeps follows a multiple of I."""
    net = adapters()
    pairs = pairs_in(net, 5)
    own = EigenUpdateLSTM(4, 1.0, ["adam", "orthogonal"], None, 0.01, 1024, [0.5], seed, "u")
    own = own.double()
    move = multiples(pairs, seed)
    seen = [observed(net, pairs, data(i)) for i in range(STEPS)]
    here, there = own.initial_state(seen[0]), own.initial_state(seen[0])
    here[AHEAD] = torch.randn_like(here[AHEAD])
    there[AHEAD] = move.rows_of_weights(here[AHEAD], seen[0].weights)
    for one in seen:
        _, here = own.propose(one, here)
        moved = replace(one, weights=move.weights(one.weights), grads=move.gradients(one.grads))
        _, there = own.propose(moved, there)
    turned = own.turned(here, move, seen[0].weights)
    followed = ("m", "v", "products", "frames", AHEAD)
    for name in followed:
        torch.testing.assert_close(turned[name], there[name], rtol=1e-9, atol=1e-12, msg=name)
    for name in set(followed) - {"frames"}:
        assert not torch.allclose(here[name], turned[name]), name
    # The network's memory of sizes of weights apart, the step is the same.
    memory = {n: there[n] for n in there if n not in followed}
    steps = []
    for state in (turned | memory, there):
        proposal, after = own.propose(moved, state)
        assert proposal.updates is not None
        steps.append(stepped(moved.weights, proposal.updates, proposal.averaging, {"u": after})[0])
    for a, b in zip(*steps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def square() -> nn.Module:
    """One pair whose gradients are of full rank, so that rounding chooses no eigenvectors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).double()


@pytest.mark.parametrize("update", ["eigen_lstm", "matrix_lstm"])
@pytest.mark.parametrize("c", [1e-2, 30.0])
def test_however_large_its_factors_were_made_a_pair_trains_alike(update: str, c: float) -> None:
    """A run from (c A, B / c) computes what one from (A, B) does, after every step."""
    runs = []
    for size in (1.0, c):
        net = square()
        with torch.no_grad():
            for p, by in zip(net.parameters(), (size, size, 1 / size), strict=False):
                p.mul_(by)
        optimizer = metaopt.LearnedOptimizer(net, rule(update))
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


def test_after_a_teleport_the_side_that_makes_has_its_size() -> None:
    """||A|| = sqrt(k) exp(u), in the last step of the waits and in the first after them."""
    net = adapters()
    pairs = pairs_in(net, 5)
    made = PairSizeLSTM(4, 1e-9, None, 0, "t").double()
    seen = observed(net, pairs, data(0))
    state = made.initial_state(seen)
    for step in range(1, WAITS + 3):
        proposal, state = made.propose(seen, state)
        assert proposal.generators is not None
        (T,) = proposal.generators
        c = T[..., 0, 0].exp()
        torch.testing.assert_close(T, c.log()[..., None, None] * torch.eye(3).double())
        products = pairs.widths[0].products(seen.weights)[:, 0]
        size = c * products.diagonal(dim1=-2, dim2=-1).mean(-1).sqrt()
        wanted = torch.full_like(size, WAITING if step <= WAITS else 1 + step / GROWS)
        torch.testing.assert_close(size, wanted, rtol=1e-6, atol=0)


def test_a_side_of_zeros_has_no_size_to_be_given() -> None:
    net = adapters()
    pairs = pairs_in(net, 5)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if ".A." in name:
                p.zero_()
    made = PairSizeLSTM(4, 50.0, None, 0, "t").double()
    seen = observed(net, pairs, data(0))
    proposal, _ = made.propose(seen, made.initial_state(seen))
    assert proposal.generators is not None
    assert not proposal.generators[0].any()


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


def factorised() -> nn.Module:
    return nn.Sequential(nn.Linear(24, 4), nn.Linear(4, 7, bias=False)).double()


def test_a_bottleneck_is_alone_and_a_packed_projection_is_not() -> None:
    (alone,) = pairs_in(factorised(), 24).alone
    assert alone.tolist() == [True]
    packed = nn.MultiheadAttention(6, 2, batch_first=True).double()

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = packed

        def forward(self, x: Tensor) -> Tensor:
            x = x.unflatten(-1, (-1, 6))
            return self.attention(x, x, x, need_weights=False)[0]

    pairs = pairs_in(Packed(), 24)
    assert pairs.count > 0
    assert not pairs.any_alone
    with pytest.warns(UserWarning, match="none of its linear pairs has its tensors to itself"):
        optimizer = metaopt.LearnedOptimizer(Packed().double(), rule())
    assert optimizer.teleports_off is not None


def test_heads_of_one_layer_get_one_size() -> None:
    net = Apart().double()
    pairs = pairs_in(net, 24)
    made = PairSizeLSTM(4, 50.0, None, 0, "t").double()
    seen = observed(net, pairs, data(0, 24))
    proposal, _ = made.propose(seen, made.initial_state(seen))
    assert proposal.generators is not None
    for width, T in zip(pairs.widths, proposal.generators, strict=True):
        c = T[0, :, 0, 0]
        torch.testing.assert_close(c, c[width.first])
        assert len(set(width.first.tolist())) < width.count


def test_elements_that_mix_entries_are_refused() -> None:
    given = content(teleport="pair_lstm")
    with pytest.raises(ConfigError, match=r"expected rules\.update of kind matrix_lstm"):
        meta_optimizer(check(TrainConfig, given, "sizes"))


def test_nothing_warns_where_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metaopt.LearnedOptimizer(factorised(), rule())
