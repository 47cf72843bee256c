"""Odd things at the end of a model, in its stream, and recurrences by hand."""

from __future__ import annotations

from typing import Any

import torch
from odd_forwards import model
from torch import Tensor, nn
from torch.nn import functional

ORDER = torch.tensor([1, 0, 2, 3, 5, 4])


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
    "SoftmaxFilled": lambda s, y: y.masked_fill(torch.tensor([True, False, False]), -2.0).softmax(
        1
    ),
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
