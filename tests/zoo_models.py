"""Models of many architectures, small, for the zoo."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class FunctionalCNN(nn.Module):
    """As in tutorials: functions in ``forward``, a view ahead of the classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 6, 3, padding=1, padding_mode="reflect")
        self.fc1 = nn.Linear(6 * 4, width)
        self.fc2 = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.avg_pool2d(functional.leaky_relu(self.conv2(x), 0.2), 2)
        x = x.view(x.size(0), -1)
        x = functional.dropout(torch.relu(self.fc1(x)), 0.3, self.training)
        return self.fc2(2 * x)


class Residual(nn.Module):
    """x + fc2(relu(fc1(norm(x)))) between an embedding and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.fc1 = nn.Linear(6, width)
        self.fc2 = nn.Linear(width, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x + self.fc2(functional.relu(self.fc1(self.norm(x))))
        return self.head(x)


class Block(nn.Module):
    """A transformer block of its own writing, with an optional mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.1, batch_first=True)
        self.norm2 = nn.LayerNorm(6)
        self.fc1 = nn.Linear(6, width)
        self.drop = nn.Dropout(0.1)
        self.fc2 = nn.Linear(width, 6)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.fc2(self.drop(functional.relu(self.fc1(self.norm2(x)))))


class CrossAttention(nn.Module):
    """Keys and values of other widths, and learned extra ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(4, 6)
        self.memory = nn.Linear(4, 5)
        self.attention = nn.MultiheadAttention(
            6, 3, kdim=5, vdim=4, add_bias_kv=True, batch_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.attention(self.query(x), self.memory(x), x)
        return torch.cat([out, weights], dim=-1)


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.fc1 = nn.Linear(6, width)
        self.fc2 = nn.Linear(width, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(self.norm(x + self.fc2(functional.relu(self.fc1(x)))))


class Reused(nn.Module):
    """One layer twice in a row, and a pair that is used once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp = nn.Linear(4, width)
        self.again = nn.Linear(width, width)
        self.mid = nn.Linear(width, width)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.inp(x))
        x = functional.relu(self.again(functional.relu(self.again(x))))
        return self.out(functional.relu(self.mid(x)))


class Scaled(nn.Module):
    """A module of the user's, with parameters of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Branching(nn.Module):
    """Control flow that depends on the data: no trace shows it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.fc1(x))
        if h.sum() > 0:
            h = h + 1
        return self.fc2(h)


class Heads(nn.Module):
    """One hidden space with two readers, one of which acts in training alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, width)
        self.first = nn.Linear(width, 3)
        self.second = nn.Linear(width, 2)
        self.late = nn.Linear(4, width)
        self.end = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = functional.relu(self.trunk(x))
        late = functional.relu(self.late(x))
        extra = (late,) if self.training else ()
        return (self.first(h), self.second(h), self.end(late), *extra)


class Penalised(nn.Module):
    """Returns what depends on its weights beside its output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penalty = torch.stack([p.square().sum() for p in self.parameters()]).sum()
        return self.net(x), penalty


class Reading(nn.Module):
    """Uses a layer's weight by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, width)
        self.fc2 = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.fc1(x))) + self.fc1.weight.sum()


class Recurrent(nn.Module):
    """A layer that feeds an LSTM, which has no symmetry here."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp = nn.Linear(4, width)
        self.lstm = nn.LSTM(width, 5, batch_first=True)
        self.fc1 = nn.Linear(5, width)
        self.fc2 = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.lstm(self.inp(x))[0]
        return self.fc2(functional.relu(self.fc1(hidden)))


class Pooled(nn.Module):
    """Grouped and depthwise convolutions, a mean over positions, GroupNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2 * width, 3)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, groups=2 * width)
        self.grouped = nn.Conv2d(2 * width, 8, 1, groups=2)
        self.norm = nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.depthwise(functional.relu(self.conv1(x))))
        x = self.norm(self.grouped(x)).relu()
        return self.fc(x.mean(dim=(2, 3)))


class Gated(nn.Module):
    """A gated unit: one branch is linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(4, width)
        self.up = nn.Linear(4, width)
        self.down = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Stream(nn.Module):
    """x + fc2(tanh(fc1(norm(x)))), read through norms that have no gains."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 6)
        self.norm1 = nn.RMSNorm(6, elementwise_affine=False)
        self.fc1 = nn.Linear(6, width)
        self.fc2 = nn.Linear(width, 6)
        self.norm2 = nn.RMSNorm(6, elementwise_affine=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x + self.fc2(torch.tanh(self.fc1(self.norm1(x))))
        return self.head(self.norm2(x))


class LinearOnly(nn.Linear):
    """A subclass: what it computes is read from its code."""


def mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, width),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(width, 2 * width),
        nn.LeakyReLU(0.1),
        nn.Linear(2 * width, 3),
    )


def prelu(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, width), nn.PReLU(), nn.Linear(width, 6), nn.PReLU(6), nn.Linear(6, 3)
    )


def batch_norm(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def layer_norm(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 3))


def cnn(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 6, 2),
        nn.ReLU(),
        nn.AvgPool2d(2, 1, padding=1),
        nn.Flatten(),
        nn.Linear(6 * 9, 3),
    )


def cnn_1d(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, width, 3),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Conv1d(width, 6, 3),
        nn.PReLU(6),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(1),
        nn.Linear(12, 3),
    )


def autoencoder(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3), nn.Linear(3, width), nn.ReLU(),
        nn.Linear(width, 6),
    )  # fmt: skip


def image_autoencoder(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(width, 4, 1),
        nn.ConvTranspose2d(4, width, 3, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 3, 1),
    )


def encoder_layer(width: int, norm_first: bool) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(6, 2, width, 0.1, batch_first=True, norm_first=norm_first)


def decoder(width: int) -> nn.Module:
    layer = nn.TransformerDecoderLayer(6, 2, width, 0.0, batch_first=True, norm_first=True)
    return Decoding(nn.TransformerDecoder(layer, 1))


class Decoding(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x, x.flip(1))
