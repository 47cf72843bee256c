"""Small language models of Python's documentation strings: a part of ``various``.

grams      which token follows a few others, for a perceptron over embeddings
causal     which token follows, at every place, for a transformer that looks back
recurrent  the same, for a simple recurrent network
masked     which tokens are hidden, for a transformer that looks both ways

loss: the mean cross-entropy of all tokens that are asked for
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from metaopt.base.errors import UserError
from metaopt.tasks.own import Family, Task, fresh_weights
from metaopt.tasks.various_changes import WRONG, mistaken
from metaopt.tasks.various_corpus import MASK, tokens
from metaopt.tasks.various_layers import one_size, require, sizes
from metaopt.tasks.various_networks import Grams, Recurrent
from metaopt.tasks.various_transformers import Blocks, TokenReader

NETWORKS = ("grams", "causal", "recurrent", "masked")
UNITS = ("characters", "words")
TOKENS = 24_000
"""Of the windows that a task trains on, together."""


class Texts(Family):
    """Language models with random initial weights.

    Args:
        network: ``grams``, ``causal``, ``recurrent`` or ``masked``.
        unit: ``characters`` or ``words``.
        vocabulary: the number of tokens; all units that are not frequent share one of them.
        context: the number of tokens that a network is given.
        width: of an embedded token.
        hidden: widths of the hidden layers of ``grams``: "32-16"; of ``recurrent`` its state.
        activation: of ``grams`` and transformers, one of ``various_layers.ACTIVATIONS``.
        norm: of ``grams``: ``none``, ``layer`` or ``batch``.
        layers: the number of a transformer's layers.
        heads: of a transformer.
        inner: the width of a transformer's feed-forward part; 0: twice that of a token.
        first: whether a transformer's norms come first, or last.
        final: whether a norm follows a transformer's last layer.
        init: of transformers, one of ``various_layers.STARTS``.
        normed: whether a norm follows a transformer's embedding.
        tied: whether a transformer's head is its embedding.
        varied: whether each task reads a part of the text alone, and changes its tokens.
        batch: the number of windows in a mini-batch.
        judged: the largest number of windows that a task is judged on.

    Raises:
        UserError: if an option is not one of those named here, or Python runs without
            documentation strings.
    """

    def __init__(
        self,
        network: str = "grams",
        unit: str = "words",
        vocabulary: int = 100,
        context: int = 3,
        width: int = 12,
        hidden: str = "32",
        activation: str = "gelu",
        norm: str = "none",
        layers: int = 1,
        heads: int = 2,
        inner: int = 0,
        first: bool = True,
        final: bool = False,
        init: str = "torch",
        normed: bool = False,
        tied: bool = False,
        varied: bool = False,
        batch: int = 16,
        judged: int = 48,
    ) -> None:
        require("network", network, NETWORKS)
        require("unit", unit, UNITS)
        if context < 1:
            raise UserError(f"context: found {context}, expected at least 1")
        if vocabulary < 3:
            raise UserError(f"vocabulary: found {vocabulary}, expected at least 3")
        self.batch = batch
        self.judged = judged
        self.varied = varied
        self.network = network
        self.vocabulary = vocabulary
        self.windows = windows(tokens(unit, vocabulary), context + (network != "masked"))
        if network == "grams":
            widths = sizes("hidden", hidden)
            self.net: nn.Module = Grams(vocabulary, context, width, widths, activation, norm)
        elif network == "recurrent":
            self.net = Recurrent(vocabulary, width, one_size("hidden", hidden))
        else:
            inner = inner or 2 * width
            causal = network == "causal"
            blocks = Blocks(width, heads, inner, layers, first, final, activation, init, causal)
            self.net = TokenReader(vocabulary, context, blocks, vocabulary, normed, tied=tied)

    def sample(self, generator: np.random.Generator) -> Task:
        """One task: new weights, and windows of text."""
        weights = fresh_weights(self.net, generator)
        found = self.windows
        if self.varied:
            found = stretch(found, generator)
            found = renamed(generator, self.vocabulary)[found]
            found = misread(found, generator.uniform(0, WRONG), self.vocabulary, generator)
        order = torch.from_numpy(generator.permutation(len(found)))
        judged, shown = order[: self.judged], order[self.judged :][: TOKENS // found.shape[1]]
        parts = self._asked(found, generator)
        data, test = (tuple(part[rows] for part in parts) for rows in (shown, judged))
        return Task(weights, data, test)

    def _asked(self, found: Tensor, generator: np.random.Generator) -> tuple[Tensor, ...]:
        """What the network is given, and what it should say; of ``masked`` the places between."""
        if self.network == "masked":
            return masked(found, generator)
        y = found[:, -1] if self.network == "grams" else found[:, 1:]
        return found[:, :-1], y

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        """The mean cross-entropy of the tokens that are asked for."""
        *given, y = data
        logits = functional_call(self.net, weights, tuple(given))
        return functional.cross_entropy(logits.flatten(0, -2), y.flatten())


def windows(text: Tensor, length: int) -> Tensor:
    """Tokens [L] cut into windows [L // length, length] that do not overlap."""
    count = len(text) // length
    return text[: count * length].reshape(count, length)


def stretch(found: Tensor, generator: np.random.Generator) -> Tensor:
    """Windows of a part of the text that hang together, a third of them."""
    count = len(found) // 3
    start = int(generator.integers(len(found) - count + 1))
    return found[start : start + count]


def renamed(generator: np.random.Generator, vocabulary: int) -> Tensor:
    """New names of tokens, permuted, int64 [vocabulary]; the mask keeps its own."""
    names = generator.permutation(vocabulary)
    at = int(np.flatnonzero(names == MASK)[0])
    names[[MASK, at]] = names[[at, MASK]]
    return torch.from_numpy(names)


def misread(found: Tensor, share: float, vocabulary: int, generator: np.random.Generator) -> Tensor:
    """Tokens of which round(share N) are any others than before, but for the mask.

    Args:
        found: windows [N, T] without masks.
        share: of tokens to change.
        vocabulary: the number of tokens.
        generator: the source of randomness.
    """
    without = found - (found > MASK).long()
    changed = mistaken(without, share, vocabulary - 1, generator)
    return changed + (changed >= MASK).long()


def masked(found: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """An eighth of each window behind a mask, at least one token, at random places.

    Args:
        found: windows [N, T].
        generator: the source of randomness.

    Returns:
        The windows with masks [N, T], the places of these [N, K], and what was there [N, K].
    """
    count, length = found.shape
    every = np.tile(np.arange(length), (count, 1))
    at = torch.from_numpy(generator.permuted(every, axis=1)[:, : max(1, length // 8)])
    hidden = torch.take_along_dim(found, at, dim=1)
    return found.scatter(1, at, MASK), at, hidden
