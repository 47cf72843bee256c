"""Normalisations: what they leave of the groups, and their own vectors.

A normalisation removes the scale of its input only to within its eps. That is no exact symmetry, so
that no scale passes. Its own weight and bias can begin a symmetry: they make what comes out.
"""

from __future__ import annotations

from dataclasses import replace

from metaopt.symmetry.discovery.flow import Variable
from metaopt.symmetry.discovery.operation import Operation, Result
from metaopt.symmetry.discovery.rules.reductions import unit_norm
from metaopt.symmetry.discovery.rules.registry import register
from metaopt.symmetry.discovery.shifts import NONE, Shift, Stage, common, scales
from metaopt.symmetry.discovery.values import Part, Value


def _affine(op: Operation, x: Value, gains: Value | None, bias: Value | None) -> Value:
    """x gains + bias."""
    found = x if gains is None else op.multiply(x, gains)
    return found if bias is None else op.add(found, bias)


@register("layer_norm")
def layer_norm(op: Operation) -> Result:
    """(x - mean) / deviation over the last axes."""
    x = op.value(0)
    if len(op.given(1, "normalized_shape", ())) == 1:
        for shift in x.shifts:
            if shift.stage is Stage.COMMON and -1 in shift.dims:
                op.relations.ending.add(shift)
    if op.given(4, "eps", 1e-5) == 0:
        op.relations.ending |= scales(x.shifts)
    x = replace(op.curved(x), shifts=NONE)
    bias = op.given(3, "bias")
    found = _affine(op, x, op.optional(2, "weight"), op.optional(3, "bias"))
    if not isinstance(bias, Variable) or not bias.path:
        return found
    # The bias adds one vector at all positions, and a number of its own to all entries.
    both = {common(bias.path, 0, -1), Shift(bias.path, Stage.KEYS, Stage.KEYS, origin=-1)}
    return replace(found, shifts=frozenset(both))


@register("rms_norm")
def rms_norm(op: Operation) -> Result:
    """x / root mean square over the last axes."""
    shape = op.given(1, "normalized_shape")
    if not isinstance(shape, tuple | list):
        return None
    if op.given(3, "eps") == 0:
        op.relations.ending |= scales(op.value(0).shifts)
    x = unit_norm(op, op.value(0), tuple(range(-len(shape), 0)))
    return _affine(op, x, op.optional(2, "weight"), None)


@register("group_norm")
def group_norm(op: Operation) -> Result:
    """(x - mean) / deviation over groups of the channels, which therefore keep their places."""
    x = op.fix(op.value(0), f"only permutations within groups pass {op.relations.said}")
    weight, bias = op.optional(2, "weight"), op.optional(3, "bias")
    after = _channels_before(op, x)
    if after is None:
        return None
    vectors = [None if v is None else _on(v, after) for v in (weight, bias)]
    return _affine(op, x, *vectors)


@register("batch_norm", "instance_norm")
def batch_norm(op: Operation) -> Result:
    """(x - mean) / deviation of each channel; running statistics move with the channels."""
    relations = op.relations
    x = replace(op.value(0), shifts=NONE)
    statistics = [op.statistics(1, "running_mean"), op.statistics(2, "running_var")]
    vectors = [op.optional(3, "weight"), op.optional(4, "bias")]
    known = [v for v in (*statistics, *vectors) if v is not None]
    if not known:
        after = _channels_before(op, x)
        return None if after is None else op.curved(x)
    after = _channels(op, x, known)
    if after is None:
        return None
    part = x.part_on(-after - 1)
    if part is not None and part.labels.shape[-1] != known[0].shape[0]:
        # Its channels are another axis than the coordinates: which, a trace cannot know.
        return None
    for other in x.parts:
        if other is not part:
            op.fix(replace(x, parts=(other,)))
    x = replace(x, parts=() if part is None else (part,))
    mean, variance = (None if s is None else _on(s, after) for s in statistics)
    for value in (x, mean, variance):
        if value is not None:
            relations.stop(value.labels, f"only permutations pass {relations.said}")
            relations.alone(value.labels)
    if mean is not None:
        x = op.add(x, mean)
    if part is not None and variance is not None:
        operands = [(p.labels, (-after - 1,)) for p in (*x.parts, *variance.parts)]
        relations.record(operands)
    weight, bias = (None if v is None else _on(v, after) for v in vectors)
    return _affine(op, x, weight, bias)


def _on(vector: Value, after: int) -> Value:
    """A vector along the axis of channels, with ``after`` axes behind it."""
    parts = tuple(Part((-after - 1,), p.labels) for p in vector.parts)
    return Value((*vector.shape, *(1,) * after), parts=parts)


def _channels_before(op: Operation, x: Value) -> int | None:
    """How many axes follow the channels on axis 1, if that is known."""
    if not x.open:
        return len(x.shape) - 2
    found = {-d - 1 for part in x.parts for d in part.dims}
    return found.pop() if len(found) == 1 else None


def _channels(op: Operation, x: Value, vectors: list[Value]) -> int | None:
    """How many axes follow the channels of a normalisation with these vectors."""
    if not x.open:
        return len(x.shape) - 2
    dims = {"BatchNorm1d": None, "BatchNorm2d": 2, "BatchNorm3d": 3}
    kind = op.call.said.partition(" ")[0]
    if dims.get(kind) is not None:
        return dims[kind]
    if len(x.parts) == 1 and not x.repeats:
        after = -x.parts[0].dims[-1] - 1
        if not after:
            for value in (x, *vectors):
                op.assume(value, f"'{op.call.module}' reads [batch, features]")
        return after
    return None
