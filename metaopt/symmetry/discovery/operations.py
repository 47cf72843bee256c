"""The operations between layers: which groups commute with each, and where the units lie after it.

| operation                                             | commutes with                   |
| identity, scalar multiples, average pooling, flatten  | every group                     |
| ReLU, LeakyReLU, PReLU with one slope, max pooling    | positive scaling, permutations  |
| PReLU with many slopes, RReLU, dropout                | positive scaling                |
| other elementwise functions (GELU, tanh, ...)         | permutations                    |
| BatchNorm, LayerNorm (their own vectors move too)     | permutations                    |

Dropout commutes with a diagonal matrix under the same mask. A permutation would need another mask.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from metaopt.symmetry.groups import ALL, CHANNELWISE, RELABELS, SCALES, Group, Slot


class Order(Enum):
    """What the entries along the axis of the units stand for."""

    UNITS = auto()
    """The units alone."""
    UNITS_POSITIONS = auto()
    """Flattened images: unit by unit, each with all its positions."""
    POSITIONS_UNITS = auto()
    """Flattened sequences: position by position, each with all units."""


@dataclass(frozen=True)
class Layout:
    """Where the units of a hidden space lie in a tensor.

    Attributes:
        axis: the axis, counted from the end and so negative.
        order: what the entries along the axis stand for.
    """

    axis: int
    order: Order = Order.UNITS


@dataclass(frozen=True)
class Passage:
    """What an operation does to a hidden space.

    Attributes:
        layout: where the units lie after it.
        allows: the groups that commute with it.
        carried: vectors of the operation that have to be permuted with the units.
        assumes: what must be true and the trace does not show; "" if nothing.
    """

    layout: Layout
    allows: frozenset[Group]
    carried: tuple[Slot, ...] = ()
    assumes: str = ""


Rule = Callable[[fx.Node, Any, Layout], Passage | None]
"""(node, its module or None, layout before) -> passage; None if no group commutes with it."""


def elementwise(allows: frozenset[Group]) -> Rule:
    """A function that is applied to each entry alone."""
    return lambda node, module, layout: Passage(layout, allows)


def pooling(dims: int, allows: frozenset[Group]) -> Rule:
    """Pooling over the last ``dims`` axes, none of which may be the axis of the units."""

    def rule(node: fx.Node, module: Any, layout: Layout) -> Passage | None:
        indices = getattr(module, "return_indices", node.kwargs.get("return_indices", False))
        return None if indices or -layout.axis <= dims else Passage(layout, allows)

    return rule


def dropout(node: fx.Node, module: Any, layout: Layout) -> Passage:
    """Multiplication by a random mask for each entry or channel; the identity if p = 0."""
    p = node.kwargs.get("p") if module is None else module.p
    return Passage(layout, ALL if p == 0 else SCALES)


def prelu(node: fx.Node, module: Any, layout: Layout) -> Passage | None:
    """Positively homogeneous for all slopes; commutes with permutations if there is only one."""
    is_shared = module is not None and module.num_parameters == 1
    return Passage(layout, CHANNELWISE if is_shared else SCALES)


def upsampling(node: fx.Node, module: Any, layout: Layout) -> Passage | None:
    """Upsampling of images: linear within each channel."""
    return Passage(layout, ALL) if layout.axis < -1 else None


def _merged(layout: Layout, assumes: str = "") -> Passage:
    """All axes but the first become one; images are assumed to come in batches."""
    if layout.order is not Order.UNITS:
        return Passage(layout, ALL)
    if layout.axis == -1:
        return Passage(Layout(-1, Order.POSITIONS_UNITS), ALL)
    return Passage(Layout(-1, Order.UNITS_POSITIONS), ALL, assumes=assumes)


def flatten(node: fx.Node, module: Any, layout: Layout) -> Passage | None:
    """Flattening from axis 1 to the last."""
    if module is not None:
        bounds = (module.start_dim, module.end_dim)
    else:
        given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        bounds = (given.get("start_dim", 0), given.get("end_dim", -1))
    return _merged(layout) if bounds == (1, -1) else None


def view(node: fx.Node, module: Any, layout: Layout) -> Passage | None:
    """``view`` and ``reshape`` to [batch, features]."""
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    if len(sizes) != 2:
        return None
    batch, features = sizes
    is_batch = batch == -1 or (isinstance(batch, fx.Node) and _is_batch_size(batch))
    if not is_batch or not isinstance(features, int) or batch == features:
        return None
    # Entries of a row are then taken from one image only if a row is as long as an image.
    return _merged(layout, f"an image has {features} entries" if batch == -1 else "")


def _is_batch_size(node: fx.Node) -> bool:
    """Whether a node is x.size(0), x.shape[0], x.size()[0] or len(x)."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    if node.op != "call_function":
        return False
    if node.target is len:
        return True
    if node.target is not operator.getitem or node.args[1:] != (0,):
        return False
    return isinstance(node.args[0], fx.Node) and is_shape(node.args[0])


