"""Features: functions of one gradient evaluation that learned rules read.

All but ``raw`` and the weights themselves are normalised for each task apart or on a logarithmic
scale, and all are finite, with finite derivatives, at 0.
Coordinate-wise ones keep the order of hidden units out of sight: relabel the units, and the
features are relabelled.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from metaopt.base.loss_statistics import FLOOR
from metaopt.base.network import Weights
from metaopt.base.shipped import DEFAULT
from metaopt.rules.base import UnknownInputsError
from metaopt.tasks.base import Observation

LOG_RANGE = 10.0
"""p: gradients from e^-p up are seen on a logarithmic scale (Andrychowicz et al. 2016)."""


def signed_log(g: Tensor) -> Tensor:
    """sign(g) max(0, 1 + log|g| / p): one number of either sign over many magnitudes."""
    magnitude = 1 + g.abs().clamp(min=math.exp(-LOG_RANGE)).log() / LOG_RANGE
    return torch.sign(g) * magnitude


def log_and_sign(g: Tensor) -> tuple[Tensor, Tensor]:
    """(log|g| / p, sign g) where |g| >= e^-p, else (-1, e^p g).

    References:
        Andrychowicz et al., Learning to learn by gradient descent by gradient descent (2016),
        appendix A.
    """
    log = g.abs().clamp(min=math.exp(-LOG_RANGE)).log() / LOG_RANGE
    return log, (g * math.exp(LOG_RANGE)).clamp(-1, 1)


def rms(x: Tensor) -> Tensor:
    """Root mean square of each matrix: [.., r, c] -> [.., 1, 1], with derivative 0 at 0."""
    mean_square = x.square().mean(dim=(-2, -1), keepdim=True)
    # Of squares that have no normal number the derivative of the root can be infinite.
    is_zero = mean_square < torch.finfo(x.dtype).tiny
    return torch.where(is_zero, 0.0, (mean_square + is_zero).sqrt())


def over_rms(x: Tensor) -> Tensor:
    """x over its root mean square within each matrix: [.., r, c] -> [.., r, c]; 0 stays 0."""
    size = rms(x)
    return x / (size + (size == 0))


def over_mean_diagonal(S: Tensor) -> Tensor:
    """S over the mean of its diagonal: [.., k, k] -> [.., k, k]; 0 stays 0."""
    mean = torch.diagonal(S, dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return S / (mean + FLOOR)


PRODUCTS = 7
SQUARES = "squares"
"""In the state of update rules: ``Seen.squares``."""


class Seen:
    """One observation, and what features and directions both need of it, computed once.

    Args:
        observation: one gradient evaluation.
        earlier: the sum of ``squares`` over the steps before it, [B]; 0 by default.
    """

    def __init__(self, observation: Observation, earlier: Tensor | None = None) -> None:
        self.observation = observation
        self._earlier = earlier

    @cached_property
    def squares(self) -> Tensor:
        """S_t = sum_{s <= t} mean g_s^2 over the entries that move at s, [B].

        Where the inputs of the layers are known nothing is added: natural steps then have a size
        of their own (``curvatures``).
        """
        G = self.observation.grads
        earlier = G[0].new_zeros(G[0].shape[0]) if self._earlier is None else self._earlier
        if self.observation.inputs:
            return earlier
        total = torch.stack([g.square().sum(dim=(1, 2)) for g in G]).sum(0)
        moving = torch.stack([g.count_nonzero(dim=(1, 2)) for g in G]).sum(0)
        return earlier + total / moving.clamp(min=1)

    @property
    def residual_known(self) -> bool:
        """Whether it is known how much of the outputs is wrong: the loss and the layers' inputs."""
        return self.observation.loss is not None and bool(self.observation.inputs)

    @cached_property
    def log_residual(self) -> Tensor:
        """log(||f(w) - Y||^2 / (||f(w) - Y||^2 + ||f(w)||^2)) / p, [B], with 2 L = ||f(w) - Y||^2.

        How much of the outputs is wrong, whatever the scale of targets and weights; 0 (all of it)
        where that is not known (``residual_known``).
        """
        W, inputs, loss = self.observation.weights, self.observation.inputs, self.observation.loss
        if loss is None or not inputs:
            return W[0].new_zeros(W[0].shape[0])
        outputs = torch.bmm(W[-1], inputs[-1]).square().sum(dim=(-2, -1))
        residual = 2 * loss.clamp(min=FLOOR)
        # The quotient itself could fall below what float32 holds.
        return (residual.log() - (residual + outputs).log()) / LOG_RANGE

    @cached_property
    def curvatures(self) -> Tensor:
        """r(A_{l-1} A_{l-1}^T) prod_{j > l} r(W_j^T W_j), r the largest row sum: [B, L].

        No eigenvalue of the Gauss-Newton matrix of layer l under the squared loss is larger (for
        slopes up to 1).
        """
        found: list[Tensor] = []
        behind = self.observation.grads[0].new_ones(self.observation.grads[0].shape[0])
        layers = zip(self.observation.weights, self.observation.inputs, strict=True)
        for W, A in reversed([*layers]):
            found.append(behind * largest_row_sum(torch.bmm(A, A.mT)))
            behind = behind * largest_row_sum(torch.bmm(W.mT, W))
        return torch.stack(found[::-1], dim=1)

    @cached_property
    def natural(self) -> Weights:
        """N_l = G_l over the curvature of its layer.

        -N_l is a step of gradient descent in that layer that cannot overshoot, whatever the scales
        of data and weights; for W_L it is Newton's where A A^T is a multiple of the identity. Where
        the inputs of the layers are not known, N_l = G_l / sqrt(S_t) (``squares``): its root mean
        square is about 1 at the first step, and falls with the gradient, and with 1 / sqrt(t) where
        noise keeps that from vanishing, so that steps fade by themselves.

        References:
            Ward, Wu and Bottou, AdaGrad stepsizes: sharp convergence over nonconvex landscapes
            (2019), for sums over all entries.
        """
        G = self.observation.grads
        if not self.observation.inputs:
            # The derivative of a root is infinite at 0, where all gradients are 0.
            total = torch.where(self.squares < FLOOR, 1.0, self.squares)
            return tuple(g / total.sqrt()[:, None, None] for g in G)
        scales = (self.curvatures + FLOOR).unbind(1)
        return tuple(g / c[:, None, None] for g, c in zip(G, scales, strict=True))

    @cached_property
    def gradients_by_products(self) -> tuple[Tensor, ...]:
        """S G_l for the products S of the pair (l, l + 1), and G_L S for those of the last pair.

        Each [B, PRODUCTS, out, in].
        """
        *before, last = self.observation.grads
        found = [S @ g[:, None] for S, g in zip(self.products, before, strict=True)]
        return (*found, last[:, None] @ self.products[-1])

    @cached_property
    def products(self) -> tuple[Tensor, ...]:
        """For each adjacent pair of layers the k by k products, [B, PRODUCTS, k, k].

        H H^T, G2^T G2, G1 G1^T, W2^T G2 and its transpose, W2^T W2, W1 W1^T, each over its root
        mean square; (W1, W2) is the pair, (G1, G2) its gradients and H the activations between.

        Raises:
            UnknownInputsError: where H is not known.
        """
        if not self.observation.inputs:
            raise UnknownInputsError(
                f"it reads products of the layers' inputs, which are not known here (of a family "
                f"of your own only the loss is); {DEFAULT} does without"
            )
        W, G = self.observation.weights, self.observation.grads
        pairs = []
        for layer in range(len(W) - 1):
            W1, W2, G1, G2 = W[layer], W[layer + 1], G[layer], G[layer + 1]
            H = self.observation.inputs[layer + 1]
            factors = ((H, H.mT), (G2.mT, G2), (G1, G1.mT), (W2.mT, G2), (W2.mT, W2), (W1, W1.mT))
            found = over_rms(torch.stack([torch.bmm(a, b) for a, b in factors], dim=1))
            pairs.append(torch.cat([found[:, :4], found[:, 3:4].mT, found[:, 4:]], dim=1))
        return tuple(pairs)


