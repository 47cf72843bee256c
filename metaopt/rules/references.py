"""References: what is possible with more than first-order information, for orientation only.

| name      | reads                                | step                                          |
| solve W2  | Y and the hidden activations H       | W2 = Y H^+ once, then nothing                 |
| whiten W2 | H H^T and its inverse square root    | g = (H H^T)^-1/2 once, then W2 - grad_{W2} L  |
| K-FAC     | Kronecker factors of the Gauss-Newton matrix | damped, on all layers                 |

W2 stands for the last layer and H for its input, whatever the depth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metaopt.base.network import Weights, forward
from metaopt.rules.composed import Optimizer, Step
from metaopt.symmetry.actions import LayerPair, ThroughData
from metaopt.symmetry.maps import GroupElement
from metaopt.tasks.base import KnownNetwork, Observation, Problem, Tasks
from metaopt.teleport.engine import TeleportReport, known_network
from metaopt.teleport.guard import drift


class SolveLast(Optimizer[Tensor]):
    """W_L = Y H^+ in the first step, computed in float64; all other weights stay.

    Of least norm where H has not full row rank.
    """

    def initial_state(self, tasks: Tasks, observation: Observation) -> Tensor:
        """The solution W_L, [B, m, k]."""
        Y = known_network(tasks).Y
        H = observation.inputs[-1]
        return (Y.double() @ torch.linalg.pinv(H.double())).to(H.dtype)

    def step(
        self, weights: Weights, observation: Observation, state: Tensor, problem: Problem
    ) -> Step[Tensor]:
        """Put the solution in its place."""
        return Step((*weights[:-1], state), state)


def whitening(H: Tensor) -> tuple[GroupElement, Tensor]:
    """g = (H H^T + epsilon I)^-1/2 with its inverse, and the generator T = log g.

    epsilon is the rounding of the largest eigenvalue: without effect where H has full row rank.

    Args:
        H: float64 [B, k, N].
    """
    eigenvalues, U = torch.linalg.eigh(H @ H.mT)
    rounding = max(H.shape[-2:]) * torch.finfo(H.dtype).eps
    damped = eigenvalues.clamp(min=0) + rounding * eigenvalues[:, -1:]
    g, g_inv, T = (
        (U * of_eigenvalues[:, None]) @ U.mT
        for of_eigenvalues in (damped.rsqrt(), damped.sqrt(), -0.5 * damped.log())
    )
    return GroupElement(g, g_inv), T


class WhitenLast(Optimizer[int]):
    """The first step teleports the last pair of layers by g = (H H^T)^-1/2, all others descend.

        H' = g H,  H' H'^T = I,   then   W_L - grad_{W_L} L = W_L - (W_L H' - Y) H'^T = Y H'^T

    The unit step solves for W_L at once, up to rounding; the steps after it take that away. The
    element is far from the identity and bounded by no norm limit, so that it goes through the
    action in float64 and past the engine; its drift is measured and reported all the same.
    """

    def __init__(self) -> None:
        self.action = ThroughData()

    def initial_state(self, tasks: Tasks, observation: Observation) -> int:
        """t = 0; raises ``InexactActionError`` where the shapes say that H' is not g H."""
        s = known_network(tasks).s
        A = observation.inputs[-2]
        self.action.require_exact(s, samples=A.shape[-1], inputs=A.shape[-2])
        return 0

    def step(
        self, weights: Weights, observation: Observation, state: int, problem: Problem
    ) -> Step[int]:
        """Teleport first, unit steps on W_L after that."""
        data = known_network(problem)
        if state == 0:
            moved, report = self._whiten(weights, observation.inputs[-2], data)
            return Step(moved, 1, report)
        weights = (*weights[:-1], weights[-1] - observation.grads[-1])
        return Step(weights, state + 1, TeleportReport.none(weights, data))

    def _whiten(
        self, weights: Weights, inputs: Tensor, data: KnownNetwork
    ) -> tuple[Weights, TeleportReport]:
        A = inputs.double()
        W_in, W_out = (W.double() for W in weights[-2:])
        element, T = whitening(data.s(W_in @ A))
        pair = LayerPair(W_in, W_out, data.s, inputs=A, inputs_pinv=torch.linalg.pinv(A))
        acted = self.action.act(element, pair)
        dtype = weights[-1].dtype
        moved = (*weights[:-2], acted.W_in.to(dtype), acted.W_out.to(dtype))
        report = TeleportReport.none(weights, data)
        after = forward(moved, data.X, data.s).outputs
        return moved, TeleportReport(
            (*report.generators[:-1], T.to(dtype)),
            report.scale,
            drift(report.outputs_before, after, data.target_norm),
            report.refused,
            report.outputs_before,
            report.earlier_log_ratio,
        )


