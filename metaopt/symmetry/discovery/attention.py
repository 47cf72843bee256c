"""The symmetries inside torch's own attention and transformer modules, head by head.

    q_h -> g q_h,   k_h -> g^-T k_h        q_h^T k_h stays the same
    v_h -> g v_h,   W_o,h -> W_o,h g^-1    W_o,h v_h stays the same

The rows of W_q, W_k, W_v move, with their biases and the learned extra key and value (``bias_k``,
``bias_v``). These symmetries hold on all inputs, and however often the module is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from metaopt.symmetry.discovery import operations
from metaopt.symmetry.discovery.operations import Layout
from metaopt.symmetry.groups import SCALES, Group, Skipped, Slot, Symmetry, largest

ROLES = ("query", "key", "value")
PARTS: dict[str, type[nn.Module]] = {
    "self_attn": nn.MultiheadAttention,
    "multihead_attn": nn.MultiheadAttention,
    "linear1": nn.Linear,
    "dropout": nn.Dropout,
    "linear2": nn.Linear,
}
"""The types of the parts of a transformer layer, which users may exchange."""


def _is_packed(attention: nn.MultiheadAttention) -> bool:
    return attention.in_proj_weight is not None


def _projection(attention: nn.MultiheadAttention, path: str, role: int) -> tuple[Slot, ...]:
    """The rows of all heads that make queries (role 0), keys (1) or values (2)."""
    start = role * attention.embed_dim
    slots: tuple[Slot, ...] = (
        Slot(path, "in_proj_weight", 0, start)
        if _is_packed(attention)
        else Slot(path, f"{ROLES[role][0]}_proj_weight", 0),
    )
    if attention.in_proj_bias is not None:
        slots += (Slot(path, "in_proj_bias", 0, start),)
    extra = f"bias_{ROLES[role][0]}"
    if getattr(attention, extra, None) is not None:
        slots += (Slot(path, extra, 2),)
    return slots


def inside_attention(attention: nn.MultiheadAttention, path: str) -> Iterator[Symmetry]:
    """Per head, GL(head width) on queries and keys, and on values and output projection."""
    heads, width = attention.num_heads, attention.head_dim
    query, key, value = (_projection(attention, path, role) for role in range(3))
    out = (Slot(path, "out_proj.weight", 1),)
    name = path or "attention"
    yield Symmetry(f"{name}: query, key", Group.LINEAR, width, query, key, heads)
    yield Symmetry(f"{name}: value, output", Group.LINEAR, width, value, out, heads)


def input_slots(
    attention: nn.MultiheadAttention, path: str, node: fx.Node, source: fx.Node
) -> tuple[Slot, ...]:
    """The columns that read ``source`` as query, key or value; none if it is not passed."""
    given = dict(zip(ROLES, node.args, strict=False)) | node.kwargs
    others = [value for name, value in given.items() if name not in ROLES]
    if source in others or source in node.args[3:]:
        return ()
    roles = [i for i, role in enumerate(ROLES) if given.get(role) is source]
    return role_slots(attention, path, roles)


def role_slots(attention: nn.MultiheadAttention, path: str, roles: list[int]) -> tuple[Slot, ...]:
    """The columns of W_q (role 0), W_k (1) and W_v (2) that read the attention's inputs."""
    E = attention.embed_dim
    if _is_packed(attention):
        return tuple(Slot(path, "in_proj_weight", 1, rows=(role * E, E)) for role in roles)
    return tuple(Slot(path, f"{ROLES[role][0]}_proj_weight", 1) for role in roles)


def inside_transformer_layer(layer: Any, path: str) -> Iterator[Symmetry | Skipped]:
    """The symmetries of a torch transformer encoder or decoder layer besides its attention's.

    They are those of each normalisation in front of a block (``norm_first``) and the layers that
    read it, and those of the two layers of the feed-forward block.
    """
    prefix = f"{path}." if path else ""
    for name, kind in PARTS.items():
        part = getattr(layer, name, None)
        if part is not None and type(part) is not kind:
            yield Skipped(path, f"its {name} is a {type(part).__name__}, which is not known here")
            return
    readers = {"norm1": role_slots(layer.self_attn, f"{prefix}self_attn", [0, 1, 2])}
    last = "norm2"
    if isinstance(layer, nn.TransformerDecoderLayer):
        readers["norm2"] = role_slots(layer.multihead_attn, f"{prefix}multihead_attn", [0])
        last = "norm3"
    readers[last] = (Slot(f"{prefix}linear1", "weight", 1),)
    for name, slots in readers.items():
        norm = getattr(layer, name)
        if not layer.norm_first:
            yield Skipped(prefix + name, "its output is added to another value")
        elif type(norm) is not nn.LayerNorm or norm.weight is None:
            yield Skipped(prefix + name, f"{type(norm).__name__} without weights, or not known")
        else:
            yield _pair(prefix + name, norm, slots, SCALES)
    yield _feed_forward(layer, prefix)


def _pair(
    path: str, module: Any, outgoing: tuple[Slot, ...], allows: frozenset[Group]
) -> Symmetry | Skipped:
    group = largest(allows)
    if group is None:
        return Skipped(path, "no continuous group passes what is behind it")
    incoming = [Slot(path, name, 0) for name in ("weight", "bias") if _has(module, name)]
    name = f"{path} -> {outgoing[0].module}"
    return Symmetry(name, group, len(module.weight), tuple(incoming), outgoing, allows=allows)


def _has(module: nn.Module, name: str) -> bool:
    return getattr(module, name, None) is not None


def _feed_forward(layer: Any, prefix: str) -> Symmetry | Skipped:
    is_module = isinstance(layer.activation, nn.Module)
    table: Any = operations.MODULES if is_module else operations.FUNCTIONS
    rule = table.get(type(layer.activation) if is_module else layer.activation)
    node = fx.Graph().placeholder("hidden")
    passage = rule and rule(node, layer.activation if is_module else None, Layout(-1))
    if passage is None:
        return Skipped(f"{prefix}linear1", "its activation is not known here")
    masked = operations.dropout(node, layer.dropout, Layout(-1))
    outgoing = (Slot(f"{prefix}linear2", "weight", 1),)
    return _pair(f"{prefix}linear1", layer.linear1, outgoing, passage.allows & masked.allows)