LAYER_FEATURES = 4


def layer_features(seen: Seen) -> Tensor:
    """Features of every layer: [B, LAYER_FEATURES, L].

    On logarithmic scales the share of the outputs that is wrong (the same for all layers), the
    natural step over the weights, and the spread of the layer's inputs; and whether it is the last.
    """
    observation = seen.observation
    W = observation.weights
    batch = W[0].shape[0]
    ratios = [_log_ratio(N, w) for N, w in zip(seen.natural, W, strict=True)]
    if observation.inputs:
        spreads = torch.stack([spread(torch.bmm(A, A.mT)) for A in observation.inputs], dim=1)
    else:
        spreads = W[0].new_zeros(batch, len(W))
    columns = (
        seen.log_residual[:, None].expand(-1, len(W)),
        torch.stack(ratios, dim=1),
        spreads,
        _last(W).expand(batch, -1),
    )
    return torch.stack(columns, dim=1)


def _last(W: Weights) -> Tensor:
    """1 for the last layer, 0 for the others, [L]; made without waiting for the device."""
    return (torch.arange(len(W), device=W[0].device) == len(W) - 1).to(W[0].dtype)


def _log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """log(||a||_F / ||b||_F) / p, [B], within +-3."""
    logs = [x.square().sum(dim=(-2, -1)).clamp(min=FLOOR).log() for x in (a, b)]
    return ((logs[0] - logs[1]) / (2 * LOG_RANGE)).clamp(-3, 3)


