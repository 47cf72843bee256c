"""Where a step in W = B A goes, beside the directions of ScaledGD and Gauss-Newton.

    dW = B dA + dB A + dB dA,   cos = <dW, D> / (|dW| |D|), over all layers together

D is the change of W, to first order, of a step along a direction of the factors. Without damping
both directions are the same change of W in every frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from studies.lora.hand_made import Pair, scaled
from studies.lora.task import losses, pairs_of

DAMPING = 1e-6
"""Of ScaledGD, as a share of the mean eigenvalue of either Gram matrix."""
DAMPED_AT = 1e-2
"""Damping of Gauss-Newton, as a share of the curvature along the gradient."""
RESIDUAL = 1e-3
"""Of its system, as a share of the gradient."""


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


def gauss_newton(
    model: nn.Module, grads: Sequence[Pair], X: Tensor, iterations: int = 100
) -> Tensor:
    """The change of W along -(M + e I)^-1 G, M = J^T H J / N, of all layers' factors together.

    J is the Jacobian of the logits of N images by all factors, H = diag p - p p^T the Hessian of
    the cross-entropy; e is a hundredth of the curvature along the gradient, <G, M G> / <G, G>. The
    system is solved by conjugate gradients.

    Args:
        model: the network.
        grads: of each pair, of the mean loss on the images.
        X: images [N, n].
        iterations: at most; they end where the residual has fallen to a thousandth.
    """
    pairs = [(A.detach(), B.detach()) for A, B in pairs_of(model)]
    paths = {id(p): path for path, p in model.named_parameters()}
    names = [paths[id(factor)] for pair in pairs_of(model) for factor in pair]
    sizes = [factor.numel() for pair in pairs for factor in pair]

    def logits(flat: Tensor) -> Tensor:
        parts = zip(names, flat.split(sizes), strict=True)
        weights = {name: part.view_as(model.get_parameter(name)) for name, part in parts}
        return functional_call(model, weights, (X,))

    w = torch.cat([factor.flatten() for pair in pairs for factor in pair])
    outputs, backward, *_ = vjp(logits, w)
    p = outputs.softmax(-1)

    def product(v: Tensor) -> Tensor:
        of = p * jvp(logits, (w,), (v,))[1]
        return backward((of - p * of.sum(-1, keepdim=True)) / len(X))[0]

    g = torch.cat([grad.flatten() for pair in grads for grad in pair])
    damping = DAMPED_AT * (g @ product(g)) / (g @ g)
    d = _conjugate_gradients(lambda v: product(v) + damping * v, -g, iterations)
    parts = d.split(sizes)
    steps = [
        (a.view_as(A), b.view_as(B))
        for (A, B), a, b in zip(pairs, parts[::2], parts[1::2], strict=True)
    ]
    return products(pairs, steps)


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, iterations: int
) -> Tensor:
    x, residual = torch.zeros_like(right), right
    along, size = right, right @ right
    enough = RESIDUAL**2 * size
    for _ in range(iterations):
        if size <= enough:
            break
        image = product(along)
        share = size / (along @ image)
        x, residual = x + share * along, residual - share * image
        before, size = size, residual @ residual
        along = residual + size / before * along
    return x


def cosine_between(a: Tensor, b: Tensor) -> float:
    """0 where either is zero."""
    size = a.norm() * b.norm()
    return float(a @ b / size) if size > 0 else 0.0


def condition(factor: Tensor) -> float | None:
    """The largest over the smallest singular value; None where that is 0."""
    S = torch.linalg.svdvals(factor)
    return float(S[0] / S[-1]) if S[-1] > 0 else None
