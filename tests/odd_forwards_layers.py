"""Layers of torch with odd arguments, among layers that could move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from odd_forwards import Call, enter, model, numbers
from torch import Tensor, nn
from torch.nn import functional


def between(inputs: str, first: Callable[[], nn.Module], last: Callable[[], nn.Module]) -> Any:
    def register(name: str, *middle: Callable[[], nn.Module]) -> None:
        def make() -> nn.Module:
            return nn.Sequential(first(), *(m() for m in middle), last())

        enter(name, make, inputs)

    return register


on_features = between("features", lambda: nn.Linear(4, 6), lambda: nn.Linear(6, 3))
on_positions = between("positions", lambda: nn.Linear(4, 6), lambda: nn.Linear(6, 3))
on_images = between("images", lambda: nn.Conv2d(3, 8, 3), lambda: nn.Conv2d(8, 4, 1))

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "hardtanh odd": nn.Hardtanh,
    "hardtanh uneven": lambda: nn.Hardtanh(-0.3, 0.8),
    "relu6": nn.ReLU6,
    "threshold at 0": lambda: nn.Threshold(0.0, 0.0),
    "threshold": lambda: nn.Threshold(0.1, 0.5),
    "leaky, negative slope": lambda: nn.LeakyReLU(-0.5),
    "rrelu": nn.RReLU,
    "prelu": lambda: nn.PReLU(init=0.1),
    "prelu of each": lambda: nn.PReLU(6),
    "glu": lambda: nn.Sequential(nn.GLU(), nn.Linear(3, 6)),
    "softmax": lambda: nn.Softmax(-1),
    "softmax of rows": lambda: nn.Softmax(0),
    "log of sigmoid": nn.LogSigmoid,
    "softshrink": nn.Softshrink,
    "tanhshrink": nn.Tanhshrink,
    "celu": nn.CELU,
    "alpha dropout": nn.AlphaDropout,
    "feature alpha dropout": nn.FeatureAlphaDropout,
    "dropout": lambda: nn.Dropout(0.4),
    "dropout of all": lambda: nn.Dropout(1.0),
    "layer norm bare": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "layer norm without eps": lambda: nn.LayerNorm(6, eps=0.0),
    "rms norm": lambda: nn.RMSNorm(6),
    "rms norm bare, without eps": lambda: nn.RMSNorm(6, eps=0.0, elementwise_affine=False),
    "batch norm": lambda: nn.BatchNorm1d(6),
    "batch norm bare": lambda: nn.BatchNorm1d(6, affine=False, track_running_stats=False),
    "batch norm, cumulative": lambda: nn.BatchNorm1d(6, momentum=None),
    "batch norm without eps": lambda: nn.BatchNorm1d(6, eps=0.0),
    "group norm, one": lambda: nn.GroupNorm(1, 6),
    "group norm, two": lambda: nn.GroupNorm(2, 6),
    "local response": lambda: nn.Sequential(
        nn.Unflatten(1, (6, 1)), nn.LocalResponseNorm(3), nn.Flatten()
    ),
    "unflatten": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Flatten()),
    "identity": nn.Identity,
    "lazy": lambda: nn.LazyLinear(6),
    "bilinear self": lambda: _Twice(nn.Bilinear(6, 6, 6)),
}
for _name, _make in ACTIVATIONS.items():
    on_features(_name, _make)


class _Twice(nn.Module):
    """A layer of two inputs, both the same."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, x)


ON_POSITIONS: dict[str, Callable[[], nn.Module]] = {
    "layer norm of two axes": lambda: nn.LayerNorm((5, 6)),
    "instance norm": lambda: nn.InstanceNorm1d(5, affine=True),
    "batch norm of positions": lambda: nn.BatchNorm1d(5),
    "dropout of positions": nn.Dropout1d,
    "pooled units": lambda: nn.Sequential(nn.AvgPool1d(2), nn.Linear(3, 6)),
    "most of units": lambda: nn.Sequential(nn.MaxPool1d(2), nn.Linear(3, 6)),
    "padded units": lambda: nn.Sequential(nn.ConstantPad1d(1, 0.0), nn.Linear(8, 6)),
    "padded by ones": lambda: nn.Sequential(nn.ConstantPad1d(1, 1.0), nn.Linear(8, 6)),
    "reflected units": lambda: nn.Sequential(nn.ReflectionPad1d(1), nn.Linear(8, 6)),
    "convolved units": lambda: nn.Conv1d(5, 5, 3, padding=1),
    "lstm": lambda: _First(nn.LSTM(6, 6, batch_first=True)),
    "gru": lambda: _First(nn.GRU(6, 6, batch_first=True)),
    "encoder": lambda: nn.TransformerEncoderLayer(6, 2, 8, 0.1, batch_first=True),
    "encoder, norm first": lambda: nn.TransformerEncoderLayer(
        6, 2, 8, 0.0, "gelu", batch_first=True, norm_first=True
    ),
    "self attention": lambda: _Self(),
    "weights of heads": lambda: _Self(average_attn_weights=False),
    "with added keys": lambda: _Self(add_bias_kv=True, add_zero_attn=True),
    "with added zeros": lambda: _Self(add_zero_attn=True),
    "own mask for each head": lambda: _Self(per_head=True),
    "own bias for each head": lambda: _Self(per_head=True, soft=True),
}


