"""Norms of torch whose gradients can be differentiated again when many tasks run side by side.

    y = w N(x) + b,   N torch's own norm, without w and b
    y = g v / |v|     of ``torch.nn.utils.weight_norm``

Under ``vmap(grad(..))``, torch 2.13 computes the gradient by w, sum y' N(x), from the mean and the
variance that it has kept, and takes both as constants when that is differentiated again: gradients
of second order are false, and no error is raised. With w and b apart, the gradient by w is that of
a product. ``group_norm`` and ``rms_norm`` are right as they are. torch's ``weight_norm`` takes the
norms |v| as constants in the same way, even without ``vmap``.
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

    It holds for ``LayerNorm``, ``BatchNorm``, ``InstanceNorm`` and ``weight_norm``, also within
    ``TransformerEncoderLayer``, which leaves its fused path in such a context. Values and gradients
    are those of torch up to rounding.
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


def _scaled(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = normed if weight is None else normed * weight
    return scaled if bias is None else scaled + bias


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


_EXACT: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.layer_norm: _layer_norm,
    functional.batch_norm: partial(_by_channel, functional.batch_norm),
    functional.instance_norm: partial(_by_channel, functional.instance_norm),
    torch._weight_norm: _weight_norm,
}
