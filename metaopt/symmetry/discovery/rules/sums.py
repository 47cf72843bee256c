"""Sums of products and sums over axes: linear maps, convolutions, embeddings, means, softmax."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from metaopt.symmetry.discovery.flow import Variable
from metaopt.symmetry.discovery.operation import Operation, Result
from metaopt.symmetry.discovery.rules.registry import register
from metaopt.symmetry.discovery.shifts import NONE, Shift, Stage, common
from metaopt.symmetry.discovery.values import Part, Value


@register("linear")
def linear(op: Operation) -> Result:
    """x W^T + b."""
    found = op.linear(op.value(0), op.value(1, "weight"), op.optional(2, "bias"))
    return _shifting(found, op.given(1, "weight"), op.given(2, "bias"))


def _shifting(value: Value, weight: Any, bias: Any, axis: int = 0, dim: int = -1) -> Value:
    """The output of a layer, with the translations that it passes on.

    Args:
        value: the output.
        weight: the variable of its weight, or None.
        bias: that of its bias, or None.
        axis: the axis of the weight that makes the output.
        dim: the axis of the output that it makes.
    """
    found = set()
    if isinstance(weight, Variable) and weight.path:
        found.add(common(weight.path, axis, dim))
        if bias is None or (isinstance(bias, Variable) and bias.path):
            own = "" if bias is None else bias.path
            found.add(Shift(weight.path, Stage.SCALE, Stage.SCALE, bias=own))
    part = value.part_on(dim)
    if isinstance(bias, Variable) and bias.path and part is not None:
        found.add(common(bias.path, 0, dim))
        origin = int(part.labels.flat[0])
        found.add(Shift(bias.path, Stage.KEYS, Stage.KEYS, origin=origin))
    return replace(value, shifts=frozenset(found))


@register("matmul")
def matmul(op: Operation) -> Result:
    """x @ y, over the last axis of x and the last but one of y."""
    return product(op, op.value(0), op.value(1, "other"))


def product(op: Operation, x: Value, y: Value) -> Value | None:
    """x @ y for matrices, batches of them, and vectors."""
    if (x.open or y.open) and min(len(x.shape), len(y.shape)) < 2:
        return _weights(op, x, y)
    left: list[Hashable] = [*range(-len(x.shape), -2), "m", "k"][-len(x.shape) :]
    right: list[Hashable] = [*range(-len(y.shape), -2), "k", "n"][-len(y.shape) :]
    if len(x.shape) == 1:
        left = ["k"]
    if len(y.shape) == 1:
        right = ["k"]
    outer = [*range(-max(len(x.shape), len(y.shape)), -2)]
    out = [*outer, *(n for n in ("m", "n") if n in left or n in right)]
    found = op.contract([x, y], [left, right], out, x.open or y.open)
    if out[-2:] != ["m", "n"]:
        return found
    # What adds one vector to all keys adds the same to all scores of a query.
    shifts = {s.common_along((-2,)) for s in x.shifts if s.stage is Stage.KEYS}
    shifts |= {s.common_along((-1,)) for s in y.shifts if s.stage is Stage.KEYS}
    return replace(found, shifts=frozenset(shifts))


def _weights(op: Operation, x: Value, y: Value) -> Value | None:
    """x @ W for an x with an unknown number of axes."""
    if y.open or len(y.shape) != 2:
        return None
    outer = [*range(-max(len(x.shape), 1), -1)]
    shape = x.shape or (None,)
    return op.contract(
        [replace(x, shape=shape), y], [[*outer, "k"], ["k", "n"]], [*outer, "n"], True
    )


@register("addmm", "baddbmm", "addbmm", "addmv")
def addmm(op: Operation) -> Result:
    """b + x @ y."""
    found = product(op, op.value(1, "batch1"), op.value(2, "batch2"))
    plain = all(op.given(9, name, 1) == 1 for name in ("alpha", "beta"))
    if found is None or not plain:
        return None
    return _shifting(op.add(found, op.value(0)), op.given(2, "batch2"), op.given(0, "input"), 1)


@register("einsum")
def einsum(op: Operation) -> Result:
    """Sums of products, two tensors at a time from the left."""
    equation, *given = op.call.args
    if len(given) == 1 and isinstance(given[0], tuple | list):
        given = list(given[0])
    if not isinstance(equation, str) or any(op.value(g).open for g in given):
        return None
    equation = equation.replace(" ", "")
    left, arrow, out = equation.partition("->")
    if not arrow:
        return None
    values = [op.value(g) for g in given]
    rank = 0
    for term, value in zip(left.split(","), values, strict=True):
        rank = max(rank, len(value.shape) - len(term.replace("...", ""))) if "..." in term else rank
    terms = [
        _letters(t, len(v.shape) - len(t.replace("...", "")))
        for t, v in zip(left.split(","), values, strict=True)
    ]
    if any(len(set(term)) < len(term) for term in terms):
        return None
    result, names = values[0], terms[0]
    outputs = _letters(out, rank)
    for i, (value, own) in enumerate(zip(values[1:], terms[1:], strict=True), 2):
        later = {n for term in terms[i:] for n in term} | set(outputs)
        kept = [n for n in dict.fromkeys([*names, *own]) if n in later]
        kept = kept if terms[i:] else outputs
        result, names = op.contract([result, value], [names, own], kept), kept
    if len(values) == 1:
        result = op.contract([result], [names], outputs)
    return result


def _letters(term: str, rank: int) -> list[Hashable]:
    """The letters of one tensor of an equation; axes of "..." are numbered from the end."""
    if "..." not in term:
        return list(term)
    before, after = term.split("...")
    return [*before, *range(-rank, 0), *after]


@register("embedding")
def embedding(op: Operation) -> Result:
    """Rows of a table, which inputs choose: the rows cannot move."""
    table = op.value(1, "weight")
    if op.given(3, "max_norm") is not None:
        op.fix(table, f"{op.relations.said} bounds the norms of its rows")
        return Value((table.shape[-1],), True).with_shape(op.shape)
    rows = table.part_on(-2)
    if rows is not None:
        op.relations.fix(rows.labels, "its rows are looked up by inputs")
    parts = tuple(part for part in table.parts if part.dims == (-1,))
    variable = op.given(1, "weight")
    shifts = NONE
    if isinstance(variable, Variable) and variable.path:
        table_of_biases = Shift(variable.path, Stage.TABLE, Stage.TABLE)
        shifts = frozenset({table_of_biases, common(variable.path, 1, -1)})
    return Value((table.shape[-1],), True, parts, shifts=shifts).with_shape(op.shape)


CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}


@register(*CONVOLUTIONS, *TRANSPOSED)
def convolution(op: Operation) -> Result:
    """A sum over channels and nearby positions."""
    name = str(op.call.name)
    flipped = name in TRANSPOSED
    dims = TRANSPOSED[name] if flipped else CONVOLUTIONS[name]
    x, weight = op.value(0), op.value(1, "weight")
    groups = op.given(6, "groups", 1)
    for part in weight.parts:
        if part.dims[0] >= -dims:
            op.relations.fix(part.labels, "positions of a kernel")
    for part in x.parts:
        if part.dims != (-dims - 1,):
            op.fix(replace(x, parts=(part,)))
    x = replace(x, parts=tuple(p for p in x.parts if p.dims == (-dims - 1,)))
    if len(x.shape) < dims + 1:
        x = replace(x, shape=(None,) * (dims + 1))
    if groups == 1:
        found = _dense(op, x, weight, dims, flipped)
    elif groups == weight.shape[0] and weight.shape[1] == 1:
        found = _depthwise(op, x, weight, dims)
    else:
        found = _grouped(op, x, weight, dims, groups, flipped)
    bias = op.optional(2, "bias")
    if bias is not None:
        parts = tuple(Part((-dims - 1,), p.labels) for p in bias.parts)
        shape: tuple[int | None, ...] = (bias.shape[0], *(1,) * dims)
        found = op.add(found, Value(shape, parts=parts))
    own = op.given(1, "weight") if groups == 1 else None
    found = _shifting(found, own, op.given(2, "bias"), int(flipped), -dims - 1)
    return found.with_shape(op.shape)


def _matrix(weight: Value, dims: int) -> Value:
    """The weight without the positions of its kernel."""
    parts = tuple(replace(p, dims=(p.dims[0] + dims,)) for p in weight.parts if p.dims[0] < -dims)
    return Value(weight.shape[:2], parts=parts, weight=weight.weight)


def _dense(op: Operation, x: Value, weight: Value, dims: int, flipped: bool) -> Value:
    outer: list[Hashable] = [*range(-len(x.shape), -dims - 1)]
    places: list[Hashable] = [*range(-dims, 0)]
    own = ["i", "o"] if flipped else ["o", "i"]
    shape = (*x.shape[:-dims], *(None,) * dims)
    values = [replace(x, shape=shape), _matrix(weight, dims)]
    return op.contract(values, [[*outer, "i", *places], own], [*outer, "o", *places], x.open)


def _depthwise(op: Operation, x: Value, weight: Value, dims: int) -> Value:
    """One kernel for each channel: a product."""
    filters = _matrix(weight, dims)
    parts = tuple(Part((-dims - 1,), p.labels) for p in filters.parts if p.dims == (-2,))
    shape: tuple[int | None, ...] = (weight.shape[0], *(1,) * dims)
    kernel = Value(shape, parts=parts, weight=True)
    return op.multiply(replace(x, shape=(*x.shape[:-dims], *(None,) * dims)), kernel)


def _grouped(
    op: Operation, x: Value, weight: Value, dims: int, groups: int, flipped: bool
) -> Value:
    """Each group of channels reads its own: the columns of a row are those of its group.

    The rows make channels and the columns read them; flipped, rows read and columns make.
    """
    relations = op.relations
    filters = _matrix(weight, dims)
    rows = next((p.labels for p in filters.parts if p.dims == (-2,)), None)
    inner = filters.part_on(-1)
    if inner is not None:
        relations.fix(inner.labels, "its columns belong to groups of channels")
    variable = op.given(1, "weight")
    part = x.part_on(-dims - 1)
    width = weight.shape[1]
    why = f"only scales pass {relations.said}"
    columns = None
    if rows is not None and isinstance(variable, Variable) and variable.path and width:
        columns = op.parameters.columns(variable.path, groups)
    made, read = (columns, rows) if flipped else (rows, columns)
    if part is not None and read is not None and columns is not None:
        relations.equal(part.labels, read, -1, why)
        for labels in (part.labels, read):
            relations.alone(labels)
            relations.record([(labels, ("i",))], ["i"], why)
    else:
        op.fix(x)
        if read is not None:
            relations.fix(read, f"{relations.said} reads with it what does not move")
    length = width and groups * width if flipped else weight.shape[0]
    shape = (*x.shape[: -dims - 1], length, *(None,) * dims)
    if made is None:
        return Value(shape, x.open)
    relations.alone(made)
    relations.record([(made, ("o",))], ["o"], why)
    return Value(shape, x.open, (Part((-dims - 1,), made),))
