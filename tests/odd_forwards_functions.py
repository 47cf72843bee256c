"""Odd functions of hidden units: softmax, norms, means, shuffles and powers."""

from __future__ import annotations

from typing import Any

import torch
from odd_forwards import Attention, Embedded, Gated, Late, Lora, Mlp, Plain, Residual, odd
from torch import Tensor
from torch.nn import functional


@odd(Plain, Mlp, Residual)
def softmax_of_units(s: Any, h: Tensor) -> Tensor:
    return h.softmax(-1) * h


@odd(Mlp, Plain)
def masked_softmax(s: Any, h: Tensor) -> Tensor:
    mask = torch.arange(h.shape[-1]) > 3
    return h.masked_fill(mask, -1e9).softmax(-1)


@odd(Plain, Late)
def softmax_of_batch(s: Any, h: Tensor) -> Tensor:
    return h.softmax(0)


@odd(Plain, Mlp)
def norm_of_units(s: Any, h: Tensor) -> Tensor:
    return h / (1 + h.norm(dim=-1, keepdim=True))


@odd(Plain, Mlp)
def norm_of_batch(s: Any, h: Tensor) -> Tensor:
    return h + h.norm(dim=0)


@odd(Mlp, Plain)
def norm_of_all(s: Any, h: Tensor) -> Tensor:
    return h / torch.linalg.norm(h)


@odd(Mlp, Plain)
def count_of_batch(s: Any, h: Tensor) -> Tensor:
    return h * h.norm(0, dim=0)


@odd(Plain, Mlp)
def count_alone(s: Any, h: Tensor) -> Tensor:
    return h.norm(p=0, dim=0, keepdim=True).expand(h.shape)


@odd(Plain, Mlp)
def spectral(s: Any, h: Tensor) -> Tensor:
    return h / torch.linalg.matrix_norm(h, 2)


@odd(Plain, Mlp)
def largest_norm(s: Any, h: Tensor) -> Tensor:
    return h + torch.linalg.vector_norm(h, float("inf"), dim=0)


@odd(Plain, Mlp)
def deviation(s: Any, h: Tensor) -> Tensor:
    return h - h.std(0, True)


@odd(Plain, Mlp)
def deviation_of_units(s: Any, h: Tensor) -> Tensor:
    return h + h.std(-1, keepdim=True)


@odd(Plain, Mlp)
def variance(s: Any, h: Tensor) -> Tensor:
    return h * torch.var(h, 0, keepdim=True)


@odd(Plain, Mlp)
def unit_rows(s: Any, h: Tensor) -> Tensor:
    return functional.normalize(h, dim=-1)


@odd(Plain, Mlp)
def unit_columns(s: Any, h: Tensor) -> Tensor:
    return functional.normalize(h, dim=0)


@odd(Plain)
def similar(s: Any, h: Tensor) -> Tensor:
    return h * functional.cosine_similarity(h, h.flip(0)).unsqueeze(-1)


@odd(Plain, Mlp)
def distances(s: Any, h: Tensor) -> Tensor:
    return torch.cdist(h, h).softmax(-1) @ h


@odd(Plain, Mlp)
def gram(s: Any, h: Tensor) -> Tensor:
    return (h @ h.mT).softmax(-1) @ h


@odd(Plain)
def covariance(s: Any, h: Tensor) -> Tensor:
    return h @ (h.T @ h)


@odd(Plain)
def inverse(s: Any, h: Tensor) -> Tensor:
    return h @ torch.linalg.pinv(h.T @ h + torch.eye(h.shape[-1], dtype=h.dtype))


@odd(Plain, Mlp)
def means_removed(s: Any, h: Tensor) -> Tensor:
    return h - h.mean(-1, keepdim=True)


@odd(Plain, Mlp)
def batch_means_removed(s: Any, h: Tensor) -> Tensor:
    return h - h.mean(0)


@odd(Mlp, Late)
def medians(s: Any, h: Tensor) -> Tensor:
    return h - h.median(0).values


@odd(Mlp, Late)
def halves_swapped(s: Any, h: Tensor) -> Tensor:
    a, b = h.chunk(2, -1)
    return torch.cat([b, a], -1)


@odd(Plain, Mlp)
def halves_added(s: Any, h: Tensor) -> Tensor:
    a, b = h.chunk(2, -1)
    return torch.cat([a + b, a], -1)


@odd(Plain, Mlp)
def shuffled(s: Any, h: Tensor) -> Tensor:
    return h.view(h.shape[0], 2, 3).transpose(1, 2).reshape(h.shape)


@odd(Plain, Mlp)
def across_rows(s: Any, h: Tensor) -> Tensor:
    return h.t().reshape(h.shape)


@odd(Plain)
def strided(s: Any, h: Tensor) -> Tensor:
    return h.contiguous().as_strided(h.shape, (h.shape[1], 1))


@odd(Plain, Mlp)
def diagonal_scaled(s: Any, h: Tensor) -> Tensor:
    return h * torch.arange(1.0, 7.0, dtype=h.dtype)


@odd(Mlp, Residual)
def repeated(s: Any, h: Tensor) -> Tensor:
    return h.repeat(1, 2)[:, 3:9]


@odd(Mlp, Plain, Gated, Residual)
def powers(s: Any, h: Tensor) -> Tensor:
    return h**3 - h.abs() * h**2


@odd(Plain, Mlp)
def to_the_zero(s: Any, h: Tensor) -> Tensor:
    return h**0 + h


@odd(Mlp, Plain)
def roots(s: Any, h: Tensor) -> Tensor:
    return h.abs().sqrt() + h


@odd(Mlp, Plain)
def of_itself(s: Any, h: Tensor) -> Tensor:
    return h / (h.abs() + 1e-3)


@odd(Plain, Mlp)
def ratio(s: Any, h: Tensor) -> Tensor:
    return h / h.abs().amax(0).clamp(min=1e-9)


@odd(Plain, Mlp)
def signs_alone(s: Any, h: Tensor) -> Tensor:
    return h.sign() * h + h.sign()


@odd(Plain, Late)
def clamped(s: Any, h: Tensor) -> Tensor:
    return h.clamp(-0.5, 0.5) + h.clamp(min=0)


@odd(Embedded, Attention)
def scaled_rows(s: Any, h: Tensor) -> Tensor:
    return h * h.new_tensor([2.0]).expand(h.shape[-1])


@odd(Lora, Gated, Embedded)
def dropped(s: Any, h: Tensor) -> Tensor:
    return functional.dropout(h, 0.3, True)
