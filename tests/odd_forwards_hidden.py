"""Odd things that a forward does with hidden units."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from odd_forwards import (
    Attention,
    Convolved,
    Gated,
    Late,
    Mlp,
    Plain,
    Residual,
    Sequence,
    odd,
)
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


@odd(Mlp, Plain, Attention, tolerance=1e-5)
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


@odd(Plain, Mlp)
def clamp_min(s: Any, h: Tensor) -> Tensor:
    return h.clamp_min(0)


@odd(Plain)
def clamp_min_above(s: Any, h: Tensor) -> Tensor:
    return h.clamp_min(0.1)


@odd(Plain, Mlp)
def thresholds(s: Any, h: Tensor) -> Tensor:
    return functional.threshold(h, 0, 0)


@odd(Plain)
def threshold_above(s: Any, h: Tensor) -> Tensor:
    return functional.threshold(h, 0.1, 0)


@odd(Plain)
def threshold_with_value(s: Any, h: Tensor) -> Tensor:
    return functional.threshold(h, 0, 0.1)


@odd(Plain, Mlp)
def maximum_with_zeros(s: Any, h: Tensor) -> Tensor:
    return torch.maximum(h, torch.zeros_like(h))


@odd(Plain)
def maximum_with_ones(s: Any, h: Tensor) -> Tensor:
    return torch.maximum(torch.ones_like(h), h)


@odd(Plain)
def minimum_with_a_zero(s: Any, h: Tensor) -> Tensor:
    return torch.minimum(torch.zeros(1, dtype=h.dtype), h)


@odd(Plain, Mlp)
def integers_by_method(s: Any, h: Tensor) -> Tensor:
    return (h * 3).long().double()


@odd(Plain)
def bytes_by_method(s: Any, h: Tensor) -> Tensor:
    return (h * 3).byte().double()


@odd(Plain)
def flags(s: Any, h: Tensor) -> Tensor:
    return h.bool().double()


@odd(Plain)
def integers_by_name(s: Any, h: Tensor) -> Tensor:
    return (h * 3).type("torch.IntTensor").double()


@odd(Plain)
def integers_like_a_buffer(s: Any, h: Tensor) -> Tensor:
    return (h * 3).to(torch.zeros(1, dtype=torch.long)).double()


@odd(Plain, Mlp)
def real_like_another(s: Any, h: Tensor) -> Tensor:
    return h.double().type_as(h).to(h.dtype).to(h)


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
