"""Sums, means, norms and other functions over axes; softmax."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from metaopt.symmetry.discovery.operation import Operation, Result
from metaopt.symmetry.discovery.rules.registry import register
from metaopt.symmetry.discovery.shifts import NONE, scales
from metaopt.symmetry.discovery.values import Value

KEEPING_SCALE = ("max", "min", "amax", "amin", "median", "std", "norm", "vector_norm")
"""Functions of entries along axes with f(a x) = a f(x) for a > 0."""
TINY = 1e-12
"""The bound below which ``normalize`` leaves a norm: torch's default, which no input meets."""


def axes(op: Operation, value: Value, given: Any) -> list[int] | None:
    """Axes counted from the end, of one number or several; all of them for None."""
    if given is None:
        return None if value.open else [*range(-len(value.shape), 0)]
    found = [op.dim(value, d) for d in (given if isinstance(given, tuple | list) else [given])]
    return None if any(d is None for d in found) else [d for d in found if d is not None]


def _spatial(value: Value, given: Any) -> list[int] | None:
    """The positions of images of an unknown number of axes, which come in batches."""
    dims = (
        {given}
        if isinstance(given, int)
        else {*given}
        if isinstance(given, tuple | list)
        else {None}
    )
    places = -value.parts[0].dims[-1] - 1 if len(value.parts) == 1 else 0
    return [*range(-places, 0)] if places and dims == {*range(2, 2 + places)} else None


@register("mean", "sum", "nanmean", "nansum")
def mean(op: Operation) -> Result:
    """Means and sums over axes."""
    x = op.value(0)
    given = op.given(1, "dim")
    dims = axes(op, x, given)
    if dims is None:
        dims = _spatial(x, given)
    if dims is None and given is None:
        for part in x.parts:
            op.total(replace(x, parts=(part,)), part.dims)
        return Value(())
    if dims is None:
        return None
    return op.total(x, dims, bool(op.given(2, "keepdim", False)))


@register(
    "max",
    "min",
    "amax",
    "amin",
    "median",
    "std",
    "var",
    "norm",
    "vector_norm",
    "logsumexp",
    "argmax",
    "argmin",
    "any",
    "all",
    "count_nonzero",
    "prod",
)
def extremes(op: Operation) -> Result:
    """Functions of all entries along axes, entry by entry of the rest."""
    if len(op.call.inputs) > 1:
        return op.joined()
    x = op.value(0)
    name = str(op.call.name)
    place = 2 if name in ("norm", "vector_norm") else 1
    given = op.given(place, "dim")
    # std(True) and var(True) say how to divide; so does what follows their axes.
    given = None if isinstance(given, bool) else given
    dims = axes(op, x, given)
    if dims is None:
        dims = _spatial(x, given)
    if dims is None:
        return None
    names_places = name in ("argmax", "argmin") or len(op.call.outputs) == 2
    if names_places:
        for part in x.parts:
            if set(part.dims) & set(dims):
                why = f"{op.relations.said} tells the places of its output"
                op.fix(replace(x, parts=(part,)), why)
    x = op.homogeneous(x) if name in KEEPING_SCALE else op.curved(x)
    kept = op.given(place + (2 if name in ("std", "var") else 1), "keepdim", False)
    found = op.total(x, dims, bool(kept))
    if not names_places:
        return found
    places = replace(op.curved(found), parts=())
    return [found, places] if len(op.call.outputs) == 2 else places


@register("cumsum")
def cumsum(op: Operation) -> Result:
    """Sums of all entries so far, along an axis without coordinates."""
    x = op.value(0)
    dim = op.dim(x, op.given(1, "dim"))
    return None if dim is None or x.part_on(dim) is not None else replace(x, shifts=NONE)


@register("softmax", "log_softmax", "softmin")
def softmax(op: Operation) -> Result:
    """exp(x_i) / sum_j exp(x_j): permutations pass; a number added to all x_i is not seen."""
    x = op.value(0)
    dim = op.dim(x, op.given(1, "dim"))
    if dim is not None:
        op.ended(x, dim=dim)
    return replace(op.curved(x), shifts=NONE)


@register("normalize")
def normalize(op: Operation) -> Result:
    """x / ||x||: no scale passes; a norm over coordinates alone lets rotations and signs pass."""
    x = op.value(0)
    if op.given(1, "p", 2.0) != 2:
        return op.curved(x)
    dim = op.dim(x, op.given(2, "dim", 1))
    if dim is None:
        return None
    if op.given(3, "eps", TINY) <= TINY:
        op.relations.ending |= scales(x.shifts)
    return unit_norm(op, x, (dim,))


def unit_norm(op: Operation, x: Value, dims: tuple[int, ...]) -> Value:
    """x divided by its root mean square over axes."""
    for part in x.parts:
        inside = [i for i, d in enumerate(part.dims) if d in dims]
        if inside:
            op.relations.mirror(part.labels)
            apart = [i for i in range(len(part.dims)) if i not in inside]
            op.relations.mix(part.labels, apart)
        else:
            op.relations.stop(
                part.labels, f"only permutations pass {op.relations.said}", sign=False
            )
            op.relations.alone(part.labels)
        op.relations.record([(part.labels, part.dims)])
    return replace(x, shifts=NONE)
