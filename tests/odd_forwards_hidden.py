"""Odd things that a forward does with hidden units."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from odd_forwards import Attention, Convolved, Embedded, Gated, Late, Mlp, Plain, Residual, odd
from odd_forwards import Lora, Sequence
from torch import Tensor
from torch.nn import functional


@odd(Mlp, Plain, Attention)
def written_in_place(s: Any, h: Tensor) -> Tensor:
    h *= 2
    h.add_(1)
    return h


@odd(Mlp, Gated)
def view_written(s: Any, h: Tensor) -> Tensor:
    h = h.clone()
    h[..., :2].mul_(3)
    return h


@odd(Mlp, Plain)
def part_overwritten(s: Any, h: Tensor) -> Tensor:
    h = h.clone()
    h[..., :2] = h[..., 2:4]
    return h


@odd(Plain, Attention)
def batch_written(s: Any, h: Tensor) -> Tensor:
    h = h.clone()
    h[0] = 0
    return h


@odd(Plain, Sequence)
def filled_by_rows(s: Any, h: Tensor) -> Tensor:
    out = torch.empty_like(h)
    for i in range(h.shape[0]):
        out[i] = h[i]
    return out


@odd(Plain, Mlp)
def out_argument(s: Any, h: Tensor) -> Tensor:
    out = torch.empty_like(h)
    with torch.no_grad():
        torch.mul(h.detach(), 2.0, out=out)
    return out


@odd(Mlp, Late)
def where_positive(s: Any, h: Tensor) -> Tensor:
    return torch.where(h > 0.1, h, torch.zeros_like(h))


@odd(Mlp, Plain)
def where_sum(s: Any, h: Tensor) -> Tensor:
    return torch.where(h.sum(-1, keepdim=True) > 0, h, -h)


@odd(Mlp, Plain, Convolved)
def masked_by_hand(s: Any, h: Tensor) -> Tensor:
    return h * (h > 0)


@odd(Mlp, Residual)
def sorted_units(s: Any, h: Tensor) -> Tensor:
    return h.sort(-1).values


@odd(Plain, Sequence)
def sorted_batch(s: Any, h: Tensor) -> Tensor:
    return h.sort(0).values


@odd(Mlp)
def top_units(s: Any, h: Tensor) -> Tensor:
    values, places = h.topk(2, -1)
    return torch.zeros_like(h).scatter(-1, places, values)


@odd(Mlp, Plain)
def winner_takes_all(s: Any, h: Tensor) -> Tensor:
    return h * functional.one_hot(h.argmax(-1), h.shape[-1])


@odd(Plain)
def rows_by_largest(s: Any, h: Tensor) -> Tensor:
    return h[h.abs().sum(-1).argsort()]


@odd(Plain, Mlp)
def rows_by_signs(s: Any, h: Tensor) -> Tensor:
    return h + (h > 0).long().unique(dim=0).shape[0]


@odd(Mlp, Plain, Attention)
def cumulated(s: Any, h: Tensor) -> Tensor:
    return h.cumsum(-1)


@odd(Sequence, Attention)
def cumulated_positions(s: Any, h: Tensor) -> Tensor:
    return h.cumsum(-2)


@odd(Mlp, Plain, Attention)
def rolled(s: Any, h: Tensor) -> Tensor:
    return h.roll(1, -1)


@odd(Plain, Residual)
def rolled_and_added(s: Any, h: Tensor) -> Tensor:
    return h + h.roll(2, -1)


@odd(Mlp, Plain)
def flipped(s: Any, h: Tensor) -> Tensor:
    return h.flip(-1)


@odd(Plain, Mlp)
def flipped_and_added(s: Any, h: Tensor) -> Tensor:
    return h + h.flip(-1)


@odd(Plain)
def rolled_whole(s: Any, h: Tensor) -> Tensor:
    return torch.roll(h, 1)


@odd(Mlp, Plain)
def gathered(s: Any, h: Tensor) -> Tensor:
    return h.gather(-1, h.argsort(-1))


@odd(Plain)
def gathered_rows(s: Any, h: Tensor) -> Tensor:
    return h.index_select(0, h[:, 0].argsort())


@odd(Mlp, Plain, Gated)
def branches(s: Any, h: Tensor) -> Tensor:
    return h if h.sum() > 0.5 else 2 * h + 1


@odd(Plain, Late)
def told(s: Any, h: Tensor) -> Tensor:
    return h / (1 + abs(h.max().item()))


@odd(Mlp, Plain)
def listed(s: Any, h: Tensor) -> Tensor:
    return torch.tensor(h.tolist(), dtype=h.dtype)


@odd(Plain, Mlp)
def through_numpy(s: Any, h: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(h.detach().numpy()))


@odd(Mlp, Plain, Attention)
def island(s: Any, h: Tensor) -> Tensor:
    return h.float().double()


@odd(Mlp, Plain)
def rounded(s: Any, h: Tensor) -> Tensor:
    return h + (torch.round(h * 2) / 2 - h).detach()


@odd(Plain, Mlp)
def divided_and_floored(s: Any, h: Tensor) -> Tensor:
    return torch.div(h, 0.3, rounding_mode="floor")


@odd(Plain, Mlp)
def divided_and_cut(s: Any, h: Tensor) -> Tensor:
    return h.div(0.3, rounding_mode="trunc")


@odd(Plain, Mlp)
def floored(s: Any, h: Tensor) -> Tensor:
    return h // 0.3


@odd(Plain, Mlp)
def remainders(s: Any, h: Tensor) -> Tensor:
    return h % 0.7


@odd(Plain, Mlp)
def integers(s: Any, h: Tensor) -> Tensor:
    return (h * 3).long().to(h.dtype)


@odd(Plain)
def bits(s: Any, h: Tensor) -> Tensor:
    return h.view(torch.int64).bitwise_and(-(2**40)).view(torch.float64)


@odd(Plain, Mlp)
def complex_numbers(s: Any, h: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(h.unflatten(-1, (-1, 2))) * 1j).flatten(-2)


@odd(Plain, Mlp)
def complex_sizes(s: Any, h: Tensor) -> Tensor:
    z = torch.complex(h, h + 1)
    return z.abs() + z.real


@odd(Plain, Late)
def fourier(s: Any, h: Tensor) -> Tensor:
    return torch.fft.fft(h, dim=-1).real


@odd(Plain)
def fourier_of_batch(s: Any, h: Tensor) -> Tensor:
    return torch.fft.fft(h, dim=0).real


@odd(Plain, Mlp)
def same_letters(s: Any, h: Tensor) -> Tensor:
    outer = torch.einsum("bi,bj->bij", h, h)
    return torch.einsum("bii->bi", outer)


@odd(Plain, Mlp)
def outer_diagonal(s: Any, h: Tensor) -> Tensor:
    return torch.diagonal(h[:, :, None] * h[:, None, :], dim1=1, dim2=2)


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