def largest_row_sum(S: Tensor) -> Tensor:
    """max_i sum_j |S_ij|, [..]: no eigenvalue of S is larger."""
    return S.abs().sum(-1).amax(-1)


def spread(S: Tensor) -> Tensor:
    """log(max_i sum_j |S_ij| / (tr S / k)) / 3, [..]: 0 for a multiple of the identity."""
    mean = torch.diagonal(S, dim1=-2, dim2=-1).mean(-1)
    return ((largest_row_sum(S) + FLOOR) / (mean + FLOOR)).log() / 3


UPDATE_FEATURES = 4 + LAYER_FEATURES


def update_features(seen: Seen) -> Tensor:
    """Features of every weight: [B, UPDATE_FEATURES, P].

    The gradient over its root mean square within the layer, logarithm and sign of that, the weight
    over its root mean square, and the features of its layer. Columns run over layers, then weights.
    """
    W, G = seen.observation.weights, seen.observation.grads
    normalised = torch.cat([over_rms(g).flatten(1) for g in G], dim=1)
    log, sign = log_and_sign(normalised)
    relative = torch.cat([over_rms(w).flatten(1) for w in W], dim=1)
    of_layers = layer_features(seen)
    per_weight = [
        of_layers[:, :, layer : layer + 1].expand(-1, -1, w[0].numel()) for layer, w in enumerate(W)
    ]
    own = torch.stack([normalised, log, sign, relative], dim=1)
    return torch.cat([own, torch.cat(per_weight, dim=2)], dim=1)


INFORMED_FEATURES = UPDATE_FEATURES + PRODUCTS


def informed_features(seen: Seen) -> Tensor:
    """``update_features``, and what m2 sees brought to the weights: [B, INFORMED_FEATURES, P].

    For each product S of ``Seen.products`` the gradient times it over its root mean square: S G_l
    for the first layer of its pair, G_L S for the last layer of all. The control for information.
    """
    times = [over_rms(g).flatten(2) for g in seen.gradients_by_products]
    return torch.cat([update_features(seen), torch.cat(times, dim=2)], dim=1)


GENERATOR_FEATURES = 10


def generator_features(seen: Seen) -> Tensor:
    """Features of every entry of every generator: [B, GENERATOR_FEATURES, K].

    The products (H H^T over its mean diagonal instead), the identity; and, alike for all entries,
    the logarithm of the share of the outputs that is wrong, and the spread of H H^T.
    K = sum of k_l^2 over the pairs.
    """
    residual = seen.log_residual[:, None, None, None]
    pairs = []
    for products in seen.products:
        HHt = products[:, :1]
        columns = (
            over_mean_diagonal(HHt),
            products[:, 1:],
            torch.eye(HHt.shape[-1], dtype=HHt.dtype, device=HHt.device).expand_as(HHt),
            residual.expand_as(HHt),
            spread(HHt)[..., None, None].expand_as(HHt),
        )
        pairs.append(torch.cat(columns, dim=1).flatten(2))
    return torch.cat(pairs, dim=2)


STEP_SIZE_FEATURES = GENERATOR_FEATURES + 2


def step_size_features(seen: Seen) -> Tensor:
    """``generator_features``, and two that know the scale of a step: [B, STEP_SIZE_FEATURES, K].

    -log of the largest curvature of all layers, and of that of the pair's second layer, over p.
    Only a rule whose step size has units needs them.
    """
    features = generator_features(seen)
    logs = -(seen.curvatures + FLOOR).log() / LOG_RANGE
    sizes = generator_sizes(seen.observation)
    second = torch.cat(
        [logs[:, i + 1 : i + 2].expand(-1, k * k) for i, k in enumerate(sizes)], dim=1
    )
    largest = logs.amin(1, keepdim=True).expand_as(second)
    return torch.cat([features, torch.stack([largest, second], dim=1)], dim=1)


def split_weights(rows: Tensor, observation: Observation) -> tuple[Tensor, ...]:
    """[B, P] -> one [B, out, in] for each layer: the inverse of flattening."""
    shapes = [W.shape for W in observation.weights]
    parts = rows.split([shape[1] * shape[2] for shape in shapes], dim=1)
    return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))


def generator_sizes(observation: Observation) -> list[int]:
    """k_l of each adjacent pair of layers."""
    return [W.shape[1] for W in observation.weights[:-1]]


def split_generators(rows: Tensor, observation: Observation) -> tuple[Tensor, ...]:
    """[B, K] -> one [B, k_l, k_l] for each adjacent pair of layers."""
    sizes = generator_sizes(observation)
    parts = rows.split([k * k for k in sizes], dim=1)
    return tuple(part.reshape(-1, k, k) for part, k in zip(parts, sizes, strict=True))
