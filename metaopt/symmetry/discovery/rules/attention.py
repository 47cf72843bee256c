"""Attention: softmax(q k^T / c + mask) v for each head.

s_q[h, i] + s_k[h, i] = 0,   out[h, i] = v[h, i],   softmax lets permutations of heads pass
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from metaopt.symmetry.discovery.flow import Variable
from metaopt.symmetry.discovery.operation import Operation, Result
from metaopt.symmetry.discovery.rules.registry import register
from metaopt.symmetry.discovery.shifts import NONE, Shift, Stage
from metaopt.symmetry.discovery.values import Part, Value


def attention(
    op: Operation,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None,
    masked: bool,
    alike: bool = True,
) -> Value:
    """The attention of queries [.., t, i], keys [.., s, i] and values [.., s, j]: [.., t, j].

    Args:
        op: the operation.
        q: the queries.
        k: the keys.
        v: the values.
        mask: what is added to the scores.
        masked: whether some scores are dropped at random.
        alike: whether nothing tells one head from another.
    """
    outer = [[*range(-len(x.shape), -2)] for x in (q, k, v)]
    both = max(outer[:2], key=len)
    is_open = q.open or k.open or v.open
    names = [[*outer[0], "t", "i"], [*outer[1], "s", "i"]]
    scores = op.contract([q, k], names, [*both, "t", "s"], is_open)
    for shift in k.shifts:
        if shift.stage is Stage.KEYS:
            op.relations.ending.add(shift)
    op.relations.spoilt |= {shift.key for x in (q, v) for shift in x.shifts}
    if mask is not None:
        op.ended(mask, dim=-1)
        scores = op.add(scores, mask)
    for part in scores.parts:
        op.relations.curved(part.labels)
        op.relations.record([(part.labels, part.dims)], () if alike else part.dims)
    if masked:
        scores = op.masked(scores)
    rows = [*range(-len(scores.shape), -2), "t", "s"]
    out = [*max([both, outer[2]], key=len), "t", "j"]
    return op.contract([scores, v], [rows, [*outer[2], "s", "j"]], out, is_open)


@register("scaled_dot_product_attention")
def scaled_dot_product(op: Operation) -> Result:
    """torch's function, with grouped queries: each key serves several query heads in a row."""
    q, k, v = (op.value(i, name) for i, name in enumerate(("query", "key", "value")))
    if op.given(7, "enable_gqa", False) and q.size(-3) != k.size(-3):
        heads, groups = q.size(-3), k.size(-3)
        if heads is None or groups is None:
            return None
        k, v = (
            op.moved(x, lambda labels: labels.repeat_interleave(heads // groups, -3))[0]
            for x in (k, v)
        )
    masked = bool(op.given(4, "dropout_p", 0.0))
    return attention(op, q, k, v, op.optional(3, "attn_mask"), masked).with_shape(op.shape)


HEAD = ("query", "key", "value")


@register("multi_head_attention_forward")
def multi_head(op: Operation) -> Result:
    """torch's function for ``nn.MultiheadAttention``: projections, attention, output projection."""
    heads = op.given(4, "num_heads")
    width = op.given(3, "embed_dim_to_check")
    split = [_split(op, role, heads, width) for role in range(3)]
    if any(x is None for x in split):
        return None
    q, k, v = (x for x in split if x is not None)
    masked = bool(op.given(10, "dropout_p", 0.0)) and op.given(13, "training", True) is not False
    mask = op.given(16, "attn_mask")
    single = op.given(15, "need_weights", True) and not op.given(23, "average_attn_weights", True)
    alike = not single and not (isinstance(mask, Variable) and _may_differ(mask))
    out = attention(op, q, k, v, None, masked and op.training is not False, alike)
    found = out.part_on(-1)
    merged: tuple[Part, ...] = ()
    if found is not None and found.dims == (-3, -1):
        merged = (Part((-1,), found.labels.reshape(-1)),)
    elif out.parts:
        op.fix(out)
    hidden = Value((None, width), True, merged)
    result = op.linear(hidden, op.value(11, "out_proj_weight"), op.optional(12, "out_proj_bias"))
    shapes = [variable.shape for variable in op.call.outputs]
    results = [result.with_shape(shapes[0] if shapes else None)]
    return [*results, *(Value(()) if s is None else Value(s) for s in shapes[1:])]


def _may_differ(mask: Variable) -> bool:
    """Whether a mask may be another for each head: [batch heads, T, S], not [T, S]."""
    return mask.shape is None or len(mask.shape) == 3


def _split(op: Operation, role: int, heads: int, width: int) -> Value | None:
    """Queries (0), keys (1) or values (2) of all heads: [.., heads, positions, size of a head]."""
    x = op.value(role, HEAD[role])
    packed = op.given(5, "in_proj_weight")
    bias = op.given(6, "in_proj_bias")
    rows = (role * width, width)
    weight: Any = packed
    if packed is None:
        weight = op.given(18 + role, f"{HEAD[role][0]}_proj_weight")
    if not isinstance(weight, Variable) or not weight.path:
        return None
    matrix = op.parameters.value(weight.path, rows if packed is not None else None)
    vector = None
    if isinstance(bias, Variable) and bias.path:
        vector = op.parameters.value(bias.path, rows)
    elif bias is not None:
        return None
    if not x.shape:
        x = replace(x, shape=(None,))
    made = op.linear(x, matrix, vector)
    shifts = NONE
    if isinstance(bias, Variable) and not any(op.given(i, n) for i, n in ((9, "add_zero_attn"),)):
        places = tuple(range(rows[0], rows[0] + width))
        shifts = frozenset({Shift(bias.path, Stage.KEYS, Stage.KEYS, 0, places)})
    extra = op.given(6 + role, f"bias_{HEAD[role][0]}") if role else None
    if isinstance(extra, Variable):
        shifts = NONE
        own = op.parameters.value(extra.path)
        for part, other in zip(made.parts, own.parts, strict=False):
            op.relations.equal(part.labels, other.labels)
            op.relations.record([(part.labels, ("i",)), (other.labels, ("i",))])
    parts: tuple[Part, ...] = ()
    if made.parts:
        labels = made.parts[0].labels
        if len(made.parts) > 1 or labels.ndim > 1:
            return None
        parts = (Part((-3, -1), labels.reshape(heads, width // heads)),)
    return Value((heads, None, width // heads), True, parts, shifts=shifts)