def is_shape(node: fx.Node) -> bool:
    """Whether a node reads a tensor's shape, dtype or device, and not its values."""
    if node.op == "call_method":
        return node.target in {"size", "dim", "numel", "ndimension"}
    if node.target is getattr:
        return node.args[1] in {"shape", "ndim", "dtype", "device"}
    return node.op == "call_function" and node.target is len


def scalar_multiple(node: fx.Node, module: Any, layout: Layout) -> Passage | None:
    """x c, c x, x / c for a number c."""
    factors = [factor for factor in node.args if not isinstance(factor, fx.Node)]
    is_number = len(factors) == 1 and isinstance(factors[0], int | float)
    return Passage(layout, ALL) if is_number else None


def mean(node: fx.Node, module: Any, layout: Layout) -> Passage | None:
    """The mean over the positions of an image."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keepdim = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    if isinstance(dims, int):
        dims = (dims,)
    if not isinstance(dims, tuple | list) or layout.axis == -1:
        return None
    spatial = -layout.axis - 1
    if set(dims) not in ({*range(-spatial, 0)}, {*range(2, 2 + spatial)}):
        return None
    return Passage(layout if keepdim else Layout(-1), ALL)


HOMOGENEOUS = elementwise(CHANNELWISE)
CURVED = elementwise(RELABELS)

MODULES: dict[type[nn.Module], Rule] = {
    nn.Identity: elementwise(ALL),
    nn.ReLU: HOMOGENEOUS,
    nn.LeakyReLU: HOMOGENEOUS,
    nn.RReLU: elementwise(SCALES),
    nn.PReLU: prelu,
    nn.Flatten: flatten,
    nn.Upsample: upsampling,
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), dropout),
    **dict.fromkeys(
        (nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.Tanh, nn.Sigmoid), CURVED
    ),
    **dict.fromkeys(
        (nn.Softplus, nn.Softsign, nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid), CURVED
    ),
}
for _dims, _maximum, _average in (
    (1, (nn.MaxPool1d, nn.AdaptiveMaxPool1d), (nn.AvgPool1d, nn.AdaptiveAvgPool1d)),
    (2, (nn.MaxPool2d, nn.AdaptiveMaxPool2d), (nn.AvgPool2d, nn.AdaptiveAvgPool2d)),
    (3, (nn.MaxPool3d, nn.AdaptiveMaxPool3d), (nn.AvgPool3d, nn.AdaptiveAvgPool3d)),
):
    MODULES |= dict.fromkeys(_maximum, pooling(_dims, CHANNELWISE))
    MODULES |= dict.fromkeys(_average, pooling(_dims, ALL))

FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys((functional.relu, torch.relu, functional.relu_, torch.relu_), HOMOGENEOUS),
    **dict.fromkeys((functional.leaky_relu, functional.leaky_relu_, torch.abs), HOMOGENEOUS),
    **dict.fromkeys((functional.prelu, torch.prelu), prelu),
    **dict.fromkeys((functional.gelu, functional.silu, functional.elu, functional.mish), CURVED),
    **dict.fromkeys((torch.tanh, torch.sigmoid, functional.tanh, functional.sigmoid), CURVED),
    functional.dropout: dropout,
    functional.dropout1d: dropout,
    functional.dropout2d: dropout,
    functional.dropout3d: dropout,
    functional.max_pool1d: pooling(1, CHANNELWISE),
    functional.max_pool2d: pooling(2, CHANNELWISE),
    functional.adaptive_max_pool1d: pooling(1, CHANNELWISE),
    functional.adaptive_max_pool2d: pooling(2, CHANNELWISE),
    functional.avg_pool1d: pooling(1, ALL),
    functional.avg_pool2d: pooling(2, ALL),
    functional.adaptive_avg_pool1d: pooling(1, ALL),
    functional.adaptive_avg_pool2d: pooling(2, ALL),
    torch.flatten: flatten,
    torch.mean: mean,
    operator.mul: scalar_multiple,
    operator.truediv: scalar_multiple,
    operator.neg: elementwise(ALL),
}

METHODS: dict[str, Rule] = {
    **dict.fromkeys(("relu", "relu_", "abs"), HOMOGENEOUS),
    **dict.fromkeys(("tanh", "sigmoid"), CURVED),
    "contiguous": elementwise(ALL),
    "flatten": flatten,
    "view": view,
    "reshape": view,
    "mean": mean,
}


def rule_of(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """The rule for the operation of a node, or None if the operation is unknown."""
    if node.op == "call_module":
        return None if module is None else MODULES.get(type(module))
    if node.op == "call_function":
        return FUNCTIONS.get(node.target)
    return METHODS.get(str(node.target)) if node.op == "call_method" else None
