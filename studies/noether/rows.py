"""The rows of the table of noise equilibria, as problems of a few weights each."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from metaopt.base.streams import Stream, item_generator
from studies.noether.orbits import Pair, Problem, Tensors, Weights

SEED = 1


def normal(index: int) -> Tensors:
    """Standard normal numbers of a stream of their own, float64."""
    draws = item_generator(Stream.NOISE_STUDY, SEED, index)
    return lambda *shape: torch.from_numpy(draws.standard_normal(shape))


def sphere(draws: Tensors, *shape: int) -> Tensor:
    """Vectors [*shape] of length sqrt(n), n their size: designs without outliers."""
    x = draws(*shape)
    return x * (shape[-1] ** 0.5 / torch.linalg.vector_norm(x, dim=-1, keepdim=True))


def frame(draws: Tensors, rows: int, columns: int) -> Tensor:
    """A random matrix with orthonormal rows or columns: units far from one another."""
    Q: Tensor = torch.linalg.qr(draws(max(rows, columns), min(rows, columns)))[0]
    return Q if rows >= columns else Q.mT


def relu_outputs(weights: Weights, x: Tensor) -> Tensor:
    """A hidden layer of ReLU units with biases [k, 1]."""
    W1, b1, W2 = weights
    return (x @ W1.mT + b1.mT).relu() @ W2.mT


def modulus_outputs(weights: Weights, x: Tensor) -> Tensor:
    """Two hidden layers of units |z|, the first with biases [k, 1]."""
    W1, b1, W2, W3 = weights
    return ((x @ W1.mT + b1.mT).abs() @ W2.mT).abs() @ W3.mT


def linear_outputs(weights: Weights, x: Tensor) -> Tensor:
    """W_D .. W_1 x."""
    for W in weights:
        x = x @ W.mT
    return x


def head_outputs(weights: Weights, x: Tensor) -> Tensor:
    """One head of attention, asked at the last of the tokens [B, S, tokens, d]."""
    Q, K, V, out = (W[:, None] for W in weights)
    query = x[..., -1:, :] @ Q.mT
    scores = query @ (x @ K.mT).mT / Q.shape[-2] ** 0.5
    return (scores.softmax(-1) @ (x @ V.mT) @ out.mT)[..., 0, :]


def anisotropic(values: list[float]) -> Tensor:
    """A diagonal matrix."""
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def relu(samples: int = 2048) -> Problem:
    """A hidden layer of 3 units with biases.

    Of many samples: of few, those beside a kink make the moments' dependence on lr a staircase.
    """
    draws = normal(280)
    teacher = (1.2 * frame(draws, 3, 3), 0.3 * draws(3, 1), 1.2 * frame(draws, 3, 3))
    pairs = (Pair("units", ((0, False), (1, False)), ((2, True),), False),)
    inputs, root = sphere(draws, samples, 3), anisotropic([0.3, 0.6, 0.9])
    return Problem("ReLU units", relu_outputs, teacher, inputs, root, pairs, 0.03)


def modulus(samples: int = 2048) -> Problem:
    """All units of two hidden layers, 3 and 2, at once.

    Of units |z|, which are positively homogeneous like ReLU. Deep ReLU networks of a few units have
    Hessian eigenvalues of a hundredth and less, along which label noise moves the function itself.
    """
    draws = normal(120)
    teacher = (
        1.2 * frame(draws, 3, 3),
        0.3 * draws(3, 1),
        1.4 * frame(draws, 2, 3),
        1.2 * frame(draws, 3, 2),
    )
    pairs = (
        Pair("first hidden layer", ((0, False), (1, False)), ((2, True),), False),
        Pair("second hidden layer", ((2, False),), ((3, True),), False),
    )
    inputs, root = sphere(draws, samples, 3), anisotropic([0.3, 0.6, 0.9])
    return Problem("two hidden layers", modulus_outputs, teacher, inputs, root, pairs, 0.014)


def linear(depth: int, samples: int = 128) -> Problem:
    """Layers of 3 units, data and noise of unlike variances."""
    draws = normal(depth)
    inputs = sphere(draws, samples, 3) @ anisotropic([0.7, 1.0, 1.3])
    strong = anisotropic([0.8, 1.0, 1.25])
    teacher = tuple(frame(draws, 3, 3) @ strong @ frame(draws, 3, 3) for _ in range(depth))
    pairs = tuple(
        Pair(f"layers {i + 1}, {i + 2}", ((i, False),), ((i + 1, True),), True)
        for i in range(depth - 1)
    )
    name = "factorisation" if depth == 2 else f"deep linear, {depth} layers"
    root = anisotropic([0.3, 0.5, 0.8])
    return Problem(
        name, linear_outputs, teacher, inputs, root, pairs, 0.035 if depth == 2 else 0.022
    )


def attention(samples: int = 128) -> Problem:
    """A head of 2 dimensions on 4 tokens of 3."""
    draws = normal(9)
    sizes = ((2, 3), (2, 3), (2, 3), (3, 2))
    teacher = tuple(frame(draws, *size) for size in sizes)
    pairs = (
        Pair("Q, K", ((0, False),), ((1, False),), True),
        Pair("V, O", ((2, False),), ((3, True),), True),
    )
    root = anisotropic([0.3, 0.5, 0.8])
    inputs = sphere(draws, samples, 4, 3)
    return Problem("attention", head_outputs, teacher, inputs, root, pairs, 0.05)


def signed(points: Tensor) -> Tensor:
    """Points [.., n] with all changes of their coordinates' signs: [2^n, .., n]."""
    n = points.shape[-1]
    signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0]).double()] * n)
    return signs.view(-1, *[1] * (points.dim() - 1), n) * points


def linear_in_one_basis(depth: int, samples: int = 16) -> Problem:
    """The same, where layers and both covariances are diagonal."""
    draws = normal(10 + depth)
    inputs = signed(sphere(draws, samples, 3) @ anisotropic([0.7, 1.0, 1.3]))
    strong = torch.tensor([0.8, 1.0, 1.25]).double()
    teacher = tuple(torch.diag(strong.roll(i)) for i in range(depth))
    general = linear(depth)
    name = f"{general.name}, one basis"
    lr = 0.045 if depth == 2 else 0.03
    return replace(general, name=name, teacher=teacher, inputs=inputs.flatten(0, 1), lr=lr)


def attention_in_one_basis(samples: int = 16) -> Problem:
    """The same, where changing the sign of a coordinate changes that of one of the head's."""
    draws = normal(59)
    inputs = signed(sphere(draws, samples, 4, 3)).flatten(0, 1)
    first = torch.eye(2, 3).double()
    teacher = tuple(anisotropic(values) @ first for values in ([1.0, 1.1], [1.0, 1.1], [1.4, 1.2]))
    out = first.mT @ anisotropic([1.4, 1.5])
    general = attention()
    name = f"{general.name}, one basis"
    return replace(general, name=name, teacher=(*teacher, out), inputs=inputs)


def problems() -> dict[str, Problem]:
    """By the names under which they are kept."""
    return {
        "relu": relu(),
        "modulus": modulus(),
        "factorisation": linear(2),
        "deep": linear(3),
        "attention": attention(),
        "factorisation_one": linear_in_one_basis(2),
        "deep_one": linear_in_one_basis(3),
        "attention_one": attention_in_one_basis(),
    }
