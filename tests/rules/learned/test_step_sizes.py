"""Step sizes: where bounds start and end, and rules that follow the gradient."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learned_rules import HIGH, LOW, Make, basis_of, every_basis, every_rule
from support import FEW, SIZES, regression

from metaopt.rules.base import Rule
from metaopt.rules.learned.coordinate import CoordinateStepSizeGroupElementLSTM
from metaopt.rules.learned.features import Seen
from metaopt.rules.learned.flattened import StatefulGradient, StepSizeGroupElementLSTM
from metaopt.rules.learned.step_size import Clamp, Natural, Sigmoid, StepSizeBound

TASKS = regression(SIZES, samples=4, seed=0)
ANY = Seen(TASKS.observe(TASKS.initial))


@FEW
@given(z=st.floats(-30, 30), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_sigmoid_bound_stays_inside_with_a_gradient(z: float, dtype: torch.dtype) -> None:
    leaf = torch.tensor([z], dtype=dtype, requires_grad=True)
    eta = Sigmoid(LOW, HIGH)(leaf, ANY)
    rounding = 8 * torch.finfo(dtype).eps
    assert LOW * (1 - rounding) <= float(eta.detach()) <= HIGH * (1 + rounding)
    eta.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    # In float32 the derivative of sigmoid itself rounds to 0 from z = 17 on.
    if dtype == torch.float64 or abs(z) < 15:
        assert float(leaf.grad) > 0


def test_sigmoid_bound_is_even_on_a_logarithmic_scale() -> None:
    z = torch.tensor([-1e3, 0.0, 1e3], dtype=torch.float64)
    wanted = torch.tensor([LOW, math.sqrt(LOW * HIGH), HIGH], dtype=torch.float64)
    torch.testing.assert_close(Sigmoid(LOW, HIGH)(z, ANY), wanted)


def test_clamp_bound() -> None:
    z = torch.tensor([-1.0, 0.0, 1e-3, 7.0], dtype=torch.float64, requires_grad=True)
    eta = Clamp(LOW, HIGH)(z, ANY)
    assert eta.tolist() == [LOW, LOW, 1e-3, HIGH]
    eta.sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [0, 0, 1, 0]


def test_natural_bound_is_in_units_of_the_largest_safe_step() -> None:
    safe = 1 / ANY.curvatures.max(1).values
    bound = Natural(1e-12, 1e12)
    z = torch.tensor([0.7, -3.0], dtype=torch.float64)
    torch.testing.assert_close(bound(z, ANY), z.exp() * safe)
    torch.testing.assert_close(bound(torch.full_like(z, bound.start), ANY), safe / 2)
    small, large = (float(safe.min() * factor) for factor in (1e-3, 1e-2))
    assert (Natural(small, large)(z, ANY) == large).all()
    # The loss of a linear network descends at the safe step of any one layer.
    linear = regression(SIZES, samples=4, seed=1, slope=1.0)
    observation = linear.observe(linear.initial)
    eta = bound(torch.zeros(2, dtype=torch.float64), Seen(observation))[:, None, None]
    for layer, G in enumerate(observation.grads):
        moved = list(linear.initial)
        moved[layer] = moved[layer] - eta * G
        assert (linear.loss(moved) < linear.loss(linear.initial)).all()


@every_basis
@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        ("coordinate", Sigmoid(LOW, HIGH)),
        ("coordinate", Natural(LOW, HIGH)),
        ("flattened", Sigmoid(LOW, HIGH)),
        ("flattened", Natural(LOW, HIGH)),
        ("flattened", Clamp(LOW, HIGH)),
    ],
)
def test_an_untrained_step_size_is_where_its_bound_starts(
    kind: str, bound: StepSizeBound, basis: str
) -> None:
    known = basis_of("step", basis)
    shapes = [(out, fan_in) for fan_in, out in pairwise(SIZES)]
    rule: Rule
    if kind == "coordinate":
        rule = CoordinateStepSizeGroupElementLSTM(known, 4, 0.1, 0, kind, bound)
    else:
        rule = StepSizeGroupElementLSTM(shapes, 4, StatefulGradient(), known, 0.1, 0, kind, bound)
    rule.double()
    observation = ANY.observation
    proposal, _ = rule.propose(observation, rule.initial_state(observation))
    assert proposal.updates is not None
    found = -(proposal.updates[0] / observation.grads[0]).flatten(1)[:, 0]
    start = torch.full((2,), bound.start, dtype=torch.float64)
    torch.testing.assert_close(found, bound(start, ANY), rtol=0.3, atol=0)


@every_basis
@every_rule
def test_step_size_rules_follow_the_gradient(
    basis: str,
    make: Make,
) -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    rule = make("step", basis, SIZES)
    observation = tasks.observe(tasks.initial)
    proposal, _ = rule.propose(observation, rule.initial_state(observation))
    assert proposal.updates is not None
    ratios = [f / G for f, G in zip(proposal.updates, observation.grads, strict=True)]
    eta = -torch.cat([ratio.flatten(1) for ratio in ratios], 1)
    torch.testing.assert_close(eta, eta[:, :1].expand_as(eta))
    assert (eta > LOW).all()
    assert (eta < HIGH).all()
