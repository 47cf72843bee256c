"""Small models of many architectures: what must be found in them, and what left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Specimen:
    """A model to be found symmetries of.

    Attributes:
        build: the model, of a width.
        shape: of its input, [batch, ...].
        found: "group: name" of each symmetry, in order.
        skipped: module -> part of the reason why it is left alone.
        tokens: of the vocabulary, where inputs are integers.
    """

    build: Callable[[int], nn.Module]
    shape: tuple[int, ...]
    found: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    tokens: int = 0

    def model(self, width: int = 8, seed: int = 0) -> nn.Module:
        """In training mode, with normalisations that are not at their start."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.build(width)
            for module in model.modules():
                if isinstance(
                    module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm
                ):
                    for parameter in (module.weight, module.bias):
                        nn.init.uniform_(parameter, 0.5, 1.5)
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
        return model

    def inputs(self, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        """Held-out ones: of both signs."""
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            return torch.randint(self.tokens, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)


class FunctionalCNN(nn.Module):
    """As in tutorials: functions in ``forward``, a view ahead of the classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 6, 3, padding=1, padding_mode="reflect")
        self.fc1 = nn.Linear(6 * 4, width)
        self.fc2 = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.avg_pool2d(functional.leaky_relu(self.conv2(x), 0.2), 2)
        x = x.view(x.size(0), -1)
        x = functional.dropout(torch.relu(self.fc1(x)), 0.3, self.training)
        return self.fc2(x * 0.5)


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


class LinearOnly(nn.Linear):
    """A subclass: what it computes is not known."""


def _mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, width),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(width, 2 * width),
        nn.LeakyReLU(0.1),
        nn.Linear(2 * width, 3),
    )


def _prelu(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, width), nn.PReLU(), nn.Linear(width, 6), nn.PReLU(6), nn.Linear(6, 3)
    )


def _batch_norm(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def _layer_norm(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 3))


def _cnn(width: int) -> nn.Module:
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


def _cnn_1d(width: int) -> nn.Module:
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


def _autoencoder(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3), nn.Linear(3, width), nn.ReLU(),
        nn.Linear(width, 6),
    )  # fmt: skip


def _image_autoencoder(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(width, 4, 1),
        nn.ConvTranspose2d(4, width, 3, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 3, 1),
    )


def _encoder_layer(width: int, norm_first: bool) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(6, 2, width, 0.1, batch_first=True, norm_first=norm_first)


def _decoder(width: int) -> nn.Module:
    layer = nn.TransformerDecoderLayer(6, 2, width, 0.0, batch_first=True, norm_first=True)
    return _Decoding(nn.TransformerDecoder(layer, 1))


class _Decoding(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x, x.flip(1))


ATTENTION = ("general linear: {}: query, key", "general linear: {}: value, output")


def _attention(path: str) -> tuple[str, ...]:
    return tuple(line.format(path) for line in ATTENTION)


ZOO: dict[str, Specimen] = {
    "mlp": Specimen(
        _mlp,
        (5, 4),
        ("positive scaling: 0 -> 3", "positive scaling: 3 -> 5"),
        {"5": "leaves the model"},
    ),
    "prelu": Specimen(_prelu, (5, 4), ("positive scaling: 0 -> 2", "positive scaling: 2 -> 4")),
    "batch norm": Specimen(
        _batch_norm,
        (5, 4),
        ("positive scaling: 1 -> 3",),
        {"0": "only permutations pass BatchNorm"},
    ),
    "layer norm": Specimen(
        _layer_norm,
        (5, 4),
        ("positive scaling: 1 -> 3",),
        {"0": "only permutations pass LayerNorm"},
    ),
    "cnn": Specimen(
        _cnn,
        (4, 3, 9, 9),
        ("positive scaling: 1 -> 4", "positive scaling: 4 -> 8"),
        {"0": "only permutations pass BatchNorm2d '1'"},
    ),
    "functional cnn": Specimen(
        FunctionalCNN,
        (4, 3, 8, 8),
        (
            "positive scaling: conv1 -> conv2",
            "positive scaling: conv2 -> fc1",
            "positive scaling: fc1 -> fc2",
        ),
    ),
    "cnn 1d": Specimen(
        _cnn_1d, (4, 3, 12), ("positive scaling: 1 -> 3", "positive scaling: 3 -> 7")
    ),
    "grouped": Specimen(
        Pooled,
        (4, 3, 7, 7),
        (
            "positive scaling: conv1 -> depthwise",
            "positive scaling: depthwise -> grouped",
            "positive scaling: norm -> fc",
        ),
        {"grouped": "GroupNorm 'norm'"},
    ),
    "autoencoder": Specimen(
        _autoencoder,
        (5, 6),
        (
            "positive scaling: 0 -> 2",
            "general linear: 2 -> 3",
            "positive scaling: 3 -> 5",
        ),
    ),
    "image autoencoder": Specimen(
        _image_autoencoder,
        (4, 3, 9, 9),
        (
            "positive scaling: 0 -> 2",
            "general linear: 2 -> 3",
            "positive scaling: 3 -> 5",
        ),
    ),
    "residual": Specimen(
        Residual,
        (5, 4),
        ("positive scaling: norm -> fc1", "positive scaling: fc1 -> fc2"),
        {"inp": "added to another value", "fc2": "added to another value"},
    ),
    "block": Specimen(
        Block,
        (3, 4, 6),
        (
            "positive scaling: norm1 -> attention",
            *_attention("attention"),
            "positive scaling: norm2 -> fc1",
            "positive scaling: fc1 -> fc2",
        ),
        {"fc2": "added to another value"},
    ),
    "cross attention": Specimen(
        CrossAttention,
        (3, 4, 4),
        (
            "general linear: query -> attention",
            "general linear: memory -> attention",
            *_attention("attention"),
        ),
    ),
    "encoder layer, norm first": Specimen(
        lambda width: _encoder_layer(width, True),
        (3, 4, 6),
        (
            "positive scaling: norm1 -> self_attn",
            "positive scaling: norm2 -> linear1",
            "positive scaling: linear1 -> linear2",
            *_attention("self_attn"),
        ),
    ),
    "encoder layers": Specimen(
        lambda width: nn.TransformerEncoder(_encoder_layer(width, False), 2),
        (3, 4, 6),
        tuple(
            line
            for i in range(2)
            for line in (
                f"positive scaling: layers.{i}.linear1 -> layers.{i}.linear2",
                *_attention(f"layers.{i}.self_attn"),
            )
        ),
        {"layers.0.norm1": "added to another value"},
    ),
    "decoder": Specimen(
        _decoder,
        (3, 4, 6),
        (
            "positive scaling: decoder.layers.0.norm1 -> decoder.layers.0.self_attn",
            "positive scaling: decoder.layers.0.norm2 -> decoder.layers.0.multihead_attn",
            "positive scaling: decoder.layers.0.norm3 -> decoder.layers.0.linear1",
            "positive scaling: decoder.layers.0.linear1 -> decoder.layers.0.linear2",
            *_attention("decoder.layers.0.self_attn"),
            *_attention("decoder.layers.0.multihead_attn"),
        ),
    ),
    "tied": Specimen(
        Tied,
        (3, 4),
        ("positive scaling: fc1 -> fc2",),
        {
            "norm": "'head.weight' shares its memory with 'embedding.weight'",
            "embedding": "Embedding",
        },
        tokens=11,
    ),
    "reused": Specimen(
        Reused,
        (5, 4),
        ("positive scaling: mid -> out",),
        {"inp": "'again' is called 2 times", "again": "'again' is called 2 times"},
    ),
    "custom module": Specimen(
        lambda width: nn.Sequential(
            nn.Linear(4, width),
            Scaled(width),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 3),
        ),
        (5, 4),
        ("positive scaling: 2 -> 4",),
        {"0": "mul", "1": "read by code of its own"},
    ),
    "subclass": Specimen(
        lambda width: nn.Sequential(
            nn.Linear(4, width), nn.ReLU(), LinearOnly(width, width), nn.ReLU(), nn.Linear(width, 3)
        ),
        (5, 4),
        (),
        {"0": "linear", "2": "LinearOnly"},
    ),
    "opaque module": Specimen(
        lambda width: nn.Sequential(
            nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), Branching(width)
        ),
        (5, 4),
        ("positive scaling: 0 -> 2",),
        {"2": "Branching '4'", "4": "cannot be traced"},
    ),
    "opaque": Specimen(lambda width: Branching(8), (5, 8), (), {"": "cannot be traced"}),
    "heads": Specimen(
        Heads,
        (5, 4),
        ("positive scaling: trunk -> first, second",),
        {"late": "leaves the model"},
    ),
    "penalty": Specimen(Penalised, (5, 4), (), {"": "computes with parameters"}),
    "reading": Specimen(Reading, (5, 4), (), {"fc1": "read by code of the model"}),
    "recurrent": Specimen(
        Recurrent,
        (3, 5, 4),
        ("positive scaling: fc1 -> fc2",),
        {"inp": "LSTM", "lstm": "LSTM has no symmetry"},
    ),
    "gelu": Specimen(
        lambda width: nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, 3)),
        (5, 4),
        (),
        {"0": "only permutations pass GELU"},
    ),
    "one layer": Specimen(lambda width: nn.Linear(4, width), (5, 4), (), {"": "leaves the model"}),
}
