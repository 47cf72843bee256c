"""Hand-made optimizers of factors, for one adaptation or for many side by side.

Each is a ``torch.optim.Optimizer`` over pairs (A, B), given one after the other as LoRA-RITE takes
them. Parameters may have leading axes; ``lr`` is a number, or a tensor that broadcasts with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Number = float | Tensor
Pair = tuple[Tensor, Tensor]


def solve(gram: Tensor, right: Tensor, damping: Number) -> Tensor:
    """(gram + damping I)^-1 right, for Gram matrices [.., k, k]."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    # Unchecked: a member that has diverged must not stop the others.
    return torch.linalg.solve_ex(gram + damping * eye, right).result


def scaled(A: Tensor, B: Tensor, G_A: Tensor, G_B: Tensor, damping: Number) -> Pair:
    """The gradients of ScaledGD: (B^T B + e I)^-1 G_A and G_B (A A^T + e I)^-1.

    Args:
        A: [.., k, in].
        B: [.., out, k].
        G_A: the loss's gradient by A.
        G_B: the loss's gradient by B.
        damping: e; with 0 the step in BA is, to first order, the same in every frame.

    References:
        Tong, Ma and Chi, Accelerating ill-conditioned low-rank matrix estimation via scaled
        gradient descent (2021); Zhang and Pilanci, Riemannian preconditioned LoRA for fine-tuning
        foundation models (2024).
    """
    return solve(B.mT @ B, G_A, damping), solve(A @ A.mT, G_B.mT, damping).mT


class OfPairs(torch.optim.Optimizer):
    """An optimizer of pairs of factors.

    Args:
        pairs: (A, B) of each layer.
        lr: rate.
    """

    def __init__(self, pairs: Sequence[Pair], lr: Number, **options: Any) -> None:
        self.pairs = list(pairs)
        params = [factor for pair in pairs for factor in pair]
        # In the groups, so that a schedule finds it there; torch's own check wants one number.
        super().__init__(params, {"lr": lr, **options})

    def gradients(self) -> list[Pair]:
        """Of each pair."""
        found = []
        for A, B in self.pairs:
            assert A.grad is not None
            assert B.grad is not None
            found.append((A.grad, B.grad))
        return found


class ScaledGD(OfPairs):
    """A <- A - lr (B^T B + e I)^-1 G_A,   B <- B - lr G_B (A A^T + e I)^-1.

    Args:
        pairs: (A, B) of each layer.
        lr: rate.
        damping: e.
    """

    def __init__(self, pairs: Sequence[Pair], lr: Number, damping: Number) -> None:
        super().__init__(pairs, lr, damping=damping)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step."""
        group = self.param_groups[0]
        for (A, B), grads in zip(self.pairs, self.gradients(), strict=True):
            D_A, D_B = scaled(A, B, *grads, group["damping"])
            A -= group["lr"] * D_A
            B -= group["lr"] * D_B


class Adam(OfPairs):
    """Adam with decoupled weight decay, as torch's, with a rate for each member.

    Args:
        pairs: (A, B) of each layer.
        lr: rate.
        weight_decay: decoupled.
        betas: decay of the moments.
        eps: in the denominator.

    References:
        Kingma and Ba (2015); Loshchilov and Hutter, Decoupled weight decay regularization (2019).
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        lr: Number,
        weight_decay: Number = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(pairs, lr, weight_decay=weight_decay, betas=betas, eps=eps)
        self.steps: Number = 0
        for A, B in self.pairs:
            for p in (A, B):
                self.state[p] = {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step."""
        group = self.param_groups[0]
        lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
        self.steps = self.steps + 1
        first, second = 1 - beta1**self.steps, 1 - beta2**self.steps
        for pair, grads in zip(self.pairs, self.gradients(), strict=True):
            for p, grad in zip(pair, self.preconditioned(pair, grads), strict=True):
                m, v = self.state[p]["m"], self.state[p]["v"]
                m.lerp_(grad, 1 - beta1)
                v.lerp_(grad.square(), 1 - beta2)
                p -= lr * _like(group["weight_decay"], p) * p
                p -= lr * (m / _like(first, p)) / ((v / _like(second, p)).sqrt_() + eps)

    def preconditioned(self, pair: Pair, grads: Pair) -> Pair:
        """What takes the gradients' place."""
        return grads


def _like(number: Number, p: Tensor) -> Number:
    return number.to(p) if isinstance(number, Tensor) else number


class RiemannianAdamW(Adam):
    """AdamW on the gradients of ScaledGD, as ``peft.optimizers.create_riemannian_optimizer``.

    Args:
        pairs: (A, B) of each layer.
        lr: rate.
        damping: e of ScaledGD.
        weight_decay: decoupled.

    References:
        Zhang and Pilanci, Riemannian preconditioned LoRA for fine-tuning foundation models (2024).
    """

    def __init__(
        self, pairs: Sequence[Pair], lr: Number, damping: Number, weight_decay: float = 0.01
    ) -> None:
        super().__init__(pairs, lr, weight_decay)
        self.damping = damping

    def preconditioned(self, pair: Pair, grads: Pair) -> Pair:
        """The gradients of ScaledGD."""
        return scaled(*pair, *grads, self.damping)
