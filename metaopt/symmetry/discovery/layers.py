"""Which slots of a layer make its output, and which read its input.

| layer                | makes: incoming slots                  | reads: outgoing slots       |
| Linear               | rows of W, b; every group              | columns of W                |
| Conv1d, 2d, 3d       | output channels of W, b; every group   | input channels of W         |
| the same, grouped    | positive scaling                       | positive scaling            |
| ConvTranspose        | output channels of W, b; every group   | input channels of W         |
| BatchNorm, GroupNorm | affine weight and bias; scaling        | nothing                     |
| LayerNorm, RMSNorm   | affine weight and bias; scaling        | nothing                     |
| MultiheadAttention   | see ``attention.py``                   | columns of W_q, W_k and W_v |

A normalisation removes the scale of its input only to within its eps. That is no exact symmetry, so
that no symmetry ends at a normalisation. A symmetry can begin at its affine part, and is exact in
training and in evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from metaopt.symmetry.discovery.attention import input_slots
from metaopt.symmetry.discovery.operations import Layout, Order, Passage
from metaopt.symmetry.groups import ALL, RELABELS, SCALES, Group, Slot

CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
TRANSPOSED: dict[type[nn.Module], int] = {
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
BATCH_NORMS: dict[type[nn.Module], int] = {
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
}
LAYER_NORMS: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.RMSNorm)
NORMS: tuple[type[nn.Module], ...] = (*BATCH_NORMS, *LAYER_NORMS, nn.GroupNorm)


@dataclass(frozen=True)
class Made:
    """The hidden space at the output of a layer.

    Attributes:
        size: the number of hidden units.
        slots: the slots that make them.
        layout: where the units lie in the output.
        allows: the groups that can act on these slots.
        assumes: what must be true and the trace does not show; "" if nothing.
    """

    size: int
    slots: tuple[Slot, ...]
    layout: Layout
    allows: frozenset[Group]
    assumes: str = ""


@dataclass(frozen=True)
class Read:
    """The slots of a layer that read a hidden space, and the groups that act on them."""

    slots: tuple[Slot, ...]
    allows: frozenset[Group] = ALL


def convolved_axes(module: nn.Module) -> int | None:
    """The number of axes that a convolution runs over; None for other modules."""
    return CONVOLUTIONS.get(type(module)) or TRANSPOSED.get(type(module))


def _weight_and_bias(module: nn.Module, path: str, axis: int) -> tuple[Slot, ...]:
    weight = Slot(path, "weight", axis)
    return (weight,) if getattr(module, "bias", None) is None else (weight, Slot(path, "bias", 0))


def makes(module: Any, path: str, fed: Layout | None) -> Made | str:
    """The hidden space that a layer makes, or the reason why it makes none.

    Args:
        module: the layer.
        path: its path.
        fed: where the units of its input lie, if that is known.
    """
    kind = type(module)
    if kind is nn.Linear:
        return Made(module.out_features, _weight_and_bias(module, path, 0), Layout(-1), ALL)
    if kind in CONVOLUTIONS:
        layout = Layout(-CONVOLUTIONS[kind] - 1)
        allows = ALL if module.groups == 1 else SCALES
        return Made(module.out_channels, _weight_and_bias(module, path, 0), layout, allows)
    if kind in TRANSPOSED:
        if module.groups > 1:
            return "its output channels are in groups"
        layout = Layout(-TRANSPOSED[kind] - 1)
        return Made(module.out_channels, _weight_and_bias(module, path, 1), layout, ALL)
    if kind in NORMS:
        return _norm_makes(module, path, fed)
    return f"{kind.__name__} has no symmetry that is known here"


def _norm_makes(module: Any, path: str, fed: Layout | None) -> Made | str:
    if module.weight is None:
        return "it has no weights"
    slots = _weight_and_bias(module, path, 0)
    if module.weight.dim() > 1:
        return "it normalises more than one axis"
    layout, assumes = norm_layout(module, path, fed)
    if layout is None:
        return "the axis of its channels is not known"
    return Made(module.weight.shape[0], slots, layout, SCALES, assumes)


def norm_layout(module: Any, path: str, fed: Layout | None) -> tuple[Layout | None, str]:
    """The layout of a normalisation's weights, or None, and what that assumes."""
    kind = type(module)
    if kind in LAYER_NORMS:
        return Layout(-1), ""
    if BATCH_NORMS.get(kind, 1) > 1:
        return Layout(-BATCH_NORMS[kind] - 1), ""
    if fed is not None and (fed.axis < -1 or fed.order is not Order.UNITS):
        return Layout(fed.axis), ""
    if kind is nn.BatchNorm1d:
        return Layout(-1), f"'{path}' reads [batch, features]"
    return None, ""


def norm_passage(module: Any, path: str, layout: Layout, size: int) -> Passage | None:
    """How permutations pass a normalisation: its own vectors are permuted with the units."""
    own, assumes = norm_layout(module, path, layout)
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = [name for name in names if getattr(module, name, None) is not None]
    fits = all(getattr(module, name).shape == (size,) for name in vectors)
    if own != layout or not fits or type(module) is nn.GroupNorm:
        return None
    if type(module) in LAYER_NORMS and module.normalized_shape != (size,):
        return None
    carried = tuple(Slot(path, name, 0) for name in vectors)
    return Passage(layout, RELABELS, carried, assumes)


def reads(
    module: Any, path: str, node: fx.Node, source: fx.Node, layout: Layout, size: int
) -> Read | None:
    """The slots of a layer that read a hidden space; None if it does not read it in a known way.

    Args:
        module: the layer.
        path: its path.
        node: the node that calls it.
        source: the node whose value is the hidden space.
        layout: where the units lie in that value.
        size: the number of units.
    """
    kind = type(module)
    if kind is nn.MultiheadAttention:
        slots = input_slots(module, path, node, source) if layout == Layout(-1) else ()
        return Read(slots) if slots else None
    if node.args != (source,) or node.kwargs:
        return None
    if kind is nn.Linear:
        return _linear_reads(module, path, layout, size)
    dims = convolved_axes(module)
    if dims is None or layout != Layout(-dims - 1) or module.in_channels != size:
        return None
    allows = ALL if module.groups == 1 else SCALES
    if kind in TRANSPOSED:
        return Read((Slot(path, "weight", 0),), allows)
    return Read((Slot(path, "weight", 1, groups=module.groups),), allows)


def _linear_reads(module: nn.Linear, path: str, layout: Layout, size: int) -> Read | None:
    if layout.axis != -1 or module.in_features % size:
        return None
    positions = module.in_features // size
    if layout.order is Order.UNITS_POSITIONS:
        return Read((Slot(path, "weight", 1, inner=positions),))
    if layout.order is Order.POSITIONS_UNITS:
        return Read((Slot(path, "weight", 1, outer=positions),))
    return Read((Slot(path, "weight", 1),)) if positions == 1 else None
