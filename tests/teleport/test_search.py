"""The search itself: optima that are known, bounds, and how it steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metaopt.symmetry.groups import Group, Symmetry
from metaopt.symmetry.motion import GroupMotion, OwnSymmetry
from metaopt.teleport.search import (
    Ball,
    Evaluate,
    FixedLength,
    FixedRate,
    Generators,
    QuasiNewton,
    climb,
    norms,
    require_bounded,
)

FREE = Ball(None)


def evaluated(f: object) -> Evaluate:
    """F with its gradient, of a function of tensors [C, ..] -> [C]."""

    def evaluate(generators: Generators) -> tuple[Tensor, Generators]:
        leaves = tuple(T.detach().requires_grad_() for T in generators)
        value = f(*leaves)  # type: ignore[operator]
        return value.detach(), torch.autograd.grad(value.sum(), leaves)

    return evaluate


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def test_a_scaling_is_brought_to_its_balance() -> None:
    # a e^{-2t} + b e^{2t} is least at e^{4t} = a / b, where it is 2 sqrt(a b).
    a, b = torch.tensor([5.0, 0.01]).double(), torch.tensor([0.2, 3.0]).double()
    f = evaluated(lambda T: -(a * (-2 * T[:, 0]).exp() + b * (2 * T[:, 0]).exp()))
    end = climb(f, (zeros(2, 1),), 30, QuasiNewton(None), FREE)
    torch.testing.assert_close(end.generators[0][:, 0], (a / b).log() / 4, rtol=0, atol=1e-7)
    assert end.values is not None
    torch.testing.assert_close(-end.values, 2 * (a * b).sqrt(), rtol=1e-12, atol=0)


def test_on_a_ball_a_convex_function_is_largest_on_the_bound() -> None:
    c = torch.tensor([1.0, 2.0, 2.0]).double()
    f = evaluated(lambda T: (T[:, 0] @ c).exp())
    end = climb(f, (zeros(1, 1, 3),), 10, QuasiNewton(0.5), Ball(0.5))
    torch.testing.assert_close(end.generators[0][0, 0], 0.5 * c / 3, rtol=1e-12, atol=0)
    assert end.values is not None
    assert float(end.values[0]) == pytest.approx(math.exp(1.5), rel=1e-12)


def test_no_step_makes_the_objective_worse_and_lost_candidates_stay() -> None:
    f = evaluated(lambda T: torch.where(T[:, 0] > 0.2, math.nan, T[:, 0]))
    start = torch.tensor([[0.0], [0.1]]).double()
    end = climb(f, (start,), 25, QuasiNewton(None), FREE)
    assert end.values is not None
    assert bool((end.values >= start[:, 0]).all())
    assert bool((end.values <= 0.2).all())


def test_fixed_steps_are_those_of_the_papers() -> None:
    f = evaluated(lambda T: -(T - 1).square().flatten(1).sum(1))
    end = climb(f, (zeros(1, 1, 2),), 3, FixedRate(0.1), FREE)
    expected = 1 - 0.8**3
    torch.testing.assert_close(end.generators[0], torch.full((1, 1, 2), expected).double())
    assert end.gradients == 3
    assert end.values is None
    long = climb(f, (zeros(1, 1, 2),), 2, FixedLength(0.3), FREE).generators[0]
    assert float(long.norm()) == pytest.approx(0.6)
    still = climb(f, (zeros(1, 1, 2) + 1,), 2, FixedLength(0.3), FREE).generators[0]
    torch.testing.assert_close(still, zeros(1, 1, 2) + 1)


def test_the_ball_holds_each_block_by_itself() -> None:
    T = torch.tensor([[[3.0, 4.0], [0.3, 0.4]]]).double()
    (held,) = Ball(1.0)((T,))
    torch.testing.assert_close(norms(held), torch.tensor([[1.0, 0.5]]).double())
    assert FREE((T,))[0] is T


def test_a_search_without_end_is_refused() -> None:
    scaling = GroupMotion(Symmetry("a -> b", Group.SCALING, 2, (), ()))
    rotation = GroupMotion(Symmetry("q", Group.ORTHOGONAL, 2, (), ()))
    circle = OwnSymmetry("circle", lambda w, T: w, is_compact=True)
    require_bounded([rotation, circle], None)
    require_bounded([scaling], 0.5)
    with pytest.raises(ValueError, match="'a -> b' has no end"):
        require_bounded([rotation, scaling], None)
    for radius in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="max_norm must be"):
            require_bounded([scaling], radius)
