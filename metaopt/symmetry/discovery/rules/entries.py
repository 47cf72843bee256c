"""Functions of single entries, sums and products of tensors, dropout.

| operation                                   | commutes with                                  |
| identity, c x, x + y of two that move alike | every group                                    |
| ReLU, LeakyReLU, |x|                         | positive scaling, permutations                 |
| tanh, sin, softsign and other odd functions | changes of sign, permutations                  |
| x^k                                         | scaling, which is raised to k; permutations    |
| GELU, sigmoid and others                    | permutations                                   |
| dropout with p > 0                          | scaling and signs, under the same mask         |
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TypeGuard

from metaopt.symmetry.discovery.flow import Unknown, Variable
from metaopt.symmetry.discovery.movement import negated
from metaopt.symmetry.discovery.operation import Operation, Result
from metaopt.symmetry.discovery.rotations import as_complex, as_real, multiplied
from metaopt.symmetry.discovery.rules.registry import register
from metaopt.symmetry.discovery.shifts import Stage, scales
from metaopt.symmetry.discovery.values import Value

HOMOGENEOUS = ("relu", "leaky_relu", "abs")
ODD = (
    "tanh", "sin", "softsign", "tanhshrink", "softshrink", "hardshrink", "asinh", "arcsinh",
    "atan", "arctan", "erf", "sinh", "tan", "asin", "arcsin", "hardtanh", "sign",
)  # fmt: skip
CURVED = (
    "gelu", "silu", "elu", "celu", "selu", "mish", "sigmoid", "softplus", "exp", "log", "hardswish",
    "hardsigmoid", "relu6", "logsigmoid", "cos", "cosh", "sqrt", "rsqrt", "log1p", "expm1", "exp2",
    "log2", "erfc", "clamp", "clamp_min", "threshold", "cast", "round", "floor", "ceil", "gt", "lt",
    "ge", "le", "eq", "ne", "isnan", "isinf", "isfinite", "logical_not", "invert", "nan_to_num",
    "sinc",
)  # fmt: skip
NUMBERS = (int, float)
LARGE = 1e4


def _is_number(argument: object) -> TypeGuard[float]:
    return isinstance(argument, NUMBERS) and not isinstance(argument, bool)


@register("identity")
def identity(op: Operation) -> Result:
    """x itself, whatever it is called: a copy, the same in another floating dtype."""
    return op.value(0)


@register(*HOMOGENEOUS)
def homogeneous(op: Operation) -> Result:
    """f(a x) = a f(x) for a > 0."""
    return op.homogeneous(op.value(0))


@register("rrelu")
def rrelu(op: Operation) -> Result:
    """Random slopes in training: as a mask."""
    return op.masked(op.homogeneous(op.value(0)))


@register("prelu")
def prelu(op: Operation) -> Result:
    """Homogeneous for all slopes, one for all coordinates or one for each on axis 1."""
    x, slopes = op.value(0), op.value(1, "weight")
    found = op.homogeneous(x)
    for slope in slopes.parts:
        part = next((p for p in x.parts if p.labels.shape == slope.labels.shape), None)
        op.relations.stop(slope.labels, "slopes keep their scale")
        if part is None or len(x.parts) > 1:
            return None
        if not x.open and part.dims != (1 - len(x.shape),):
            # The slopes are those of another axis.
            op.relations.fix(slope.labels, f"{op.relations.said} has them on another axis")
            continue
        if x.open and part.dims == (-1,):
            op.assume(slopes, f"'{op.call.module}' reads [batch, features]")
        op.relations.record([(part.labels, part.dims), (slope.labels, part.dims)])
    return found


@register(*ODD)
def odd(op: Operation) -> Result:
    """f(-x) = -f(x)."""
    if op.call.name == "hardtanh" and op.given(1, "min_val", -1.0) != -op.given(2, "max_val", 1.0):
        return op.curved(op.value(0))
    return op.odd(op.value(0))


@register(*CURVED)
def curved(op: Operation) -> Result:
    """Any function of single entries."""
    if len(op.call.inputs) != 1:
        return op.joined()
    if _is_relu(op):
        return op.homogeneous(op.value(0))
    degree = ROOTS.get(str(op.call.name))
    if degree is not None:
        return _root(op, op.value(0), degree)
    found = op.curved(op.value(0))
    return replace(found, parts=()) if op.call.name in ("isnan", "isinf", "isfinite") else found


def _is_relu(op: Operation) -> bool:
    """Whether it is max(x, 0), written in another way."""
    if op.call.name == "threshold":
        return op.given(1, "threshold") == 0 and op.given(2, "value") == 0
    low, high = op.given(1, "min"), op.given(2, "max")
    return op.call.name in ("clamp", "clamp_min") and low == 0 and high is None


@register("maximum", "minimum", "logical_and", "logical_or", "logical_xor", "atan2", "fmod")
def several(op: Operation) -> Result:
    """A function of the entries at one place in several tensors."""
    return op.joined()


@register("square")
def square(op: Operation) -> Result:
    """x^2."""
    return _power(op, op.value(0), 2)


@register("pow", "float_power")
def power(op: Operation) -> Result:
    """x^k for a whole number k; other powers are curved."""
    exponent = op.given(1, "exponent")
    x = op.value(0)
    if isinstance(exponent, Variable):
        return op.curved(op.multiply(*op.inputs))
    if not _is_number(exponent):
        return op.curved(x)
    if exponent != int(exponent):
        return _root(op, x, Fraction(exponent))
    return _power(op, x, int(exponent))


ROOTS = {"sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2)}


def _root(op: Operation, x: Value, exponent: Fraction) -> Value:
    """x^k for any number k: coordinates do not pass, a scale of all entries does."""
    return replace(op.curved(x), shifts=scales(x.shifts, exponent))


def _power(op: Operation, x: Value, exponent: int) -> Value:
    """x^k, or the first step of a sum of squares, which rotations leave alone."""
    if exponent != 2 or not x.parts or not _summed_over(op, x):
        return op.power(x, exponent)
    relations = op.relations
    parts = []
    for part in x.parts:
        labels = relations.new(part.labels.shape)
        # No scale passes, but for another reason than in curved functions, so that O(n) stays.
        relations.mirror(part.labels)
        apart = [i for i, d in enumerate(part.dims) if d != -1]
        relations.mix(part.labels, apart)
        relations.stop(labels, f"only permutations pass {relations.said}")
        relations.record([(part.labels, part.dims), (labels, part.dims)])
        parts.append(replace(part, labels=labels, signs=None))
    return replace(x, parts=tuple(parts), shifts=scales(x.shifts, 2))


def _summed_over(op: Operation, x: Value) -> bool:
    """Whether all that is done with the squares is to sum them over the last axis."""
    (output,) = op.call.outputs
    for user in op.users.get(output, []):
        dims = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim")
        dims = dims if isinstance(dims, tuple | list) else (dims,)
        last = {-1, None if output.shape is None else len(output.shape) - 1}
        if user.name not in ("mean", "sum") or len(dims) != 1 or dims[0] not in last:
            return False
    return all(-1 in part.dims for part in x.parts)


@register("neg")
def neg(op: Operation) -> Result:
    """-x."""
    return negated(op.value(0))


@register("add", "sub")
def add(op: Operation) -> Result:
    """x + y, and x - y: for coordinates it is the same."""
    first, second = op.value(0), op.value(1, "other")
    if op.call.name == "sub":
        second = negated(second)
    for one, other in ((0, second), (1, first)):
        given = op.given(one, "input" if one == 0 else "other")
        if _is_number(given):
            return other if given == 0 else _shifted(op, other)
        if isinstance(given, Unknown):
            return _shifted(op, other)
    kept = [value for value in (first, second) if not value.zero]
    return op.add(*kept) if kept else first


def _shifted(op: Operation, value: Value) -> Value:
    """x + c for a number c."""
    found = op.add(value, Value(()))
    return replace(found, gains=value.gains)


@register("mul")
def mul(op: Operation) -> Result:
    """x y."""
    first, second = op.given(0, "input"), op.given(1, "other")
    if first is second:
        return _power(op, op.value(0), 2)
    both = op.value(0), op.value(1, "other")
    if any(value.zero for value in both):
        return replace(op.like(op.shape, op.shape is None), zero=True)
    if any(value.is_complex for value in both):
        return multiplied(op.relations, *sorted(both, key=lambda v: not v.is_complex))
    found = op.multiply(*both)
    if isinstance(first, Variable) and isinstance(second, Variable):
        return found
    given = op.inputs[0]
    return replace(found, gains=given.gains, repeats=given.repeats, shifts=given.shifts)


@register("view_as_complex")
def complex_pairs(op: Operation) -> Result:
    """Pairs of numbers as complex ones."""
    return as_complex(op.value(0))


@register("view_as_real")
def real_pairs(op: Operation) -> Result:
    """Complex numbers as pairs of real ones."""
    return as_real(op.value(0))


@register("div")
def div(op: Operation) -> Result:
    """x / y, which may be rounded."""
    x = op.value(0)
    if isinstance(op.given(1, "other"), Variable):
        x = op.multiply(x, op.power(op.value(1, "other"), -1))
    else:
        x = replace(x, gains="")
    return x if op.given(2, "rounding_mode") is None else op.curved(x)


@register("reciprocal")
def reciprocal(op: Operation) -> Result:
    """1 / x."""
    return op.power(op.value(0), -1)


@register("addcmul", "lerp", "addcdiv", "remainder", "floor_divide")
def mixed(op: Operation) -> Result:
    """Sums of products entry by entry: of things that do not move."""
    return None if any(value.parts for value in op.inputs) else op.add(*op.inputs)


@register("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout")
def dropout(op: Operation) -> Result:
    """x m, with a random mask m in training."""
    training = op.given(2, "training", True)
    if op.given(1, "p", 0.5) == 0 or training is False or op.training is False:
        return op.value(0)
    if "alpha" in str(op.call.name):
        return op.curved(op.masked(op.value(0)))
    return op.masked(op.value(0))


@register("where")
def where(op: Operation) -> Result:
    """One of two tensors, entry by entry: a mask."""
    condition, first, second = (
        op.value(i, name) for i, name in enumerate(("condition", "input", "other"))
    )
    if condition.parts:
        return op.joined()
    given = [op.given(1, "input"), op.given(2, "other")]
    found = _chosen(op, condition, [first, second], given)
    return _still_shifted(found, [first, second], given)


@register("masked_fill")
def masked_fill(op: Operation) -> Result:
    """A number in place of some entries."""
    if op.value(1, "mask").parts:
        return None
    number = op.given(2, "value")
    x, mask = op.value(0), op.value(1, "mask")
    found = _chosen(op, mask, [x, op.value(2, "value")], [None, number])
    return _still_shifted(found, [x], [number])


def _still_shifted(found: Value, values: list[Value], given: list[object]) -> Value:
    """What is left of scores where large negative numbers take the places of some.

    The exponentials of such numbers are 0, whatever is added to the others.
    """
    if not any(_is_number(g) and g < -LARGE for g in given):
        return found
    passed = (Stage.COMMON, Stage.TABLE)
    shifts = frozenset(s for v in values for s in v.shifts if s.stage in passed)
    return replace(found, shifts=shifts)


def _chosen(op: Operation, mask: Value, values: list[Value], given: list[object]) -> Value:
    kept = [v for v, g in zip(values, given, strict=True) if not (_is_number(g) and g == 0)]
    found = op.add(*kept) if len(kept) > 1 else kept[0] if kept else values[0]
    # Where the mask differs from coordinate to coordinate, they cannot change places.
    return op.multiply(found, mask)
