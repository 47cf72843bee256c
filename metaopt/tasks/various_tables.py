"""Perceptrons on tables of numbers: a part of ``various``.

    iris, wine   scikit-learn's, three classes
    diabetes     scikit-learn's, regression
    teacher      drawn for each task: what a random network makes of normal numbers
    mixture      drawn for each task: which cluster of a random mixture of Gaussians a point is of

    loss: the mean cross-entropy; for regression the mean squared error of standardised targets

``studies.rivals`` judges rules by other tables, scikit-learn's breast cancer among them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from metaopt.base.errors import UserError
from metaopt.tasks.images import shown_and_judged
from metaopt.tasks.own import Family, Task, fresh_weights
from metaopt.tasks.various_changes import WRONG, drawn_labels, drawn_scale, fewer, mistaken
from metaopt.tasks.various_layers import require, sizes
from metaopt.tasks.various_networks import perceptron

Floats = NDArray[np.float64]
STORED = {"iris": "load_iris", "wine": "load_wine", "diabetes": "load_diabetes"}
DRAWN = ("teacher", "mixture")
ROWS = 2048
"""Of a table that is drawn."""
_TEACHER = 16
_CENTRES = 2
_NOISE = 0.3


class Tables(Family):
    """Perceptrons on tables, with random initial weights.

    Args:
        table: ``iris``, ``wine``, ``diabetes``, ``teacher`` or ``mixture``.
        hidden: widths of hidden layers: "32-16"; "" for none.
        activation: between layers, one of ``various_layers.ACTIVATIONS``.
        norm: ``none``, ``layer`` or ``batch``.
        inputs: of ``teacher`` and ``mixture``, the number of columns.
        outputs: of these, the number of classes, or of targets of a regression.
        regression: of these, whether numbers are asked for. A mixture's are those of the cluster.
        varied: whether each task changes columns, labels, scale and the number of rows.
        batch: the number of rows in a mini-batch.
        judged: the largest number of rows that a task is judged on.

    Raises:
        UserError: if an option is not one of those named here, or scikit-learn is missing.
    """

    def __init__(
        self,
        table: str = "teacher",
        hidden: str = "32",
        activation: str = "relu",
        norm: str = "none",
        inputs: int = 12,
        outputs: int = 4,
        regression: bool = False,
        varied: bool = False,
        batch: int = 32,
        judged: int = 128,
    ) -> None:
        require("table", table, (*STORED, *DRAWN))
        self.batch = batch
        self.judged = judged
        self.varied = varied
        self.make: Callable[[np.random.Generator], tuple[Tensor, Tensor]]
        if table in STORED:
            X, y = stored(table)
            self.make = lambda _: (X, y)
            regression = y.is_floating_point()
            inputs, outputs = X.shape[1], y.shape[1] if regression else int(y.max()) + 1
        else:
            if not regression and outputs < 2:
                raise UserError(f"outputs: found {outputs} classes, expected at least 2")
            draw = taught if table == "teacher" else mixed
            self.make = lambda generator: draw(generator, inputs, outputs, regression)
        self.regression = regression
        self.outputs = outputs
        self.net = perceptron([inputs, *sizes("hidden", hidden), outputs], activation, norm)

    def sample(self, generator: np.random.Generator) -> Task:
        """One task: new weights, and rows with what is asked of them."""
        weights = fresh_weights(self.net, generator)
        X, y = self.make(generator)
        shown, judged = shown_and_judged(generator, len(y), len(y), unseen=False)
        X = standardised(X, shown)
        if self.regression:
            y = standardised(y, shown)
        if self.varied:
            X = X @ turned(generator, X.shape[1]) * drawn_scale(generator)
            if not self.regression:
                y = drawn_labels(generator, self.outputs)[y]
                y = mistaken(y, generator.uniform(0, WRONG), self.outputs, generator)
            shown = fewer(shown, generator)
        judged = judged[: self.judged]
        return Task(weights, (X[shown], y[shown]), (X[judged], y[judged]))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        """The mean cross-entropy of the rows, or the mean squared error of their targets."""
        X, y = data
        found = functional_call(self.net, weights, (X,))
        if self.regression:
            return (found - y).square().mean()
        return functional.cross_entropy(found, y)


@cache
def stored(table: str) -> tuple[Tensor, Tensor]:
    """A table of scikit-learn: inputs float32 [N, n], and classes int64 [N] or numbers [N, 1].

    Raises:
        UserError: if scikit-learn is not installed.
    """
    try:
        data = getattr(import_module("sklearn.datasets"), STORED[table])()
    except ImportError:
        raise UserError(
            "tables need scikit-learn: pip install 'metaopt-symmetry[digits]'"
        ) from None
    X = torch.from_numpy(data.data.astype(np.float32))
    if table == "diabetes":
        return X, torch.from_numpy(data.target.astype(np.float32))[:, None]
    return X, torch.from_numpy(data.target.astype(np.int64))


def taught(
    generator: np.random.Generator, inputs: int, outputs: int, regression: bool
) -> tuple[Tensor, Tensor]:
    """Normal numbers, and what a random network with tanh makes of them, with noise.

        t(x) = W2 tanh(2 W1 x + b) + noise,    y = t, or the class of its largest standardised entry

    Args:
        generator: the source of randomness.
        inputs: columns.
        outputs: entries of t.
        regression: whether y is t.
    """
    X = generator.standard_normal((ROWS, inputs))
    W1 = generator.standard_normal((inputs, _TEACHER)) * 2 / inputs**0.5
    W2 = generator.standard_normal((_TEACHER, outputs))
    t = np.tanh(X @ W1 + generator.standard_normal(_TEACHER)) @ W2
    t = (t - t.mean(0)) / t.std(0)
    t += generator.uniform(0, _NOISE) * generator.standard_normal(t.shape)
    return _floats(X), _floats(t) if regression else torch.from_numpy(t.argmax(1))


def mixed(
    generator: np.random.Generator, inputs: int, outputs: int, regression: bool
) -> tuple[Tensor, Tensor]:
    """Points of a random mixture of Gaussians, and what their cluster stands for.

        x = c_k + A_k z,   z normal,   k uniform;    y = the class of k, or v_k + noise

    Each class has two clusters; a regression has four for each target.

    Args:
        generator: the source of randomness.
        inputs: columns.
        outputs: classes, or entries of v.
        regression: whether y are numbers.
    """
    clusters = outputs * _CENTRES * (2 if regression else 1)
    k = generator.integers(clusters, size=ROWS)
    centres = generator.standard_normal((clusters, inputs)) * generator.uniform(0.7, 1.5)
    A = generator.standard_normal((clusters, inputs, inputs)) / inputs**0.5
    z = generator.standard_normal((ROWS, inputs, 1))
    X = centres[k] + (A[k] @ z)[..., 0]
    if not regression:
        return _floats(X), torch.from_numpy(k % outputs)
    v = generator.standard_normal((clusters, outputs))
    noise = generator.uniform(0, _NOISE) * generator.standard_normal((ROWS, outputs))
    return _floats(X), _floats(v[k] + noise)


def standardised(X: Tensor, rows: Tensor) -> Tensor:
    """Columns [N, n] of mean 0 and variance 1 on the given rows."""
    some = X[rows]
    return (X - some.mean(0)) / some.std(0, correction=0).clamp_min(1e-6)


def turned(generator: np.random.Generator, columns: int) -> Tensor:
    """A random signed permutation of columns; in half of the cases a random rotation instead.

    Returns:
        An orthogonal matrix, float32 [columns, columns].
    """
    if generator.random() < 0.5:
        Q, _ = np.linalg.qr(generator.standard_normal((columns, columns)))
        return _floats(Q)
    signs = generator.choice([-1.0, 1.0], size=columns)
    return _floats(np.eye(columns)[generator.permutation(columns)] * signs)


def _floats(x: Floats) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float32))
