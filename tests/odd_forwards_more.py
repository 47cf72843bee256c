"""Odd indexing, streams, gates, losses inside, hypernetworks and recurrences."""

from __future__ import annotations

from typing import Any

import torch
from odd_forwards import Gated, Lora, Mlp, Plain, Residual, odd
from torch import Tensor, nn
from torch.nn import functional

ORDER = torch.tensor([1, 0, 2, 3, 5, 4])
TWICE = torch.tensor([0, 0, 1, 2, 3, 4])


def norm(s: Any) -> None:
    s.norm, s.other = nn.LayerNorm(6), nn.Linear(6, 6)


@odd(Plain, Mlp)
def ordered(s: Any, h: Tensor) -> Tensor:
    return h[:, ORDER]


@odd(Plain, Mlp)
def doubled(s: Any, h: Tensor) -> Tensor:
    return h[:, TWICE]


@odd(Plain)
def doubled_by_select(s: Any, h: Tensor) -> Tensor:
    return h.index_select(-1, TWICE)


@odd(Plain, Mlp)
def places_added(s: Any, h: Tensor) -> Tensor:
    return h + h.argmax(-1, keepdim=True)


@odd(Plain, Mlp)
def places_of_max(s: Any, h: Tensor) -> Tensor:
    values, places = h.max(-1, keepdim=True)
    return h * values + places


@odd(Plain)
def places_of_median(s: Any, h: Tensor) -> Tensor:
    return h + h.median(-1, keepdim=True).indices


@odd(Plain, Mlp)
def searched_sorted(s: Any, h: Tensor) -> Tensor:
    return torch.bucketize(h.detach(), torch.tensor([-0.5, 0.0, 0.5], dtype=h.dtype)).to(h.dtype)


@odd(Plain, Mlp)
def added_at_places(s: Any, h: Tensor) -> Tensor:
    return torch.zeros_like(h).index_add(-1, TWICE, h)


@odd(Plain, Mlp)
def scattered(s: Any, h: Tensor) -> Tensor:
    return torch.zeros_like(h).scatter_add(-1, TWICE.expand(h.shape), h)


@odd(Plain, Mlp)
def masked_away(s: Any, h: Tensor) -> Tensor:
    return h.masked_fill(ORDER > 2, 0.0)


@odd(Plain, Mlp)
def every_other(s: Any, h: Tensor) -> Tensor:
    return torch.cat([h[:, ::2], h[:, ::2]], -1)


@odd(Plain, Mlp)
def halves_compared(s: Any, h: Tensor) -> Tensor:
    a, b = h.tensor_split(2, -1)
    return torch.cat([a, torch.maximum(a, b)], -1)


@odd(Plain, Mlp)
def pooled_units(s: Any, h: Tensor) -> Tensor:
    return h.view(-1, 2, 3).sum(1).repeat(1, 2)


@odd(Plain, Mlp)
def maxout(s: Any, h: Tensor) -> Tensor:
    return h.view(-1, 3, 2).amax(-1).repeat_interleave(2, -1)


@odd(Plain, Mlp)
def windows(s: Any, h: Tensor) -> Tensor:
    return functional.pad(h, (1, 1)).unfold(-1, 3, 1).mean(-1)


@odd(Plain, Mlp)
def overlapping(s: Any, h: Tensor) -> Tensor:
    return h.contiguous().as_strided((h.shape[0], 6), (6, 0))


@odd(Plain)
def diagonals(s: Any, h: Tensor) -> Tensor:
    return torch.diag_embed(h).sum(1) + torch.diag_embed(h).tril().sum(1)


@odd(Plain)
def crossed(s: Any, h: Tensor) -> Tensor:
    return torch.linalg.cross(h.view(-1, 2, 3), h.view(-1, 2, 3).flip(1)).flatten(1)


@odd(Plain, Mlp)
def dotted(s: Any, h: Tensor) -> Tensor:
    return h * torch.tensordot(h, h, dims=([0, 1], [0, 1]))


@odd(Plain, Mlp)
def inner_products(s: Any, h: Tensor) -> Tensor:
    return torch.inner(h, h) @ h


@odd(Plain, Mlp)
def mixed_in(s: Any, h: Tensor) -> Tensor:
    return torch.lerp(h, h.abs(), 0.3)


@odd(Plain, Mlp)
def products_added(s: Any, h: Tensor) -> Tensor:
    return torch.addcmul(h, h, h, value=0.5)


@odd(Plain, Mlp)
def signs_copied(s: Any, h: Tensor) -> Tensor:
    return torch.copysign(h.new_ones(()), h) + torch.hypot(h, h)


@odd(Plain, Mlp)
def heaviside(s: Any, h: Tensor) -> Tensor:
    return h * torch.heaviside(h, h.new_zeros(()))


@odd(Plain, Mlp)
def log_of_exp(s: Any, h: Tensor) -> Tensor:
    return h.exp().log() + torch.logaddexp(h, -h)


@odd(Plain, Mlp)
def of_both_signs(s: Any, h: Tensor) -> Tensor:
    return functional.relu(h) - functional.relu(-h)


@odd(Plain)
def even(s: Any, h: Tensor) -> Tensor:
    return h.abs() + h**2 + h.cos()


@odd(Plain, Mlp)
def extremes(s: Any, h: Tensor) -> Tensor:
    return h - torch.quantile(h, 0.3, dim=0) + h.amin(-1, keepdim=True)


@odd(Plain, Mlp)
def products(s: Any, h: Tensor) -> Tensor:
    return h * h.prod(-1, keepdim=True) + h.cumprod(0)


@odd(Plain, Mlp)
def negative_power(s: Any, h: Tensor) -> Tensor:
    return (h.abs() + h.abs() ** -1.0) ** 1.5


@odd(Plain, Mlp, Residual, prepare=norm)
def normed_beside(s: Any, h: Tensor) -> Tensor:
    return s.norm(h) + s.other(h)


@odd(Plain, prepare=norm)
def normed_by_layers(s: Any, h: Tensor) -> Tensor:
    return s.norm(s.other(h)) + s.other(h).mean(-1, keepdim=True)


@odd(Plain, prepare=norm)
def normed_with_more(s: Any, h: Tensor) -> Tensor:
    return functional.layer_norm(torch.cat([s.other(h), h], -1), (12,))[:, :6]


@odd(Plain, prepare=norm)
def generated_weights(s: Any, h: Tensor) -> Tensor:
    return torch.bmm(s.other(h)[:, :, None] * s.norm.weight, h[:, :, None])[..., 0]


@odd(Plain, prepare=norm)
def generated_linear(s: Any, h: Tensor) -> Tensor:
    return functional.linear(h, s.other(h)[:1].T @ s.norm.bias[None] + s.other.weight.mT)


@odd(Plain, Mlp, prepare=norm)
def experts(s: Any, h: Tensor) -> Tensor:
    best = s.other(h).softmax(-1).topk(2, -1)
    return h * torch.zeros_like(h).scatter(-1, best.indices, best.values)


@odd(Gated, Plain)
def gumbel(s: Any, h: Tensor) -> Tensor:
    return functional.gumbel_softmax(h, dim=-1)


@odd(Lora, Plain)
def half_of_units(s: Any, h: Tensor) -> Tensor:
    mask = torch.arange(h.shape[-1]) % 2 == 0
    return h * mask


@odd(Lora, Plain)
def swapped_in_batch(s: Any, h: Tensor) -> Tensor:
    return torch.cat([h[1:], h[:1]]) + h
