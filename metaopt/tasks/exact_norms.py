"""Norms of torch whose gradients can be differentiated again when many tasks run side by side.

    y = w N(x) + b,   N torch's own norm, without w and b
    y = g v / |v|     of ``torch.nn.utils.weight_norm``

Under ``vmap(grad(..))``, torch 2.13 computes the gradient by w, sum y' N(x), from the mean and the
variance that it has kept, and takes both as constants when that is differentiated again: gradients
of second order are false, and no error is raised. With w and b apart, the gradient by w is that of
a product. ``GroupNorm`` and ``RMSNorm`` are right as they are. torch's ``weight_norm`` takes |v| as
a constant in the same way, even without ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class ExactNorms(TorchFunctionMode):
    """Within this context, norms of ``torch.nn`` are exact to second order.

    That holds for all of them, and for ``weight_norm``, also in ``TransformerEncoderLayer``, which
    takes no fused path in this context. Values and gradients are torch's up to rounding. Calls of
    ``torch.layer_norm`` and its like, below ``torch.nn.functional``, are not seen.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the exact norm in place of torch's; any other function as it is."""
        return _EXACT.get(func, func)(*args, **(kwargs or {}))


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    normed = functional.layer_norm(x, list(normalized_shape), eps=eps)
    return _scaled(normed, weight, bias)


def _by_channel(
    norm: Callable[..., Tensor],
    x: Tensor,
    *args: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    each = (-1, *[1] * (x.dim() - 2))
    parts = (None if part is None else part.reshape(each) for part in (weight, bias))
    return _scaled(norm(x, *args, **kwargs), *parts)


def _group_norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # Without a gradient, vmap raises an error at [N, C, height, width]: it cannot tell whether
    # channels are last in memory.
    flat = x.reshape(*x.shape[:2], -1)
    return functional.group_norm(flat, *args, **kwargs).reshape(x.shape)


def _scaled(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = normed if weight is None else normed * weight
    return scaled if bias is None else scaled + bias


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    # torch's -1 stands for the norm of all of v.
    others = [axis for axis in range(v.dim()) if axis != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))


_EXACT: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.layer_norm: _layer_norm,
    functional.batch_norm: partial(_by_channel, functional.batch_norm),
    functional.instance_norm: partial(_by_channel, functional.instance_norm),
    functional.group_norm: _group_norm,
    torch._weight_norm: _weight_norm,
}
