"""Odd indexing, streams, gates, losses inside, hypernetworks and recurrences."""

from __future__ import annotations

from typing import Any

import torch
from odd_forwards import Gated, Lora, Mlp, Plain, Residual, model, odd
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


class Logits(nn.Module):
    """Logits, and something that a user does with them inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.end(self.fc2(torch.tanh(self.fc1(x))))

    def end(self, y: Tensor) -> Any:
        return y.softmax(-1)


ENDS: dict[str, Any] = {
    "Softmax": lambda s, y: y.softmax(-1),
    "SoftmaxAndLogits": lambda s, y: (y.softmax(-1), y),
    "SoftmaxAndMean": lambda s, y: (y.log_softmax(-1), y.mean()),
    "SoftmaxOfBatch": lambda s, y: y.softmax(0),
    "SoftmaxOfSome": lambda s, y: (y[:, 1:].softmax(-1), y[:, :2].softmax(-1)),
    "SoftmaxWithZero": lambda s, y: functional.pad(y, (0, 1)).softmax(-1),
    "SoftmaxWithFloor": lambda s, y: y.clamp(min=-1.0).softmax(-1),
    "SoftmaxScaled": lambda s, y: (y * torch.tensor([1.0, 1.0, 2.0])).softmax(-1),
    "SoftmaxHeated": lambda s, y: (y / (1 + y.abs().amax(-1, keepdim=True))).softmax(-1),
    "SoftmaxByItem": lambda s, y: y.softmax(-1) * (2 if y.sum() > 0 else 1),
    "SoftmaxPlaces": lambda s, y: (y.softmax(-1), y.argmax(-1), y > 0),
    "SoftmaxMasked": lambda s, y: y.masked_fill(y < 0, -1e9).softmax(-1),
    "SoftmaxFilled": lambda s, y: y.masked_fill(torch.tensor([True, False, False]), -2.0).softmax(1),
    "CrossEntropy": lambda s, y: functional.cross_entropy(y, torch.arange(len(y)) % 3),
    "SmoothEntropy": lambda s, y: functional.cross_entropy(
        y, torch.arange(len(y)) % 3, label_smoothing=0.1
    ),
    "Sums": lambda s, y: (y - y.logsumexp(-1, keepdim=True), y.logsumexp(-1)),
    "Centred": lambda s, y: y - y.mean(-1, keepdim=True),
    "UnitRows": lambda s, y: functional.normalize(y, dim=-1),
    "UnitRowsWithEps": lambda s, y: functional.normalize(y, dim=-1, eps=10.0),
    "UnitByHand": lambda s, y: y / y.norm(dim=-1, keepdim=True),
    "UnitAndLength": lambda s, y: (y / y.norm(dim=-1, keepdim=True), y.norm(dim=-1)),
    "Standard": lambda s, y: functional.layer_norm(y, (3,), eps=0.0),
    "StandardBatch": lambda s, y: functional.layer_norm(y.T, (y.shape[0],), eps=0.0),
    "Cosines": lambda s, y: functional.cosine_similarity(y, s.fc2.bias[None]),
    "Ratios": lambda s, y: y / y[:, :1],
    "SignsOfLogits": lambda s, y: torch.sign(y),
    "Largest": lambda s, y: y.argmax(-1),
}
for _name, _end in ENDS.items():
    model("features")(type(_name, (Logits,), {"end": _end}))


@model("positions")
class RotatableStream(nn.Module):
    """A stream with RMSNorm, of which also a slice is read."""

    cut = 6

    def __init__(self) -> None:
        super().__init__()
        self.start, self.norm, self.mix = nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 6)
        self.end = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        h = h + self.mix(self.norm(h).tanh() if self.cut == 1 else self.norm(h))
        return self.end(torch.cat([self.norm(h[..., : self.cut]), h[..., self.cut :]], -1)
                        if self.cut == 6 else h[..., ORDER])  # fmt: skip


@model("positions")
class TanhStream(RotatableStream):
    cut = 1


@model("positions")
class MeanStream(RotatableStream):
    def forward(self, x: Tensor) -> Any:
        h = self.start(x)
        return self.end(self.norm(h)), h.mean(-1)


@model("positions")
class SquaredStream(RotatableStream):
    def forward(self, x: Tensor) -> Any:
        h = self.start(x)
        n = h * torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-6)
        return self.end(n), (h**2).sum(-1), (h**4).sum(-1).sqrt()


@model("positions")
class DroppedStream(RotatableStream):
    def forward(self, x: Tensor) -> Any:
        h = functional.dropout(self.start(x), 0.3, self.training)
        return self.end(self.norm(h))


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.y = nn.Linear(4, 12), nn.Linear(3, 12), nn.Linear(3, 3)


@model("positions")
class LstmByHand(Cell):
    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 3)
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.y(h)


@model("positions")
class RnnByHand(Cell):
    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 3)
        for row in x.unbind(1):
            h = torch.tanh(self.x(row)[:, :3] + self.h(h)[:, 3:6])
        return self.y(h)


@model("positions")
class LinearRecurrence(Cell):
    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 3)
        out = []
        for row in x.unbind(1):
            h = self.x(row)[:, :3] + h * self.h.weight[0].sigmoid()
            out.append(self.y(h))
        return torch.stack(out, 1)
