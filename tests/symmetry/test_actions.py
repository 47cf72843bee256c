"""Group actions: the laws of every group, level sets, exactness, derivatives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import (
    FEW,
    MAX_NORM,
    batches,
    every_action,
    every_continuous_action,
    full_rank,
    gradcheck,
    relative_error,
    seeds,
    signed,
    slopes,
    widths,
)
from torch import Tensor

from metaopt.base.network import LeakyReLU
from metaopt.symmetry.actions import (
    Action,
    InexactActionError,
    LayerPair,
    Linear,
    Orthogonal,
    Permutation,
    Scaling,
    ThroughData,
)
from metaopt.symmetry.limits import BoundedNorm, frobenius_norm
from metaopt.symmetry.maps import (
    Cayley,
    ElementMap,
    Exponential,
    FirstOrder,
    GroupElement,
    permutation,
)


@dataclass(frozen=True)
class Problem:
    """Sizes and seed of a random layer pair; N = min(samples, n) where the action needs that."""

    batch: int
    n: int
    k: int
    m: int
    samples: int
    slope: float
    seed: int


problems = st.builds(
    Problem,
    batch=batches,
    n=widths,
    k=widths,
    m=widths,
    samples=st.integers(1, 8),
    slope=slopes,
    seed=seeds,
)


def layer_pair(problem: Problem, action: Action, bias: bool = True) -> LayerPair:
    """A signed pair on which the action is exact."""
    batch, n, k, m, seed = problem.batch, problem.n, problem.k, problem.m, problem.seed
    samples = min(problem.samples, n) if action.needs_data else problem.samples
    A = full_rank(batch, n, samples, seed=seed)
    return LayerPair(
        W_in=signed(batch, k, n, seed=seed + 1),
        W_out=signed(batch, m, k, seed=seed + 2),
        s=LeakyReLU(1.0 if isinstance(action, Linear) else problem.slope),
        b_in=signed(batch, k, seed=seed + 3) if bias else None,
        inputs=A,
        inputs_pinv=torch.linalg.pinv(A),
    )


def element(action: Action, problem: Problem, salt: int) -> GroupElement:
    """A random element of the group."""
    k, seed = problem.k, problem.seed + salt
    if isinstance(action, Permutation):
        return permutation(signed(problem.batch, k, seed=seed).argsort(-1), torch.float64)
    T = BoundedNorm(MAX_NORM)(signed(problem.batch, k, k, seed=seed))
    return Exponential(MAX_NORM)(action.algebra(T))


def outputs(pair: LayerPair) -> Tensor:
    """W_out s(W_in A + b_in)."""
    assert pair.inputs is not None
    Z = pair.W_in @ pair.inputs
    if pair.b_in is not None:
        Z = Z + pair.b_in[..., None]
    return pair.W_out @ pair.s(Z)


def assert_same(found: LayerPair, wanted: LayerPair, tolerance: float = 1e-11) -> None:
    assert relative_error(found.W_in, wanted.W_in) < tolerance
    assert relative_error(found.W_out, wanted.W_out) < tolerance
    if wanted.b_in is None:
        assert found.b_in is None
    else:
        assert found.b_in is not None
        torch.testing.assert_close(found.b_in, wanted.b_in, rtol=tolerance, atol=tolerance)


# The laws of a group action.


@every_action
@FEW
@given(problem=problems, bias=st.booleans())
def test_identity_does_nothing(action: Action, problem: Problem, bias: bool) -> None:
    pair = layer_pair(problem, action, bias)
    identity = torch.eye(problem.k, dtype=torch.float64).expand(problem.batch, -1, -1)
    assert_same(action.act(GroupElement(identity, identity), pair), pair, 1e-13)


@every_action
@FEW
@given(problem=problems)
def test_inverse_undoes(action: Action, problem: Problem) -> None:
    pair = layer_pair(problem, action)
    g = element(action, problem, 10)
    moved = action.act(g, pair)
    assert_same(action.act(GroupElement(g.g_inv, g.g), moved), pair)


@every_action
@FEW
@given(problem=problems)
def test_composition(action: Action, problem: Problem) -> None:
    pair = layer_pair(problem, action)
    g, h = element(action, problem, 10), element(action, problem, 11)
    gh = GroupElement(g.g @ h.g, h.g_inv @ g.g_inv)
    assert_same(action.act(g, action.act(h, pair)), action.act(gh, pair))


@every_action
@FEW
@given(problem=problems, bias=st.booleans())
def test_outputs_are_kept(action: Action, problem: Problem, bias: bool) -> None:
    pair = layer_pair(problem, action, bias)
    moved = action.act(element(action, problem, 10), pair)
    assert relative_error(outputs(moved), outputs(pair)) < 1e-11


@every_action
def test_elements_move_the_weights(action: Action) -> None:
    problem = Problem(batch=3, n=5, k=4, m=3, samples=5, slope=0.1, seed=0)
    pair = layer_pair(problem, action)
    moved = action.act(element(action, problem, 10), pair)
    assert (torch.linalg.matrix_norm(moved.W_in - pair.W_in) > 0.05).all()
    assert (torch.linalg.matrix_norm(moved.W_out - pair.W_out) > 0.05).all()


@every_continuous_action
@FEW
@given(problem=problems)
def test_algebra_is_a_projection(action: Action, problem: Problem) -> None:
    T = signed(problem.batch, problem.k, problem.k, seed=problem.seed)
    projected = action.algebra(T)
    assert torch.equal(action.algebra(projected), projected)
    assert (frobenius_norm(projected) <= frobenius_norm(T)).all()


def test_elements_lie_in_their_groups() -> None:
    problem = Problem(batch=3, n=4, k=4, m=4, samples=4, slope=0.1, seed=0)
    identity = torch.eye(4, dtype=torch.float64).expand(3, -1, -1)
    Q = element(Orthogonal(), problem, 0).g
    assert relative_error(Q.mT @ Q, identity) < 1e-14
    D = element(Scaling(), problem, 0).g
    assert torch.equal(D, torch.diag_embed(torch.diagonal(D, dim1=-2, dim2=-1)))
    assert (torch.diagonal(D, dim1=-2, dim2=-1) > 0).all()
    order = torch.tensor([[2, 0, 1], [1, 0, 2]])
    z = signed(2, 3, seed=0)
    P = permutation(order, torch.float64)
    assert torch.equal((P.g @ z[..., None])[..., 0], z.gather(1, order))
    assert torch.equal((P.g @ P.g_inv), torch.eye(3, dtype=torch.float64).expand(2, -1, -1))


# The action through the data.


@FEW
@given(problem=problems, missing=st.integers(1, 4))
def test_through_data_keeps_what_the_data_do_not_see(problem: Problem, missing: int) -> None:
    action = ThroughData()
    problem = replace(problem, n=problem.n + missing, samples=problem.n)
    pair = layer_pair(problem, action)
    assert pair.inputs is not None
    assert pair.inputs_pinv is not None
    moved = action.act(element(action, problem, 10), pair)
    unseen = torch.eye(problem.n, dtype=torch.float64) - pair.inputs @ pair.inputs_pinv
    assert float(torch.linalg.matrix_norm(unseen).min()) > 0.9
    assert relative_error(moved.W_in @ unseen, pair.W_in @ unseen) < 1e-12


@FEW
@given(problem=problems)
def test_through_data_is_the_papers_form_on_square_data(problem: Problem) -> None:
    action = ThroughData()
    problem = replace(problem, samples=problem.n)
    pair = layer_pair(problem, action, bias=False)
    assert pair.inputs is not None
    g = element(action, problem, 10)
    moved = action.act(g, pair)
    H = g.g @ pair.s(pair.W_in @ pair.inputs)
    paper = (H.clamp(min=0) + H.clamp(max=0) / pair.s.slope) @ torch.linalg.inv(pair.inputs)
    assert relative_error(moved.W_in, paper) < 1e-11
    assert relative_error(moved.W_out, pair.W_out @ torch.linalg.inv(g.g)) < 1e-11


def test_through_data_without_data_is_an_error() -> None:
    problem = Problem(batch=2, n=3, k=3, m=2, samples=3, slope=0.1, seed=0)
    pair = layer_pair(problem, ThroughData())
    with pytest.raises(ValueError, match="needs the inputs"):
        ThroughData().act(element(ThroughData(), problem, 1), replace(pair, inputs_pinv=None))


@pytest.mark.parametrize(
    ("action", "slope", "samples", "exact"),
    [
        (ThroughData(), 0.1, 4, True),
        (ThroughData(), 0.1, 3, True),
        (ThroughData(), 0.1, 5, False),
        (Linear(), 1.0, 9, True),
        (Linear(), 0.1, 2, False),
        (Orthogonal(), 1.0, 9, True),
        (Orthogonal(), 0.5, 2, False),
        (Scaling(), 0.1, 9, True),
        (Permutation(), 0.1, 9, True),
    ],
)
def test_require_exact_tells_the_truth(
    action: Action, slope: float, samples: int, exact: bool
) -> None:
    problem = Problem(batch=2, n=4, k=4, m=3, samples=samples, slope=slope, seed=1)
    A = full_rank(2, 4, samples, seed=0)
    pair = replace(
        layer_pair(problem, action, bias=False),
        s=LeakyReLU(slope),
        inputs=A,
        inputs_pinv=torch.linalg.pinv(A),
    )
    error = relative_error(outputs(action.act(element(action, problem, 10), pair)), outputs(pair))
    if exact:
        action.require_exact(LeakyReLU(slope), samples, inputs=4)
        assert error < 1e-12
    else:
        with pytest.raises(InexactActionError, match="found"):
            action.require_exact(LeakyReLU(slope), samples, inputs=4)
        assert error > 1e-3


# Derivatives.


@pytest.mark.parametrize(
    "to_element", [Exponential(1.0), Cayley(), FirstOrder()], ids=["exp", "cayley", "first_order"]
)
@every_continuous_action
def test_gradcheck_of_actions(action: Action, to_element: ElementMap) -> None:
    problem = Problem(batch=2, n=3, k=2, m=2, samples=3, slope=0.1, seed=5)
    pair = layer_pair(problem, action)
    assert pair.b_in is not None

    def moved(T: Tensor, W_in: Tensor, b_in: Tensor, W_out: Tensor) -> tuple[Tensor, ...]:
        acted = action.act(
            to_element(action.algebra(T)), replace(pair, W_in=W_in, b_in=b_in, W_out=W_out)
        )
        assert acted.b_in is not None
        return acted.W_in, acted.b_in, acted.W_out

    T = 0.5 * signed(2, 2, 2, seed=1)
    assert gradcheck(moved, [T, pair.W_in, pair.b_in, pair.W_out])


def test_gradcheck_of_permutation() -> None:
    problem = Problem(batch=2, n=3, k=3, m=2, samples=3, slope=0.1, seed=5)
    pair = layer_pair(problem, Permutation(), bias=False)
    g = element(Permutation(), problem, 0)

    def moved(W_in: Tensor, W_out: Tensor) -> tuple[Tensor, ...]:
        acted = Permutation().act(g, replace(pair, W_in=W_in, W_out=W_out))
        return acted.W_in, acted.W_out

    assert gradcheck(moved, [pair.W_in, pair.W_out])