class _First(nn.Module):
    """The first of what a layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)[0]


class _Self(nn.Module):
    """torch's attention on itself, with odd options."""

    def __init__(
        self,
        average_attn_weights: bool = True,
        per_head: bool = False,
        soft: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(6, 2, batch_first=True, **options)
        self.average, self.per_head, self.soft = average_attn_weights, per_head, soft
        self.said: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        mask = None
        if self.per_head:
            n = x.shape[1]
            one = torch.ones(n, n, dtype=torch.bool).triu(1)
            both = torch.stack([one, torch.zeros_like(one)]).repeat(x.shape[0], 1, 1)
            mask = both.to(x.dtype) if self.soft else both
        out, weights = self.layer(x, x, x, attn_mask=mask, average_attn_weights=self.average)
        w = weights if self.average else weights[:, 0]
        return out + w.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)


for _name, _make in ON_POSITIONS.items():
    on_positions(_name, _make)

ON_IMAGES: dict[str, Callable[[], nn.Module]] = {
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8, padding=1),
    "depthwise, two of each": lambda: nn.Sequential(
        nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 8, 1)
    ),
    "grouped": lambda: nn.Conv2d(8, 8, 3, groups=2),
    "grouped twice": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 1, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=4)
    ),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ReLU()),
    "transposed in groups": lambda: nn.ConvTranspose2d(8, 8, 2, groups=4),
    "transposed depthwise": lambda: nn.ConvTranspose2d(8, 8, 2, groups=8),
    "circular": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    "reflected": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    "replicated, bare": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate", bias=False),
    "padded with 2": lambda: nn.Sequential(nn.ConstantPad2d(1, 2.0), nn.ReLU()),
    "cropped": lambda: nn.ZeroPad2d(-1),
    "pixels shuffled": lambda: nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(2, 8, 1)),
    "pixels collected": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(32, 8, 1)),
    "channels shuffled": lambda: nn.ChannelShuffle(2),
    "instance norm 2d": lambda: nn.InstanceNorm2d(8),
    "instance norm, tracked": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "group norm of each": lambda: nn.GroupNorm(8, 8),
    "group norm of pairs": lambda: nn.GroupNorm(4, 8),
    "group norm of all": lambda: nn.GroupNorm(1, 8),
    "power pooling": lambda: nn.LPPool2d(2, 2),
    "odd power pooling": lambda: nn.Sequential(nn.ReLU(), nn.LPPool2d(3, 2)),
    "fractional pooling": lambda: nn.FractionalMaxPool2d(2, output_size=2),
    "adaptive pooling": lambda: nn.AdaptiveMaxPool2d((2, 1)),
    "average of some": lambda: nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bicubic": lambda: nn.Upsample(scale_factor=1.5, mode="bicubic"),
    "dropout of channels": nn.Dropout2d,
    "squeeze and excite": lambda: _Excited(),
    "softmax of channels": nn.Softmax2d,
    "channels last": lambda: _Permuted(nn.Linear(8, 8)),
    "columns": lambda: _Columns(),
    "columns with arguments": lambda: _Columns(2, 1, 1, 1),
}


class _Excited(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        s = functional.relu(self.down(x.mean((2, 3))))
        return x * torch.sigmoid(self.up(s))[:, :, None, None]


class _Permuted(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Columns(nn.Module):
    """im2col, and back by a mean."""

    def __init__(self, *options: int) -> None:
        super().__init__()
        self.options = options or (1,)

    def forward(self, x: Tensor) -> Tensor:
        columns = functional.unfold(x, *self.options)
        return columns.view(x.shape[0], 8, -1, columns.shape[-1]).mean(2).unsqueeze(-1)


for _name, _make in ON_IMAGES.items():
    on_images(_name, _make)


class _Table(nn.Module):
    """A table with options in front of a layer."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table, self.fc, self.mode = nn.Embedding(7, 6, **options), nn.Linear(6, 3), None

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.table(x))


class _Bag(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table, self.fc = nn.EmbeddingBag(7, 6, **options), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.table(x))


enter("table with padding", lambda: _Table(padding_idx=0), "tokens")
enter("table of bounded rows", lambda: _Table(max_norm=1.0), "tokens")
enter("table of wide bounds", lambda: _Table(max_norm=3.5), "tokens")
enter("table bounded in L1", lambda: _Table(max_norm=2.0, norm_type=1.0), "tokens")
enter("bag of means", lambda: _Bag(mode="mean"), "tokens")
enter("bag of largest", lambda: _Bag(mode="max"), "tokens")
enter("bag of bounded rows", lambda: _Bag(max_norm=1.0), "tokens")


@model("tokens")
class BoundedByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Parameter(torch.randn(7, 6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.embedding(x, self.table, max_norm=1.5))


@model("positions")
class Resized(nn.Module):
    """Units on an axis that is resized."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x).transpose(1, 2).unsqueeze(1)
        h = functional.interpolate(h, scale_factor=(2, 1), mode="bilinear")
        return self.fc2(h[:, 0, ::2].transpose(1, 2))


@model("features", Call((numbers(5, 4),), {"b": numbers(5, 4, seed=7)}))
class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 5)
        self.both, self.last = nn.Bilinear(6, 5, 6), nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        b = a if b is None else b
        return self.last(functional.relu(self.both(self.left(a), self.right(b))))
