"""Where a step in W = B A goes, beside the directions of ScaledGD and Gauss-Newton.

    dW = B dA + dB A + dB dA,   cos = <dW, D> / (|dW| |D|), over all layers together

D is the change of W, to first order, of a step along a direction of the factors. Without damping
both directions are the same change of W in every frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from studies.lora.hand_made import Pair, scaled
from studies.lora.task import losses, pairs_of

DAMPING = 1e-6
"""Of ScaledGD, as a share of the mean eigenvalue of either Gram matrix."""
GN_DAMPING = 1e-3
"""Of Gauss-Newton, as a share of the mean eigenvalue of J^T H J."""


def gradients(model: nn.Module, X: Tensor, y: Tensor) -> list[Pair]:
    """(G_A, G_B) of each pair, of the mean loss on images."""
    factors = [factor for pair in pairs_of(model) for factor in pair]
    found = torch.autograd.grad(losses(model, X, y), factors)
    return list(zip(found[::2], found[1::2], strict=True))


def products(pairs: Sequence[Pair], steps: Sequence[Pair]) -> Tensor:
    """B dA + dB A of all pairs, in one vector."""
    return torch.cat(
        [(B @ dA + dB @ A).flatten() for (A, B), (dA, dB) in zip(pairs, steps, strict=True)]
    )


def scaled_gd(pairs: Sequence[Pair], grads: Sequence[Pair]) -> Tensor:
    """The change of W along ScaledGD: -(P_B G + G P_A) up to damping, P projections."""
    steps = []
    for (A, B), (G_A, G_B) in zip(pairs, grads, strict=True):
        size = (A.square().sum() * B.square().sum()).sqrt() / A.shape[-2]
        D_A, D_B = scaled(A, B, G_A, G_B, DAMPING * size)
        steps.append((-D_A, -D_B))
    return products(pairs, steps)


def gauss_newton(model: nn.Module, grads: Sequence[Pair], X: Tensor) -> Tensor:
    """The change of W along -(J^T H J / N + e I)^-1 G, of the factors of all layers together.

    J [N, classes, P] is the Jacobian of the logits of the images X by all factors, H = diag p - p
    p^T the Hessian of the cross-entropy. The system is solved by its N * classes rows.

    Args:
        model: the network.
        grads: of each pair.
        X: images [N, n].
    """
    pairs = [(A.detach(), B.detach()) for A, B in pairs_of(model)]
    paths = {id(p): path for path, p in model.named_parameters()}
    names = [paths[id(factor)] for pair in pairs_of(model) for factor in pair]
    weights = {name: model.get_parameter(name).detach() for name in names}

    def logits(of: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, of, (x[None],))[0]

    J = vmap(jacrev(logits), in_dims=(None, 0))(weights, X)
    flat = torch.cat([J[name].flatten(2) for name in names], 2)
    with torch.no_grad():
        p = model(X).softmax(-1)
    root = p.sqrt()
    # L^T with L L^T = diag p - p p^T.
    half = torch.diag_embed(root) - root[..., None] * p[:, None, :]
    rows = (half @ flat).flatten(0, 1) / len(X) ** 0.5
    g = torch.cat([grad.flatten() for pair in grads for grad in pair])
    gram = rows @ rows.mT
    damping = GN_DAMPING * gram.trace() / len(g)
    inner = torch.linalg.solve(gram + damping * torch.eye(len(gram)).to(gram), rows @ g)
    d = (rows.mT @ inner - g) / damping
    parts = d.split([factor.numel() for pair in pairs for factor in pair])
    shaped = [
        (a.view_as(A), b.view_as(B))
        for (A, B), a, b in zip(pairs, parts[::2], parts[1::2], strict=True)
    ]
    return products(pairs, shaped)


def cosine_between(a: Tensor, b: Tensor) -> float:
    """0 where either is zero."""
    size = a.norm() * b.norm()
    return float(a @ b / size) if size > 0 else 0.0


def condition(factor: Tensor) -> float | None:
    """The largest over the smallest singular value; None where that is 0."""
    S = torch.linalg.svdvals(factor)
    return float(S[0] / S[-1]) if S[-1] > 0 else None
