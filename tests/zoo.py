"""Small models of many architectures: what must be found in them, and what left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from zoo_models import (
    Block,
    Branching,
    CrossAttention,
    FunctionalCNN,
    Gated,
    Heads,
    LinearOnly,
    Penalised,
    Pooled,
    Reading,
    Recurrent,
    Residual,
    Reused,
    Scaled,
    Stream,
    Tied,
    autoencoder,
    batch_norm,
    cnn,
    cnn_1d,
    decoder,
    encoder_layer,
    image_autoencoder,
    layer_norm,
    mlp,
    prelu,
)


@dataclass(frozen=True)
class Specimen:
    """A model to be found symmetries of.

    Attributes:
        build: the model, of a width.
        shape: of its input, [batch, ...].
        found: "group: name" of each symmetry, in order.
        skipped: module -> part of the reason why it is left alone.
        tokens: of the vocabulary, where inputs are integers.
        shown: "group: name" of what only a run on an example shows, in order.
    """

    build: Callable[[int], nn.Module]
    shape: tuple[int, ...]
    found: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    shown: tuple[str, ...] = ()

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


ATTENTION = (
    "general linear: {}: query, key",
    "translation: {}: key",
    "general linear: {}: value, output",
)


def _attention(path: str) -> tuple[str, ...]:
    return tuple(line.format(path) for line in ATTENTION)


ZOO: dict[str, Specimen] = {
    "mlp": Specimen(
        mlp,
        (5, 4),
        ("positive scaling: 0 -> 3", "positive scaling: 3 -> 5"),
        {"5": "leaves the model"},
    ),
    "prelu": Specimen(prelu, (5, 4), ("positive scaling: 0 -> 2", "positive scaling: 2 -> 4")),
    "batch norm": Specimen(
        batch_norm,
        (5, 4),
        ("positive scaling: 1 -> 3",),
        {"0": "only permutations pass BatchNorm"},
    ),
    "layer norm": Specimen(
        layer_norm,
        (5, 4),
        ("translation: 0.weight", "translation: 0.bias", "positive scaling: 1 -> 3"),
        {"0": "only permutations pass LayerNorm"},
    ),
    "cnn": Specimen(
        cnn,
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
        cnn_1d, (4, 3, 12), ("positive scaling: 1 -> 3", "positive scaling: 3 -> 7")
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
        autoencoder,
        (5, 6),
        (
            "positive scaling: 0 -> 2",
            "general linear: 2 -> 3",
            "positive scaling: 3 -> 5",
        ),
    ),
    "image autoencoder": Specimen(
        image_autoencoder,
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
        {"inp": "only permutations pass LayerNorm", "fc2": "only permutations pass LayerNorm"},
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
            *_attention("attention")[::2],
        ),
    ),
    "encoder layer, norm first": Specimen(
        lambda width: encoder_layer(width, True),
        (3, 4, 6),
        (
            "positive scaling: norm1 -> self_attn",
            *_attention("self_attn"),
            "positive scaling: norm2 -> linear1",
            "positive scaling: linear1 -> linear2",
        ),
    ),
    "encoder layers": Specimen(
        lambda width: nn.TransformerEncoder(encoder_layer(width, False), 2),
        (3, 4, 6),
        tuple(
            line
            for i in range(2)
            for line in (
                *_attention(f"layers.{i}.self_attn"),
                f"positive scaling: layers.{i}.linear1 -> layers.{i}.linear2",
            )
        ),
        {"layers.0.norm1": "only permutations pass LayerNorm"},
    ),
    "decoder": Specimen(
        decoder,
        (3, 4, 6),
        (
            "positive scaling: decoder.layers.0.norm1 -> decoder.layers.0.self_attn",
            *_attention("decoder.layers.0.self_attn"),
            "positive scaling: decoder.layers.0.norm2 -> decoder.layers.0.multihead_attn",
            *_attention("decoder.layers.0.multihead_attn"),
            "positive scaling: decoder.layers.0.norm3 -> decoder.layers.0.linear1",
            "positive scaling: decoder.layers.0.linear1 -> decoder.layers.0.linear2",
        ),
    ),
    "tied": Specimen(
        Tied,
        (3, 4),
        ("positive scaling: fc1 -> fc2", "translation: fc2.weight", "translation: fc2.bias"),
        {"norm": "only permutations pass LayerNorm", "embedding": "looked up by inputs"},
        tokens=11,
    ),
    "reused": Specimen(
        Reused,
        (5, 4),
        ("positive scaling: inp, again -> again, mid", "positive scaling: mid -> out"),
        {"out": "leaves the model"},
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
        (
            "positive scaling: 0 -> 1.gain",
            "positive scaling: 1.gain -> 2",
            "positive scaling: 2 -> 4",
        ),
        {"4": "leaves the model"},
    ),
    "subclass": Specimen(
        lambda width: nn.Sequential(
            nn.Linear(4, width), nn.ReLU(), LinearOnly(width, width), nn.ReLU(), nn.Linear(width, 3)
        ),
        (5, 4),
        ("positive scaling: 0 -> 2", "positive scaling: 2 -> 4"),
        {"4": "leaves the model"},
    ),
    "opaque module": Specimen(
        lambda width: nn.Sequential(
            nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), Branching(width)
        ),
        (5, 4),
        ("positive scaling: 0 -> 2",),
        {"2": "Branching '4'", "4": "cannot be traced"},
        shown=("positive scaling: 2 -> 4.fc1",),
    ),
    "opaque": Specimen(lambda width: Branching(8), (5, 8), (), {"": "cannot be traced"}),
    "heads": Specimen(
        Heads,
        (5, 4),
        ("positive scaling: trunk -> first, second",),
        {"late": "leaves the model"},
    ),
    "penalty": Specimen(Penalised, (5, 4), (), {"": "computes with parameters"}),
    "reading": Specimen(Reading, (5, 4), (), {"fc1": "only permutations pass sum"}),
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
    "gated": Specimen(
        Gated, (5, 4), ("positive scaling: up -> down",), {"gate": "only permutations pass silu"}
    ),
    "stream": Specimen(
        Stream,
        (5, 4),
        ("orthogonal: inp, fc2 -> fc1, head", "sign flips: fc1 -> fc2"),
        {"fc1": "only changes of sign and permutations pass tanh"},
    ),
    "one layer": Specimen(lambda width: nn.Linear(4, width), (5, 4), (), {"": "leaves the model"}),
}
