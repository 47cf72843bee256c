"""What only moves entries about: views, slices, concatenations, copies, padding, pooling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from metaopt.symmetry.discovery.flow import Unknown, Variable
from metaopt.symmetry.discovery.movement import added_axis, concatenated, flattened
from metaopt.symmetry.discovery.operation import Operation, Result
from metaopt.symmetry.discovery.rules.registry import register
from metaopt.symmetry.discovery.shifts import NONE, Stage
from metaopt.symmetry.discovery.values import Value

METHODS = (
    "permute", "transpose", "movedim", "t", "unsqueeze", "squeeze", "expand", "broadcast_to",
    "repeat", "repeat_interleave", "tile", "chunk", "split", "tensor_split", "unbind", "narrow",
    "select", "unflatten", "flip", "roll", "unfold", "as_strided", "swapdims", "ravel",
    "diagonal", "hsplit", "vsplit", "dsplit", "take_along_dim", "T", "mT", "adjoint", "rot90",
)  # fmt: skip
FUNCTIONS: dict[str, Any] = {
    "T": lambda x: x.T,
    "mT": lambda x: x.mT,
    "pixel_shuffle": torch.pixel_shuffle,
    "pixel_unshuffle": torch.pixel_unshuffle,
}


def _result(values: list[Value], op: Operation) -> Result:
    return values if isinstance(op.call.output, tuple | list) else values[0]


@register(*METHODS, *FUNCTIONS)
def moving(op: Operation) -> Result:
    """The operation itself, applied to labels."""
    name = str(op.call.name)
    if not op.inputs[0].parts and op.inputs[0].open:
        op.relations.indexed |= name in ("select", "unbind", "squeeze")
        return [op.like(v.shape, v.shape is None) for v in op.call.outputs]
    method = FUNCTIONS.get(name) or getattr(torch.Tensor, name)
    return _result(op.replayed(method), op)


@register("getitem")
def getitem(op: Operation) -> Result:
    """x[i] for numbers, slices and constants; for integers that are computed, rows of a table."""
    index = op.given(1, "index")
    first = index[0] if isinstance(index, tuple) and index else index
    op.relations.indexed |= isinstance(first, int) and op.inputs[0].open
    if not isinstance(index, Variable) or index.constant is not None:
        return moving_by(op, lambda x, i: x[i])
    x, shape = op.value(0), op.shape
    if shape is None or index.shape is None or x.open:
        return None
    if len(shape) != len(index.shape) + len(x.shape) - 1:
        return None
    return _looked_up(op, x, -len(x.shape)).with_shape(shape)


@register("index_select")
def index_select(op: Operation) -> Result:
    """Entries along an axis, which a tensor of integers chooses."""
    x = op.value(0)
    dim = op.dim(x, op.given(1, "dim"))
    return None if dim is None else _looked_up(op, x, dim).with_shape(op.shape)


def _looked_up(op: Operation, x: Value, dim: int) -> Value:
    """A value whose entries along an axis are chosen by computed integers: they stay there."""
    part = x.part_on(dim)
    if part is not None:
        op.relations.fix(part.labels, "its rows are looked up by inputs")
    parts = tuple(p for p in x.parts if p is not part)
    shifts = frozenset(s for s in x.shifts if s.dims == (-1,) and dim != -1)
    return replace(x, parts=parts, shifts=shifts, even=frozenset())


@register("expand_as", "reshape_as")
def like_another(op: Operation) -> Result:
    """``expand`` or ``reshape`` to the sizes of another tensor."""
    shape = op.shape
    if shape is None or None in shape:
        return None
    sizes = [n for n in shape if n is not None]
    method = torch.Tensor.expand if op.call.name == "expand_as" else torch.Tensor.reshape
    return op.moved(op.value(0), lambda labels: method(labels, sizes))[0]


@register("flatten")
def flatten(op: Operation) -> Result:
    """Several axes become one."""
    x = op.value(0)
    if op.shape is not None:
        return moving_by(op, torch.Tensor.flatten)
    bounds = (op.given(1, "start_dim", 0), op.given(2, "end_dim", -1))
    return _batched(op, x) if bounds == (1, -1) else None


def _batched(op: Operation, x: Value) -> Value:
    """All axes but the first become one; images come in batches."""
    if op.relations.indexed:
        op.assume(x, f"what '{op.call.module}' reads comes in batches")
    return flattened(x)


def moving_by(op: Operation, method: Any) -> Result:
    """The result of one method of tensors, applied to labels."""
    return _result(op.replayed(method), op) if op.inputs[0].parts else op.like(op.shape)


@register("reshape")
def reshape(op: Operation) -> Result:
    """``view`` and ``reshape``; where sizes are open, to [batch, features]."""
    if op.shape is not None and isinstance(op.given(1, "shape"), torch.dtype):
        return None
    if op.shape is not None:
        sizes = [n for n in op.shape if n is not None]
        x = op.value(0)
        found = (
            op.moved(x, lambda labels: labels.reshape(sizes))[0] if x.parts else op.like(op.shape)
        )
        # Scores of all heads, one after the other, are still scores along the last axis.
        last = x.shape[-1:] == op.shape[-1:] and x.part_on(-1) is None
        scores = {s for s in x.shifts if last and s.stage is Stage.COMMON and s.dims == (-1,)}
        return replace(found, shifts=found.shifts | scores)
    given = op.call.args[1:] or op.call.kwargs.get("shape", ())
    if len(given) == 1 and isinstance(given[0], tuple | list):
        given = tuple(given[0])
    x = op.value(0)
    if not x.parts:
        return Value((), True)
    if len(given) != 2 or not (given[0] == -1 or isinstance(given[0], Unknown)):
        return None
    if not isinstance(given[1], int) or given[0] == given[1]:
        return None
    if given[0] == -1 and x.parts[0].dims != (-1,):
        # Entries of a row are then taken from one image only if a row is as long as an image.
        op.assume(x, f"an image has {given[1]} entries")
    return _batched(op, x)


@register("cat")
def cat(op: Operation) -> Result:
    """Several tensors one after the other."""
    values = op.lists(0, "tensors")
    dims = {op.dim(v, op.given(1, "dim", 0)) for v in values}
    if len(dims) != 1 or None in dims:
        return None if any(v.parts for v in values) else op.like(op.shape, op.shape is None)
    return concatenated(op.relations, values, dims.pop() or 0).with_shape(op.shape)


@register("stack")
def stack(op: Operation) -> Result:
    """Several tensors one after the other along a new axis."""
    values = op.lists(0, "tensors")
    dim = op.given(1, "dim", 0)
    if any(v.open for v in values) or op.shape is None:
        return None
    place = dim if dim < 0 else dim - len(op.shape)
    return concatenated(op.relations, [added_axis(v, place) for v in values], place).with_shape(
        op.shape
    )


@register("pad")
def pad(op: Operation) -> Result:
    """More entries at the ends: zeros along axes without coordinates change nothing for a group."""
    x = op.value(0)
    sizes = op.given(1, "pad")
    padded = {-1 - i // 2 for i, n in enumerate(sizes) if n != 0}
    mode, number = op.given(2, "mode", "constant"), op.given(3, "value", 0)
    held = [part for part in x.parts if padded & set(part.dims)]
    if held and op.shape is not None and mode == "constant" and not number:
        return op.moved(x, lambda labels: torch.nn.functional.pad(labels, sizes, value=-1))[0]
    if held:
        return None
    if mode == "constant" and number:
        x = op.add(x, Value(()))
    shape = tuple(
        None if d in padded else n for d, n in zip(range(-len(x.shape), 0), x.shape, strict=True)
    )
    return replace(x, shape=shape, shifts=NONE).with_shape(op.shape)


def _pooled(op: Operation, dims: int) -> Value | None:
    x = op.value(0)
    if any(-d <= dims for part in x.parts for d in part.dims) or x.repeats:
        return None
    shape = (*x.shape[:-dims], *(None,) * min(dims, len(x.shape)))
    return replace(x, shape=shape, shifts=NONE).with_shape(
        None if len(op.call.outputs) > 1 else op.shape
    )


@register(
    *(f"{kind}{n}d" for kind in ("avg_pool", "adaptive_avg_pool", "lp_pool") for n in (1, 2, 3))
)
def average(op: Operation) -> Result:
    """Means over nearby positions: every group passes."""
    found = _pooled(op, int(str(op.call.name)[-2]))
    return op.homogeneous(found) if found is not None and "lp" in str(op.call.name) else found


@register(
    *(f"{kind}{n}d" for kind in ("max_pool", "adaptive_max_pool") for n in (1, 2, 3)),
    *(f"{kind}{n}d_with_indices" for kind in ("max_pool", "adaptive_max_pool") for n in (1, 2, 3)),
)
def maximum(op: Operation) -> Result:
    """The largest of nearby positions: positive scales and permutations pass."""
    name = str(op.call.name).removesuffix("_with_indices")
    found = _pooled(op, int(name[-2]))
    asked = op.call.kwargs.get("return_indices", False) or name != op.call.name
    if found is None or asked or getattr(op.call.of, "return_indices", False):
        return None
    return op.homogeneous(found)


@register("interpolate", "upsample", "grid_sample")
def interpolate(op: Operation) -> Result:
    """Images of another size: linear within each channel."""
    x = op.value(0)
    if op.call.name == "grid_sample" and op.value(1, "grid").parts:
        return None
    images = -1 if x.open else 2 - len(x.shape)
    if any(max(part.dims) >= images or len(part.dims) > 1 for part in x.parts):
        return None
    dims = {d for part in x.parts for d in part.dims}
    shape = tuple(
        n if d in dims else None for d, n in zip(range(-len(x.shape), 0), x.shape, strict=True)
    )
    return replace(x, shape=shape, shifts=NONE).with_shape(op.shape)


@register("tril", "triu")
def triangle(op: Operation) -> Result:
    """Zeros in place of one triangle of each matrix."""
    x = op.value(0)
    return None if x.part_on(-1) or x.part_on(-2) else replace(x, shifts=NONE)


EVEN = (
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zeros", "ones",
    "full",
)  # fmt: skip
UNEVEN = (
    "empty_like", "rand_like", "randn_like", "new_empty", "new_tensor", "meshgrid", "arange",
    "empty", "linspace", "tensor", "eye", "rand", "randn", "as_tensor", "bernoulli", "randint",
    "randperm", "one_hot",
)  # fmt: skip


@register(*EVEN, *UNEVEN)
def created(op: Operation) -> Result:
    """Tensors made of numbers; of another tensor they take the sizes alone."""
    made = [op.like(v.shape, v.shape is None) for v in op.call.outputs]
    if op.call.name in EVEN:
        zero = "zeros" in str(op.call.name)
        made = [replace(v, even=frozenset(range(-len(v.shape), 0)), zero=zero) for v in made]
    uses = op.call.name in ("tensor", "as_tensor", "bernoulli", "one_hot", "meshgrid")
    if uses and any(value.parts for value in op.inputs):
        return None
    return made