class KFAC(Optimizer[None]):
    """f_l = -eta (S_l + b_l I)^-1 grad_{W_l} L (R_l + a_l I)^-1: Kronecker-factored Gauss-Newton.

        R_l = A_{l-1} A_{l-1}^T,   S_L = I,   S_l = (W_{l+1}^T S_{l+1} W_{l+1}) * (D_l D_l^T) / N

    with D_l = s'(Z_l) [B, k_l, N] and * entry by entry. R_l x S_l stands for the Gauss-Newton
    matrix of the squared error in W_l: exactly for the last layer, and for the first of two where s
    is the identity. S_l is the mean over samples of the back-propagated Gauss-Newton matrix of the
    outputs, taken layer by layer (exactly so for the last hidden layer). The damping is relative to
    the mean diagonals, a_l = sqrt(delta) tr R_l / n_l and b_l = sqrt(delta) tr S_l / k_l: the
    factored Tikhonov damping sqrt(lambda) pi, sqrt(lambda) / pi of the first paper below, with
    pi^2 = (tr R_l / n_l) / (tr S_l / k_l) and lambda = delta times the mean diagonal of R_l x S_l.
    Solved in float64.

    Args:
        lr: eta.
        damping: delta.

    References:
        Martens and Grosse, arXiv 1503.05671, sections 3 and 6.3 (K-FAC, pi);
        Botev, Ritter and Barber, arXiv 1706.03662, section 3 (the recursion, KFRA).
    """

    def __init__(self, lr: float, damping: float) -> None:
        self.lr = lr
        self.damping = damping

    def initial_state(self, tasks: Tasks, observation: Observation) -> None:
        """Nothing to remember."""
        known_network(tasks)

    def step(
        self, weights: Weights, observation: Observation, state: None, problem: Problem
    ) -> Step[None]:
        """One damped step on all layers."""
        factors = self.output_factors(observation, known_network(problem))
        stepped = []
        for W, G, A, S in zip(weights, observation.grads, observation.inputs, factors, strict=True):
            A = A.double()
            half = torch.linalg.solve_ex(self._damped(S), G.double()).result
            whole = torch.linalg.solve_ex(self._damped(A @ A.mT), half.mT).result.mT
            stepped.append(W - (self.lr * whole).to(W.dtype))
        return Step(tuple(stepped), None)

    def output_factors(self, observation: Observation, data: KnownNetwork) -> list[Tensor]:
        """S_1 .. S_L, float64."""
        weights = [W.double() for W in observation.weights]
        m = weights[-1].shape[-2]
        S = torch.eye(m, dtype=torch.float64, device=data.X.device).expand(len(data.X), m, m)
        factors = [S]
        for W, A in zip(reversed(weights[1:]), reversed(observation.inputs[1:]), strict=True):
            # s keeps the sign, so that its slope can be read off A_l = s(Z_l).
            D = data.s.derivative(A.double())
            S = (W.mT @ S @ W) * (D @ D.mT) / A.shape[-1]
            factors.append(S)
        return factors[::-1]

    def _damped(self, factor: Tensor) -> Tensor:
        mean = torch.diagonal(factor, dim1=-2, dim2=-1).mean(-1)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        return factor + math.sqrt(self.damping) * mean[:, None, None] * identity
