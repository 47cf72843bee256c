"""Odd attention, streams, gates and heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from odd_forwards import model
from torch import Tensor, nn
from torch.nn import functional


class Heads(nn.Module):
    """Two heads of size 4; ``attend`` gets queries, keys and values [batch, heads, time, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(4, 8)
        self.o = nn.Linear(8, 3)
        self.prepare()

    def prepare(self) -> None:
        """Make what the forward needs."""

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (2, 4)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return functional.scaled_dot_product_attention(q, k, v)

    def forward(self, x: Tensor) -> Any:
        out = self.attend(self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x)))
        return self.o(out.transpose(1, 2).flatten(2))


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / 2


Attend = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def attending(prepare: Any = None) -> Callable[[Attend], Attend]:
    def register(attend: Attend) -> Attend:
        body = {"attend": attend} | ({} if prepare is None else {"prepare": prepare})
        model("positions")(type(attend.__name__, (Heads,), body))
        return attend

    return register


@attending()
def causal(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


@attending()
def over_queries(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).softmax(-2) @ v


@attending()
def over_heads(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).softmax(1) @ v


@attending()
def sigmoids(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).sigmoid() @ v


@attending()
def capped(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.tanh(scores(q, k) / 5).mul(5).softmax(-1) @ v


@attending()
def off_by_one(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return e / (1 + e.sum(-1, keepdim=True)) @ v


@attending()
def off_by_a_column(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = scores(q, k)
    return torch.cat([a, torch.zeros_like(a[..., :1])], -1).softmax(-1)[..., :-1] @ v


@attending()
def symmetric(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = scores(q, k)
    return (a + a.mT).softmax(-1) @ v


@attending()
def of_keys_alone(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(k, k).softmax(-1) @ v


@attending()
def with_unit_norm(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)).softmax(-1) @ v


def slopes(s: Any) -> None:
    s.register_buffer("slopes", torch.tensor([0.5, 0.25]).view(2, 1, 1))


@attending(slopes)
def with_slopes(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    places = torch.arange(k.shape[-2])
    return (scores(q, k) - s.slopes * (places[:, None] - places).abs()).softmax(-1) @ v


def temperatures(s: Any) -> None:
    s.heat = nn.Parameter(torch.rand(2, 1, 1) + 0.5)


@attending(temperatures)
def with_temperatures(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores(q, k) * s.heat).softmax(-1) @ v


def table(s: Any) -> None:
    s.table = nn.Embedding(9, 2)


@attending(table)
def with_relative_bias(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    places = torch.arange(k.shape[-2])
    bias = s.table((places[:, None] - places).clamp(-4, 4) + 4).permute(2, 0, 1)
    return (scores(q, k) + bias).softmax(-1) @ v


@attending(table)
def with_relative_bias_after(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    places = torch.arange(k.shape[-2])
    bias = s.table((places[:, None] - places).clamp(-4, 4) + 4).permute(2, 0, 1)
    return (scores(q, k).softmax(-1) + bias) @ v


def talk(s: Any) -> None:
    s.talk = nn.Linear(2, 2, bias=False)


@attending(talk)
def talking_heads(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = s.talk(scores(q, k).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return a.softmax(-1) @ v


@attending()
def linear_attention(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.elu(q) @ (functional.elu(k).mT @ v)


@attending()
def no_softmax(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k) @ v


@attending()
def mixing_heads(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqd,bgkd->bhqk", q, k).softmax(-1) @ v


@attending()
def by_einsum(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)


@attending()
def one_key_for_all(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k[:, :1].expand_as(q), v)


@attending()
def heads_rolled(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k.roll(1, 1), v)


@attending()
def top_keys(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = scores(q, k)
    return a.masked_fill(a < a.topk(2, -1).values[..., -1:], -1e9).softmax(-1) @ v


@attending()
def masked_by_scores(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = scores(q, k)
    return torch.where(a > 0.2, a, -1e9).softmax(-1) @ v


@attending()
def weights_too(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = scores(q, k).softmax(-1)
    s.seen = a[:, 0]
    return a @ v + s.seen.mean()


@attending()
def scores_too(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = scores(q, k)
    return a.softmax(-1) @ v + a.mean()


@attending()
def dropped_scores(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.dropout(scores(q, k).softmax(-1), 0.2, True) @ v


@attending()
def rotated_halves(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(halves(q), halves(k), v)


@attending()
def rotated_pairs(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(pairs(q), pairs(k), v)


@attending()
def rotated_in_part(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = (torch.cat([halves(x[..., :2]), x[..., 2:]], -1) for x in (q, k))
    return functional.scaled_dot_product_attention(q, k, v)


@attending()
def rotated_in_two_ways(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(pairs(q), halves(k), v)


@attending()
def rotated_queries(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(halves(q), k, v)


@attending()
def rotated_values(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, halves(v))


@attending()
def rotated_by_heads(s: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    turn = torch.tensor([1.0, 2.0], dtype=q.dtype).view(2, 1, 1)
    return functional.scaled_dot_product_attention(halves(q, turn), halves(k, turn), v)


def angles(x: Tensor, factor: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    half = x.shape[-1] // 2
    rate = 10.0 ** -torch.arange(half, dtype=x.dtype)
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * rate * factor
    return angle.cos(), angle.sin()


def halves(x: Tensor, factor: Tensor | float = 1.0) -> Tensor:
    cos, sin = (torch.cat([c, c], -1) for c in angles(x, factor))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def pairs(x: Tensor) -> Tensor:
    cos, sin = angles(x)
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class Packed(nn.Module):
    """torch's layer with options, and a mask that it holds."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.layer = nn.MultiheadAttention(6, 2, batch_first=True, **options)
        self.register_buffer("mask", torch.stack([torch.eye(5), torch.zeros(5, 5)] * 2))

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        return self.layer(h, h, h, need_weights=False)[0]


@model("positions")
class MaskOfHeads(Packed):
    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        return self.layer(h, h, h, attn_mask=self.mask)[0]


@model("positions")
class MaskOfUnits(Packed):
    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        return self.layer(h, h, h, key_padding_mask=h[..., 0])[0]


@model("positions")
class WeightsUsed(Packed):
    def forward(self, x: Tensor) -> Any:
        return self.layer(*(self.first(x),) * 3)


@model("positions")
class Crossed(Packed):
    """Queries, keys and values of other things."""

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        return self.layer(h.tanh(), h, h.flip(1), need_weights=False)[0]


@model("positions")
class OtherWidths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(4, 6), nn.Linear(4, 5)
        self.layer = nn.MultiheadAttention(6, 2, kdim=5, vdim=4, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.layer(self.q(x), self.k(x), x)


@model("positions")
class Grouped(nn.Module):
    """One key for two heads, by ``repeat`` (the other order) for keys alone."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, n) for n in (12, 6, 6, 12))
        self.o = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        q, k, v = (m(x).unflatten(-1, (-1, 3)).transpose(1, 2) for m in (self.q, self.k, self.v))
        k, v = k.repeat(1, 2, 1, 1), v.repeat_interleave(2, 1)
        return self.o(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
