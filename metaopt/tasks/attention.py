"""A task family of small transformers, trained from random initial weights.

    digits     tokens are the rows of an image; the label of scikit-learn's digits is asked for
    recall     tokens are pairs of a key and a value; the last has a key alone, whose value is asked
               for

    task: {family: "metaopt.tasks.attention:Attention", options: {width: 16, heads: 2}}

Teleports act on the heads, d = width / heads: q -> g q, k -> g^-T k and v -> g v, o -> o g^-1 with
any invertible g [d, d], biases of q, k and v along with them.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from metaopt.base.errors import UserError
from metaopt.symmetry.discovery.find import symmetries
from metaopt.symmetry.groups import Group, Symmetries
from metaopt.tasks.attention_networks import TokenTransformer
from metaopt.tasks.images import digits_apart, shown_and_judged
from metaopt.tasks.own import Family, Task, fresh_weights

PROBLEMS = ("digits", "recall")
KEYS, VALUES, PAIRS = 8, 8, 4
"""Of recall: the numbers of keys, of values, and of pairs in an example."""
_EXAMPLES, _JUDGED = 2048, 256


class Attention(Family):
    """Small transformers; the loss is the mean cross-entropy.

    Its ``symmetries`` are the general linear ones of the heads, two for each layer.

    Args:
        width: the width of a token.
        heads: the number of heads, a divisor of ``width``.
        layers: the number of transformer layers.
        problem: ``digits`` or ``recall``.
        bias: whether queries, keys, values and the output of the attention have biases.
        unseen: of digits, whether tasks are judged on the images that no task without it has, as
            in ``images``. Examples of recall are drawn anew for each task.
        batch: the number of examples in a mini-batch.
        judged: the largest number of examples that a task is judged on.

    Raises:
        UserError: if an option is not one of those named here, or scikit-learn is missing.
    """

    def __init__(
        self,
        width: int,
        heads: int = 2,
        layers: int = 1,
        problem: str = "digits",
        bias: bool = True,
        unseen: bool = False,
        batch: int = 32,
        judged: int = 256,
    ) -> None:
        if problem not in PROBLEMS:
            raise UserError(f"problem: found {problem!r}, expected one of {', '.join(PROBLEMS)}")
        if heads < 1 or width % heads:
            raise UserError(f"width: found {width}, expected a multiple of {heads} heads")
        self.batch = batch
        self.unseen = unseen
        self.judged = judged
        self.recalls = problem == "recall"
        if self.recalls:
            inputs, tokens, classes = KEYS + VALUES, PAIRS + 1, VALUES
        else:
            seen, apart = digits_apart()
            self.seen = len(seen.y)
            self.shared = (torch.cat([seen.X, apart.X]), torch.cat([seen.y, apart.y]))
            inputs = tokens = math.isqrt(seen.X.shape[1])
            classes = int(seen.y.max()) + 1
        self.shape = (tokens, inputs)
        self.net = TokenTransformer(
            inputs, tokens, width, heads, layers, classes, bias, last=self.recalls
        )
        found = symmetries(self.net, torch.rand(2, tokens, inputs))
        # They are read from one run. The network does the same with all inputs of this shape.
        self.symmetries = Symmetries(
            (replace(one, assumes="") for one in found if one.group is Group.LINEAR), found.skipped
        )

    def sample(self, generator: np.random.Generator) -> Task:
        """One task: new weights, and examples, of digits their row numbers."""
        weights = fresh_weights(self.net, generator)
        if self.recalls:
            shown, judged = recalled(generator, _EXAMPLES), recalled(generator, _JUDGED)
            return Task(weights, shown, tuple(part[: self.judged] for part in judged))
        rows, apart = shown_and_judged(generator, self.seen, len(self.shared[1]), self.unseen)
        return Task(weights, (rows,), (apart[: self.judged],))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        """The mean cross-entropy of the examples."""
        if self.recalls:
            tokens, y = data
        else:
            ((rows,), (X, labels)) = data, shared
            tokens, y = X[rows].reshape(-1, *self.shape), labels[rows]
        return functional.cross_entropy(functional_call(self.net, weights, (tokens,)), y)


def recalled(generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Examples of recall: different keys with random values, one key again, and its value.

    Args:
        generator: the source of randomness.
        count: the number of examples N.

    Returns:
        Tokens, float32 [N, PAIRS + 1, KEYS + VALUES], one-hot keys and values side by side; and the
        values that are asked for, int64 [N].
    """
    keys = generator.permuted(np.tile(np.arange(KEYS), (count, 1)), axis=1)[:, :PAIRS]
    values = generator.integers(VALUES, size=(count, PAIRS))
    asked = generator.integers(PAIRS, size=count)
    each = np.arange(count)
    tokens = np.zeros((count, PAIRS + 1, KEYS + VALUES), np.float32)
    tokens[each[:, None], np.arange(PAIRS), keys] = 1
    tokens[each[:, None], np.arange(PAIRS), KEYS + values] = 1
    tokens[each, PAIRS, keys[each, asked]] = 1
    return torch.from_numpy(tokens), torch.from_numpy(values[each, asked])
