"""Each group on a function that it leaves as it is: outputs stay, gradients and moments move.

The functions are written by hand, in float64; gradients at the new weights are compared with those
that were moved, and with differences of the function.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support import signed
from torch import Tensor, nn
from torch.nn.functional import linear

import metaopt
from metaopt.symmetry.groups import Group, Slot, Symmetry

Weights = nn.ParameterDict
NORM = 0.7
X = signed(5, 6, seed=99)  # [positions, inputs]


@dataclass(frozen=True)
class Case:
    """A function of some weights, and a symmetry of it."""

    group: Group
    shapes: dict[str, tuple[int, ...]]
    function: Callable[[Weights], Tensor]
    incoming: tuple[Slot, ...]
    outgoing: tuple[Slot, ...] = ()
    size: int = 4
    blocks: int = 1
    blurs: tuple[str, ...] = ()

    @property
    def symmetries(self) -> list[Symmetry]:
        slots = self.incoming, self.outgoing
        allows = frozenset({self.group})
        name = "makers -> readers"
        return [
            Symmetry(name, self.group, self.size, *slots, self.blocks, allows, blurs=self.blurs)
        ]

    def weights(self) -> Weights:
        found = {
            n: nn.Parameter(signed(*s, seed=i)) for i, (n, s) in enumerate(self.shapes.items())
        }
        for name in self.blurs:
            nn.init.constant_(found[name], 0.8)
        return nn.ParameterDict(found)

    def loss(self, w: Weights) -> Tensor:
        return (self.function(w) - 1).square().sum()


def slot(name: str, axis: int = 0, *factors: tuple[str, int], power: int = 1) -> Slot:
    return Slot("", name, axis, factors=factors, power=power)


def pair(w: Weights) -> Tensor:
    return linear(linear(X, w["up"], w["bias"]), w["down"])


def relu(w: Weights) -> Tensor:
    return linear(torch.relu(linear(X, w["up"], w["bias"])), w["down"])


def tanh(w: Weights) -> Tensor:
    return linear(torch.tanh(linear(X, w["up"], w["bias"])), w["down"])


def standardised(w: Weights) -> Tensor:
    """Batch normalisation with a variance that is kept; the last layer reads what comes out."""
    return linear(X, w["up"]) / w["variance"].abs().sqrt()


def stream(w: Weights) -> Tensor:
    """A residual stream, read through RMSNorm."""

    def normed(x: Tensor) -> Tensor:
        return w["gain"] * x / x.square().mean(-1, keepdim=True).sqrt()

    x = linear(X, w["embed"])
    x = x + linear(torch.tanh(linear(normed(x), w["up"])), w["down"], w["bias"])
    return linear(normed(x), w["head"])


def rotary(w: Weights) -> Tensor:
    """Attention of 2 groups of 2 query heads, 4 wide, coordinates i and i + 2 turned as pairs."""

    def turned(x: Tensor) -> Tensor:
        angles = torch.arange(len(X)).double()[:, None] * torch.tensor([1.0, 0.1]).double()
        cos, sin = (torch.cat([f(angles)] * 2, 1)[:, None] for f in (torch.cos, torch.sin))
        first, second = x.chunk(2, -1)
        return cos * x + sin * torch.cat([-second, first], -1)

    q = turned(linear(X, w["q"]).unflatten(1, (4, 4)))
    k = turned(linear(X, w["k"]).unflatten(1, (2, 4))).repeat_interleave(2, 1)
    return torch.einsum("ihd,jhd->hij", q, k).softmax(-1)


def heads(w: Weights) -> Tensor:
    """Scores of 2 heads, 3 wide, with biases."""
    q = linear(X, w["q"], w["q_bias"]).unflatten(1, (2, 3))
    k = linear(X, w["k"], w["k_bias"]).unflatten(1, (2, 3))
    return torch.einsum("ihd,jhd->hij", q, k).softmax(-1)


def softmax(w: Weights) -> Tensor:
    return linear(X, w["head"], w["bias"]).softmax(-1)


UNITS: dict[str, tuple[int, ...]] = {"up": (4, 6), "bias": (4,), "down": (3, 4)}
MADE, READ = (slot("up"), slot("bias")), (slot("down", 1),)
HEADS: dict[str, tuple[int, ...]] = {"q": (6, 6), "q_bias": (6,), "k": (6, 6), "k_bias": (6,)}
CASES = {
    "linear pair": Case(Group.LINEAR, UNITS, pair, MADE, READ),
    "heads": Case(
        Group.LINEAR,
        HEADS,
        heads,
        (slot("q"), slot("q_bias")),
        (slot("k"), slot("k_bias")),
        size=3,
        blocks=2,
    ),
    "stream": Case(
        Group.ORTHOGONAL,
        {
            "embed": (4, 6),
            "up": (5, 4),
            "down": (4, 5),
            "bias": (4,),
            "head": (3, 4),
            "gain": (4,),
        },
        stream,
        (slot("embed"), slot("up", 1), slot("down"), slot("bias"), slot("head", 1)),
        blurs=("gain",),
    ),
    "rotary": Case(
        Group.ROTARY,
        {"q": (16, 6), "k": (8, 6)},
        rotary,
        (slot("q", 0, ("block", 2), ("copy", 2), ("unit", 2), ("block", 2)),),
        (slot("k", 0, ("block", 2), ("unit", 2), ("block", 2)),),
        size=2,
        blocks=4,
    ),
    "relu": Case(Group.SCALING, UNITS, relu, MADE, READ),
    "variance": Case(
        Group.SCALING,
        {"up": (4, 6), "variance": (4,)},
        standardised,
        (slot("up"), slot("variance", power=2)),
    ),
    "tanh signs": Case(Group.SIGNS, UNITS, tanh, MADE + READ),
    "tanh permuted": Case(Group.PERMUTATION, UNITS, tanh, MADE, READ),
    "softmax": Case(
        Group.TRANSLATION, {"head": (4, 6), "bias": (4,)}, softmax, (slot("head"), slot("bias"))
    ),
    "key bias": Case(
        Group.TRANSLATION, HEADS, heads, (slot("k_bias", 0, ("block", 6)),), size=1, blocks=6
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def moved(case: Case, model: Weights, norm: float = NORM, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if case.blurs else "error", UserWarning)
        metaopt.teleport(model, norm, 1, case.symmetries, **options)


@every_case
def test_outputs_stay_and_weights_come_back(name: str) -> None:
    case = CASES[name]
    model = case.weights()
    kept = copy.deepcopy(model)
    moved(case, model)
    torch.testing.assert_close(case.function(model), case.function(kept), rtol=1e-11, atol=1e-11)
    for path in {s.path for s in case.symmetries[0].slots}:
        assert (model[path] - kept[path]).norm() > 0.01 * kept[path].norm()
    moved(case, model, -NORM)
    for path, weights in model.items():
        torch.testing.assert_close(weights, kept[path], rtol=1e-12, atol=1e-12)


@every_case
def test_half_a_symmetry_is_none(name: str) -> None:
    case = CASES[name]
    model = case.weights()
    before = case.function(model)
    half = copy.copy(case)
    if case.outgoing:
        half = Case(
            case.group, case.shapes, case.function, case.incoming, (), case.size, case.blocks
        )
    elif len(case.incoming) > 1 and case.group is not Group.TRANSLATION:
        slots = case.incoming[:1]
        half = Case(case.group, case.shapes, case.function, slots, (), case.size, case.blocks)
    else:
        return
    moved(half, model)
    assert (case.function(model) - before).norm() > 1e-3 * before.norm()


@every_case
def test_gradients_move_by_the_inverse_transpose(name: str) -> None:
    case = CASES[name]
    model = case.weights()
    case.loss(model).backward()
    moved(case, model)
    carried = {path: weights.grad for path, weights in model.items()}
    wanted = torch.autograd.grad(case.loss(model), list(model.values()))
    for i, (path, gradient) in enumerate(zip(carried, wanted, strict=True)):
        found = carried[path]
        assert (found is None) == (path in case.blurs)
        if found is None:
            continue
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-10)
        direction, h = signed(*found.shape, seed=50 + i), 1e-5
        losses = []
        for sign in (1, -1):
            other = copy.deepcopy(model)
            other[path].data += sign * h * direction
            losses.append(case.loss(other).item())
        slope, size = (found * direction).sum().item(), found.norm() * direction.norm()
        close = pytest.approx(slope, abs=1e-6 * (1 + size.item()))
        assert (losses[0] - losses[1]) / (2 * h) == close


def _steps(case: Case, model: Weights, optimizer: torch.optim.Optimizer) -> None:
    # With a learning rate of 0 the state is that of several losses at one point.
    for factor in (1.0, -2.0, 3.0):
        optimizer.zero_grad()
        (factor * case.loss(model)).backward()
        optimizer.step()


@every_case
def test_the_state_of_adam_moves_where_squares_do(name: str) -> None:
    case = CASES[name]
    model = case.weights()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    _steps(case, model, optimizer)
    moved(case, model, optimizer=optimizer)
    fresh = torch.optim.Adam(model.parameters(), lr=0.0)
    _steps(case, model, fresh)
    mixes = case.group in (Group.LINEAR, Group.ORTHOGONAL, Group.ROTARY)
    gone = {*case.blurs, *({s.path for s in case.symmetries[0].slots} if mixes else ())}
    for path, weights in model.items():
        assert (weights in optimizer.state) == (path not in gone)
        if path not in gone:
            torch.testing.assert_close(dict(optimizer.state[weights]), dict(fresh.state[weights]))


def test_what_is_blurred_is_forgotten_with_one_line() -> None:
    case = CASES["stream"]
    model = case.weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Nothing is forgotten where nothing was kept, or nothing moves.
        metaopt.teleport(model, NORM, 0, case.symmetries)
        case.loss(model).backward()
        metaopt.teleport(model, 0.0, 0, case.symmetries)
    assert model["gain"].grad is not None
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    optimizer.step()
    with pytest.warns(UserWarning, match="take the gradient again") as said:
        metaopt.teleport(model, NORM, 0, case.symmetries, optimizer=optimizer)
    (warning,) = said
    assert str(warning.message) == (
        "gradients of gain at the new weights are no known function of the old ones, and are "
        "forgotten: take the gradient again before the next step"
    )
    assert warning.filename == __file__
    assert model["gain"].grad is None
    assert model["gain"] not in optimizer.state
    assert model["up"] in optimizer.state


def test_streams_are_rotated_before_their_gains_move() -> None:
    case = CASES["stream"]
    gains = Symmetry(
        "gain -> up, head",
        Group.SCALING,
        4,
        (slot("gain"),),
        (slot("up", 1), slot("head", 1)),
        allows=frozenset({Group.SCALING}),
    )
    for found in ([gains, *case.symmetries], [*case.symmetries, gains]):
        model = case.weights()
        kept = copy.deepcopy(model)
        metaopt.teleport(model, NORM, 1, found)
        torch.testing.assert_close(case.function(model), case.function(kept), rtol=0, atol=1e-11)
        after = copy.deepcopy(model)
        with pytest.raises(ValueError, match=r"wants equal entries of 'gain', found 0.\d+ to"):
            metaopt.teleport(model, NORM, 1, found)
        for w, v in zip(model.values(), after.values(), strict=True):
            assert torch.equal(w, v)
        metaopt.teleport(model, -NORM, 1, found)
        for w, v in zip(model.values(), kept.values(), strict=True):
            torch.testing.assert_close(w, v, rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match="wants equal entries"):
            metaopt.teleport(model, -NORM, 1, found)


def test_dimensions_of_orbits_are_ranks() -> None:
    # The orbit's dimension is the rank of all directions in which small elements move the weights.
    for name, case in CASES.items():
        model = case.weights()
        (symmetry,) = case.symmetries
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        directions = []
        for seed in range(20):
            other = copy.deepcopy(model)
            metaopt.teleport(other, 1e-5, seed, [symmetry])
            after = nn.utils.parameters_to_vector(other.parameters()).detach()
            directions.append((after - before) / 1e-5)
        rank = int(torch.linalg.matrix_rank(torch.stack(directions), rtol=1e-3))
        wanted = {Group.TRANSLATION: {"softmax": 7, "key bias": 6}.get(name, 0)}
        if case.group not in (Group.SIGNS, Group.PERMUTATION):
            assert rank == wanted.get(case.group, symmetry.dimension), name
    assert math.comb(4, 2) == CASES["stream"].symmetries[0].dimension
