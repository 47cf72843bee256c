"""Attention as people write it: fused projections, grouped reshapes, rotary in three styles."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from architectures.base import NON_ZERO, Architecture, Inputs, Row, wake


class Timm(nn.Module):
    """As in timm: one layer for q, k and v, [3, B, heads, N, D]; norms of a head if asked for."""

    def __init__(self, norms: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 3 * 16)
        self.q_norm = nn.LayerNorm(8) if norms else nn.Identity()
        self.k_norm = nn.LayerNorm(8) if norms else nn.Identity()
        self.proj = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, 2, 8).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        x = functional.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
        return self.proj(x.transpose(1, 2).reshape(B, N, 16))


class Causal(nn.Module):
    """As in nanoGPT: one layer split in three, the explicit product, a mask that is kept."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(16, 48)
        self.c_proj = nn.Linear(16, 16)
        self.register_buffer("mask", torch.tril(torch.ones(32, 32)).view(1, 1, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(16, dim=2)
        k = k.view(B, T, 2, C // 2).transpose(1, 2)
        q = q.view(B, T, 2, C // 2).transpose(1, 2)
        v = v.view(B, T, 2, C // 2).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf"))
        y = functional.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class NanoGPT(nn.Module):
    """One block, a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(50, 16), nn.Embedding(32, 16)
        self.ln_1, self.ln_2, self.ln_f = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn = Causal()
        self.c_fc, self.c_proj = nn.Linear(16, 24), nn.Linear(24, 16)
        self.lm_head = nn.Linear(16, 50, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        x = x + self.attn(self.ln_1(x))
        x = x + self.c_proj(functional.gelu(self.c_fc(self.ln_2(x))))
        return self.lm_head(self.ln_f(x))


class NeoX(nn.Module):
    """As in GPT-NeoX: each head has its query, key and value side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(6, 48)
        self.dense = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = self.query_key_value(x).view(B, T, 2, 24).transpose(1, 2).chunk(3, dim=-1)
        scores = torch.matmul(q, k.transpose(-1, -2)) / 8**0.5
        y = torch.matmul(torch.softmax(scores, dim=-1), v)
        return self.dense(y.transpose(1, 2).reshape(B, T, 16))


def _angles(T: int, like: Tensor) -> Tensor:
    """t / 100^(i / 2), [T, 2]: of two frequencies."""
    frequencies = 100.0 ** (-torch.arange(2, device=like.device, dtype=like.dtype) / 2)
    return torch.outer(torch.arange(T, device=like.device, dtype=like.dtype), frequencies)


def rotate_half(x: Tensor) -> Tensor:
    """Pairs (i, i + d / 2), as in Llama of ``transformers``; x is [B, H, T, 4]."""
    angles = _angles(x.shape[-2], x)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
    one, two = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat((-two, one), dim=-1) * sin


def interleaved(x: Tensor) -> Tensor:
    """Pairs (2 i, 2 i + 1), as in GPT-J."""
    angles = _angles(x.shape[-2], x)
    cos, sin = angles.cos(), angles.sin()
    one, two = x[..., ::2], x[..., 1::2]
    return torch.stack([one * cos - two * sin, two * cos + one * sin], dim=-1).flatten(-2)


def as_complex(x: Tensor) -> Tensor:
    """Pairs (2 i, 2 i + 1) as complex numbers, as in Llama of Meta."""
    angles = _angles(x.shape[-2], x)
    turns = torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2)


class Rotary(nn.Module):
    """Two heads of width 4, a rotation of queries and keys by position."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.turn = turn
        self.wq, self.wk, self.wv = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.wo = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q = self.turn(self.wq(x).view(B, T, 2, 4).transpose(1, 2))
        k = self.turn(self.wk(x).view(B, T, 2, 4).transpose(1, 2))
        v = self.wv(x).view(B, T, 2, 4).transpose(1, 2)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(B, T, 8))


def _rotating(turn: Callable[[Tensor], Tensor]) -> nn.Module:
    return wake(Rotary(turn))


def sequence(dtype: torch.dtype) -> tuple[Any, ...]:
    """An example of vectors, [B, T, 6]."""
    return (Inputs(dtype).normal(2, 6, 6),)


SEQUENCES = {"plain": lambda model, given: model(given.normal(given.batch, given.length, 6))}
"""Calls on vectors, [B, T, 6]."""
WORDS = {"plain": lambda model, given: model(given.tokens())}
"""Calls on words."""


def fused(qkv: str, out: str, size: int = 8) -> tuple[Row, ...]:
    """What two heads with one layer for queries, keys and values have."""
    both = f"{qkv}.{{weight,bias}}"
    return (
        Row("query, key of each head", "general linear", size, both, 2),
        Row("value, output of each head", "general linear", size, f"{both} {out}.weight", 2),
        Row("heads", "permutation", 2, f"{both} {out}.weight"),
        Row("key bias (softmax)", "translation", 0, f"{qkv}.bias"),
    )


_rotary = (
    Row("query, key of each frequency pair", "scale and rotation", 2, "{wq,wk}.{weight,bias}", 4),
    Row("value, output of each head", "general linear", 4, "wv.{weight,bias} wo.weight", 2),
    Row("heads", "permutation", 2, "{wq,wk,wv}.{weight,bias} wo.weight"),
)
_qkv_out = "qkv.{weight,bias} proj.weight"
_norms = "{q_norm,k_norm}.{weight,bias}"

ATTENTION = (
    Architecture("timm attention", lambda: wake(Timm()), sequence, SEQUENCES, fused("qkv", "proj")),
    Architecture(
        "timm attention, norms of a head",
        lambda: wake(Timm(norms=True)),
        sequence,
        SEQUENCES,
        (
            Row(
                "value, output of each head",
                "general linear",
                8,
                _qkv_out,
                2,
            ),
            Row("heads", "permutation", 2, _qkv_out),
            Row("query norm, key norm", NON_ZERO, 8, _norms),
            Row("query norm, key norm", "permutation", 8, f"qkv.{{weight,bias}} {_norms}"),
            Row("bias of the key norm (softmax)", "translation", 0, "k_norm.bias"),
        ),
        says="what LayerNorm centres is shifted head by head, which is not looked for",
    ),
    Architecture(
        "nanoGPT",
        lambda: wake(NanoGPT()),
        lambda dtype: (Inputs(dtype).tokens(),),
        WORDS,
        (
            *fused("attn.c_attn", "attn.c_proj"),
            Row("norm, attention", NON_ZERO, 16, "ln_1.{weight,bias} attn.c_attn.weight"),
            Row("norm, MLP", NON_ZERO, 16, "ln_2.{weight,bias} c_fc.weight"),
            Row("last norm, head", NON_ZERO, 16, "ln_f.{weight,bias} lm_head.weight"),
            Row("hidden units (GELU)", "permutation", 24, "c_fc.{weight,bias} c_proj.weight"),
            Row(
                "what LayerNorm centres",
                "translation",
                0,
                "{wte,wpe}.weight attn.c_proj.{weight,bias} c_proj.{weight,bias}",
            ),
            Row(
                "residual stream",
                "permutation",
                16,
                "{wte,wpe}.weight attn.c_proj.{weight,bias} c_proj.{weight,bias} "
                "{ln_1,ln_2,ln_f}.{weight,bias} attn.c_attn.weight c_fc.weight lm_head.weight",
            ),
        ),
    ),
    Architecture(
        "GPT-NeoX attention",
        lambda: wake(NeoX()),
        sequence,
        SEQUENCES,
        fused("query_key_value", "dense"),
    ),
    *(
        Architecture(
            f"rotary attention, {name}",
            functools.partial(_rotating, turn),
            sequence,
            SEQUENCES,
            _rotary,
        )
        for name, turn in (
            ("halves", rotate_half),
            ("interleaved", interleaved),
            ("complex", as_complex),
        )
    ),
)
