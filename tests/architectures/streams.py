"""A Mamba-like block, RMSNorm streams with three kinds of gains, an encoder with layer scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from architectures.attention import SEQUENCES, WORDS, sequence
from architectures.base import NON_ZERO, Architecture, Inputs, Refused, Row, wake


class Mamba(nn.Module):
    """A selective scan, written out: x and gate z of one layer, a causal depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(6, 2 * 8, bias=False)
        self.conv1d = nn.Conv1d(8, 8, 4, padding=3, groups=8)
        self.x_proj = nn.Linear(8, 3 + 2 * 5, bias=False)
        self.dt_proj = nn.Linear(3, 8)
        self.A_log = nn.Parameter(torch.arange(1.0, 6.0).log().repeat(8, 1))
        self.D = nn.Parameter(torch.ones(8))
        self.out_proj = nn.Linear(8, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = self.conv1d(x.transpose(1, 2))[..., :T].transpose(1, 2)
        x = functional.silu(x)
        dt, B, C = torch.split(self.x_proj(x), [3, 5, 5], dim=-1)
        dt = functional.softplus(self.dt_proj(dt))
        A = -torch.exp(self.A_log)
        h = x.new_zeros(x.shape[0], 8, 5)
        ys = []
        for t in range(T):
            decay = torch.exp(dt[:, t, :, None] * A)
            h = decay * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None, :]
            ys.append((h * C[:, t, None, :]).sum(-1))
        y = torch.stack(ys, dim=1) + x * self.D
        return self.out_proj(y * functional.silu(z))


class RMS(nn.Module):
    """Embedding, two gated blocks behind RMSNorms, a head.

    Args:
        affine: whether the norms have gains; without, they are folded into what reads.
    """

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        norms = [nn.RMSNorm(12, eps=1e-6, elementwise_affine=affine) for _ in range(3)]
        self.norm1, self.norm2, self.last = norms
        self.up1, self.down1 = nn.Linear(12, 9), nn.Linear(9, 12)
        self.up2, self.down2 = nn.Linear(12, 9), nn.Linear(9, 12)
        self.head = nn.Linear(12, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.down1(functional.relu(self.up1(self.norm1(x))))
        x = x + self.down2(functional.relu(self.up2(self.norm2(x))))
        return self.head(self.last(x))


class LayerScale(nn.Module):
    """As in timm: x times a gain for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Encoder(nn.Module):
    """One block of a vision transformer with ``nn.MultiheadAttention`` and layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(6, 16)
        self.norm1, self.norm2, self.norm = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.ls1, self.ls2 = LayerScale(16), LayerScale(16)
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        y = self.norm1(x)
        x = x + self.ls1(self.attn(y, y, y, need_weights=False)[0])
        x = x + self.ls2(self.fc2(functional.gelu(self.fc1(self.norm2(x)))))
        return self.head(self.norm(x).mean(1))


_layers = "{up,down}{1,2}"
_written = "embedding.weight down{1,2}.{weight,bias} up{1,2}.weight head.weight"
_gains = "{norm1,norm2,last}.weight"
_relu = tuple(
    Row("hidden units (ReLU)", group, 9, f"up{i}.{{weight,bias}} down{i}.weight")
    for i in (1, 2)
    for group in ("positive scaling", "permutation")
)
_norms = (
    Row("norm, MLP", NON_ZERO, 12, "norm1.weight up1.weight"),
    Row("norm, MLP", NON_ZERO, 12, "norm2.weight up2.weight"),
    Row("last norm, head", NON_ZERO, 12, "last.weight head.weight"),
)
_qkv = "attn.{in_proj_weight,in_proj_bias}"
_qkv_out = f"{_qkv} attn.out_proj.weight"
_stream = (
    "inp.{weight,bias} attn.out_proj.{weight,bias} ls1.gamma fc2.{weight,bias} ls2.gamma "
    "{norm1,norm2,norm}.{weight,bias} attn.in_proj_weight fc1.weight head.weight"
)


def _words(dtype: torch.dtype) -> tuple[Tensor]:
    return (Inputs(dtype).tokens(),)


STREAMS = (
    Architecture(
        "Mamba-like block",
        lambda: wake(Mamba()),
        sequence,
        SEQUENCES,
        (
            Row("step size, low rank", "general linear", 3, "x_proj.weight dt_proj.weight"),
            Row("input, output of each state", NON_ZERO, 5, "x_proj.weight"),
            Row("channels ahead of the convolution", NON_ZERO, 8, "in_proj.weight conv1d.weight"),
            Row(
                "output of the scan as a whole",
                NON_ZERO,
                1,
                "x_proj.weight D out_proj.weight",
                needed=False,
            ),
            Row("states", "permutation", 5, "x_proj.weight A_log"),
            Row(
                "channels",
                "permutation",
                8,
                "in_proj.weight conv1d.{weight,bias} x_proj.weight dt_proj.{weight,bias} "
                "A_log D out_proj.weight",
            ),
        ),
    ),
    Architecture(
        "RMSNorm stream, gains folded in",
        lambda: wake(RMS(affine=False)),
        _words,
        WORDS,
        (
            *_relu,
            Row("residual stream", "orthogonal", 12, _written),
            Row("residual stream", "permutation", 12, _written),
        ),
    ),
    Architecture(
        "RMSNorm stream, equal gains",
        lambda: wake(RMS(), gains=False),
        _words,
        WORDS,
        (
            *_relu,
            *_norms,
            Row("residual stream", "orthogonal", 12, _written),
            Row("residual stream", "permutation", 12, f"{_written} {_gains}"),
        ),
    ),
    Architecture(
        "RMSNorm stream, unequal gains",
        lambda: wake(RMS()),
        _words,
        WORDS,
        (
            *_relu,
            *_norms,
            Row("residual stream", "sign flips", 12, _written),
            Row("residual stream", "permutation", 12, f"{_written} {_gains}"),
        ),
        (Refused("rotations of the stream", "", "gains?.*(norm|last)|(norm|last).*gains?"),),
    ),
    Architecture(
        "encoder with layer scale",
        lambda: wake(Encoder()),
        sequence,
        SEQUENCES,
        (
            Row("query, key of each head", "general linear", 8, _qkv, 2),
            Row("value, output of each head", "general linear", 8, _qkv_out, 2),
            Row("heads", "permutation", 2, _qkv_out),
            Row("key bias (softmax)", "translation", 0, "attn.in_proj_bias"),
            Row("norm, attention", NON_ZERO, 16, "norm1.{weight,bias} attn.in_proj_weight"),
            Row("norm, MLP", NON_ZERO, 16, "norm2.{weight,bias} fc1.weight"),
            Row("last norm, head", NON_ZERO, 16, "norm.{weight,bias} head.weight"),
            Row("layer scale", NON_ZERO, 16, "attn.out_proj.{weight,bias} ls1.gamma"),
            Row("layer scale", NON_ZERO, 16, "fc2.{weight,bias} ls2.gamma"),
            Row("hidden units (GELU)", "permutation", 24, "fc1.{weight,bias} fc2.weight"),
            Row("what LayerNorm centres", "translation", 0, "inp.{weight,bias}"),
            Row("residual stream", "permutation", 16, _stream),
        ),
    ),
)
