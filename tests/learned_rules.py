"""Learned rules of small size, by what they propose and the basis that it stands in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from support import speak_up

from metaopt.rules.base import Rule
from metaopt.rules.learned.coordinate import (
    CoordinateGroupElementLSTM,
    CoordinateStepSizeGroupElementLSTM,
    CoordinateUpdateLSTM,
)
from metaopt.rules.learned.directions import (
    Basis,
    GeneratorEntries,
    NaturalSteps,
    UpdateEntries,
    Whitening,
)
from metaopt.rules.learned.flattened import (
    FlattenedRule,
    GroupElementLSTM,
    LocalUpdateLSTM,
    RawGradient,
    SignedLogGradient,
    StatefulGradient,
    StepSizeGroupElementLSTM,
)
from metaopt.rules.learned.sized import SizedGenerators, SizedUpdates
from metaopt.rules.learned.step_size import Sigmoid

LOW, HIGH = 1e-7, 5e-3
every_basis = pytest.mark.parametrize("basis", ["entries", "directions"])
every_coordinate_basis = pytest.mark.parametrize("basis", ["entries", "sized", "directions"])


def basis_of(kind: str, basis: str) -> Basis:
    match kind, basis:
        case "update", "entries":
            return UpdateEntries(1.0)
        case "update", "directions":
            return NaturalSteps(1.0)
        case "update", "sized":
            return SizedUpdates(1.0)
        case _, "entries":
            return GeneratorEntries(1.0)
        case _, "sized":
            return SizedGenerators(1.0)
    return Whitening(1.0)


def coordinate_rule(kind: str, basis: str) -> Rule:
    hidden, scale, seed = 4, 0.1, 0
    known = basis_of(kind, basis)
    match kind:
        case "update":
            return speak_up(CoordinateUpdateLSTM(known, hidden, scale, seed, kind))
        case "group":
            return speak_up(CoordinateGroupElementLSTM(known, hidden, scale, seed, kind))
    bound = Sigmoid(LOW, HIGH)
    return speak_up(CoordinateStepSizeGroupElementLSTM(known, hidden, scale, seed, kind, bound))


def flattened_rule(kind: str, basis: str, sizes: Sequence[int]) -> FlattenedRule:
    shapes = [(out, fan_in) for fan_in, out in pairwise(sizes)]
    gradient = SignedLogGradient() if basis == "entries" else StatefulGradient()
    known = basis_of(kind, basis)
    match kind:
        case "update":
            rule: FlattenedRule = LocalUpdateLSTM(shapes, 4, gradient, known, 0.5, 0, kind)
        case "group":
            rule = GroupElementLSTM(shapes, 4, gradient, known, 0.5, 0, kind)
        case _:
            bound = Sigmoid(LOW, HIGH)
            feed = RawGradient() if basis == "entries" else gradient
            rule = StepSizeGroupElementLSTM(shapes, 4, feed, known, 0.5, 0, kind, bound)
    return rule.double()


every_rule = pytest.mark.parametrize(
    "make",
    [lambda kind, basis, _: coordinate_rule(kind, basis), flattened_rule],
    ids=["coordinate", "flattened"],
)
Make = Callable[[str, str, Sequence[int]], Rule]
