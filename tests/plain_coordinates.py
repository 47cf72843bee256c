"""Meta-training of coordinate-wise rules in plain PyTorch, written a second time to hold the first.

``nn.LSTMCell``, and autograd left to itself.

All trajectories side by side, a row a coordinate; inner gradients by ``torch.autograd.grad``, the
exponential by ``torch.matrix_exp``, the meta-gradient by ``backward`` through everything. No guard,
no measurement of drift and no refinement of the action: it does less than the package.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from support import basis_of
from torch import Tensor, nn

from benchmarks.plain_loop import Rule, adam, cells, linear, load_cell
from metaopt.base.fields import DTYPES
from metaopt.base.loss_statistics import FLOOR
from metaopt.base.streams import Stream
from metaopt.meta.config import TrainConfig
from metaopt.meta.schedule import schedule
from metaopt.rules.learned.directions import (
    FREE_STEP,
    LARGEST_LOG_STEP,
    LARGEST_WHITENING,
    BasisConfig,
)
from metaopt.rules.learned.features import LOG_RANGE
from metaopt.rules.learned.sized import LARGEST_SIZE, LEAST_EIGENVALUE, LEAST_SIZE, SIZED
from metaopt.tasks.build import task_family

State = list[tuple[Tensor, Tensor]]


class PlainCoordinates:
    """Meta-training of a coordinate-wise configuration, a window at a time.

    Args:
        config: of the run.
        initial: the rules to begin with.
        device: where it computes.
    """

    def __init__(
        self, config: TrainConfig, initial: Mapping[str, Rule], device: torch.device
    ) -> None:
        self.config = config
        self.device = device
        self.family = task_family(config.task)
        self.networks = {name: _Cells(rule) for name, rule in initial.items()}
        self.adam = adam(config, self.networks)
        self.drawn = self.windows = self.steps_left = 0
        self.states: dict[str, State] = {}
        self.X: Tensor
        self.Y: Tensor
        self.X_pinv: Tensor
        self.W1: Tensor
        self.W2: Tensor

    def window(self) -> float:
        """One outer step; returns the meta-loss."""
        meta = self.config.meta
        meta_loss = (self.losses() + meta.epsilon).log().mean()
        self.adam.zero_grad()
        meta_loss.backward()
        self.windows += 1
        factor = schedule(meta, self.windows)
        for group, rule in zip(
            self.adam.param_groups, self.config.rules.by_name().values(), strict=True
        ):
            if meta.clip is not None:
                torch.nn.utils.clip_grad_norm_(group["params"], meta.clip)
            group["lr"] = rule.learning_rate * factor
        self.adam.step()
        return meta_loss.item()

    def losses(self) -> Tensor:
        """L(w_1) .. L(w_K), [K, B], of the window that is next, with its graph."""
        if self.steps_left == 0:
            self._draw()
        self.W1, self.W2 = self.W1.detach(), self.W2.detach()
        self.states = {
            name: [(h.detach(), c.detach()) for h, c in state]
            for name, state in self.states.items()
        }
        self.steps_left -= self.config.meta.unroll
        return torch.stack([self._step() for _ in range(self.config.meta.unroll)])

    def _draw(self) -> None:
        config = self.config
        batch, dtype = config.meta.batch, DTYPES[config.dtype]
        tasks = self.family.sample(Stream.TRAIN, config.seed, self.drawn, batch, dtype, self.device)
        self.drawn += batch
        self.X, self.Y, (self.W1, self.W2) = tasks.X, tasks.Y, tasks.initial
        self.X_pinv = torch.linalg.pinv(self.X)
        self.states = {name: [] for name in self.networks}
        self.steps_left = config.meta.steps

    def _loss(self, W1: Tensor, W2: Tensor) -> tuple[Tensor, Tensor]:
        H = nn.functional.leaky_relu(W1 @ self.X, self.config.task.slope)
        return 0.5 * (self.Y - W2 @ H).square().sum((1, 2)), H

    def _network(self, name: str, rows: Tensor) -> Tensor:
        """Features [rows, F] -> outputs [B, coordinates, D]."""
        own = self.networks[name]
        rule = basis_of(self.config.rules.by_name()[name])
        features, zero = rows, rows.new_zeros(len(rows), rule.hidden)
        states: State = self.states[name] or [(zero, zero) for _ in own.cells]
        new = []
        for cell, state in zip(own.cells, states, strict=True):
            rows, c = cell(rows, state)
            new.append((rows, c))
        self.states[name] = new
        outputs = own.head(rows)
        if own.wire is not None:
            wired = own.wire(features)
            outputs = torch.cat(
                [outputs[:, :2] + wired[:, :2], wired[:, 2:], outputs[:, 2:]], dim=1
            )
        return rule.scale * outputs.unflatten(0, (len(self.X), -1))

    def _step(self) -> Tensor:
        A, B = self.W1.detach().requires_grad_(), self.W2.detach().requires_grad_()
        loss, H = self._loss(A, B)
        G = torch.autograd.grad(loss.sum(), (A, B))
        W, loss, H = (A.detach(), B.detach()), loss.detach(), H.detach()
        seen = Seen(W, G, (self.X, H), loss)
        rules = self.config.rules.by_name()
        f1, f2 = updates(
            seen, self._network("update", update_rows(seen)), basis_of(rules["update"])
        )
        W1, W2 = self.W1 + f1, self.W2 + f2
        teleporter = self.config.teleporter
        if teleporter is not None:
            T = generator(
                seen, self._network("teleport", generator_rows(seen)), basis_of(rules["teleport"])
            )
            T = T / (1 + T.square().sum((1, 2), keepdim=True) / teleporter.max_norm**2).sqrt()
            slope = self.config.task.slope
            Z = W1 @ self.X
            moved = torch.matrix_exp(T) @ nn.functional.leaky_relu(Z, slope)
            W1 = W1 + (nn.functional.leaky_relu(moved, 1 / slope) - Z) @ self.X_pinv
            W2 = W2 @ torch.matrix_exp(-T)
        self.W1, self.W2 = W1, W2
        return self._loss(W1, W2)[0]


class Seen:
    """What features and directions both need.

    Args:
        W: (W1, W2).
        G: their gradients.
        A: (X, H), the inputs of the layers.
        loss: [B].
    """

    def __init__(
        self,
        W: tuple[Tensor, Tensor],
        G: tuple[Tensor, ...],
        A: tuple[Tensor, Tensor],
        loss: Tensor,
    ) -> None:
        self.W, self.G, self.A = W, G, A
        self.grams = [a @ a.mT for a in A]
        residual = 2 * loss.clamp(min=FLOOR)
        everything = residual + (W[1] @ A[1]).square().sum((1, 2))
        self.log_residual = (residual.log() - everything.log())[:, None, None] / LOG_RANGE
        self.share = (self.log_residual * (LOG_RANGE / 2)).exp()
        of_first = largest_row_sum(self.grams[0]) * largest_row_sum(W[1].mT @ W[1])
        self.N = [
            g / (c + FLOOR)
            for g, c in zip(G, (of_first, largest_row_sum(self.grams[1])), strict=True)
        ]


def update_rows(seen: Seen) -> Tensor:
    """Features of every weight, [B * P, 8]."""
    layers = []
    for i, (w, g) in enumerate(zip(seen.W, seen.G, strict=True)):
        normalised = over_rms(g)
        log = normalised.abs().log().div(LOG_RANGE).clamp(min=-1)
        sign = (normalised * torch.e**LOG_RANGE).clamp(-1, 1)
        alike = (
            seen.log_residual,
            (log_square(seen.N[i]) - log_square(w)).div(2 * LOG_RANGE).clamp(-3, 3),
            spread(seen.grams[i]),
            torch.full_like(seen.log_residual, i),
        )
        columns = (normalised, log, sign, over_rms(w), *(value.expand_as(g) for value in alike))
        layers.append(torch.stack(columns, dim=-1).flatten(1, 2))
    return torch.cat(layers, dim=1).flatten(0, 1)


def updates(seen: Seen, z: Tensor, rule: BasisConfig) -> list[Tensor]:
    """What the outputs z [B, P, 1 to 4] are read as, for each layer."""
    made = []
    parts = z.split([w[0].numel() for w in seen.W], dim=1)
    for part, w, n in zip(parts, seen.W, seen.N, strict=True):
        of = part.unflatten(1, w.shape[1:]).unbind(-1)
        if rule.basis == "entries":
            made.append(rule.free * of[0])
            continue
        if rule.basis == SIZED:
            made.append(rule.free * (size(of[0]) * of[2] + size(of[1]) * of[3]) * rms(n))
            continue
        c = of[0].mean((1, 2), keepdim=True).clamp(max=LARGEST_LOG_STEP).exp() / 2
        free = of[1] * rms(n) + of[2] * FREE_STEP * seen.share * rms(w)
        made.append(rule.free * free - c * n)
    return made


def generator_rows(seen: Seen) -> Tensor:
    """Features of every entry of the generator, [B * k^2, 10]."""
    (W1, W2), (G1, G2), HHt = seen.W, seen.G, seen.grams[1]
    W2tG2 = over_rms(W2.mT @ G2)
    columns = (
        HHt / mean_diagonal(HHt),
        over_rms(G2.mT @ G2),
        over_rms(G1 @ G1.mT),
        W2tG2,
        W2tG2.mT,
        over_rms(W2.mT @ W2),
        over_rms(W1 @ W1.mT),
        torch.eye(HHt.shape[1], dtype=HHt.dtype, device=HHt.device).expand_as(HHt),
        seen.log_residual.expand_as(HHt),
        spread(HHt).expand_as(HHt),
    )
    return torch.stack(columns, dim=-1).flatten(0, 2)


def generator(seen: Seen, z: Tensor, rule: BasisConfig) -> Tensor:
    """What the outputs z [B, k^2, 1 to 4] are read as."""
    HHt = over_rms(seen.grams[1])
    k = HHt.shape[1]
    of = z.unflatten(1, (k, k)).unbind(-1)
    if rule.basis == "entries":
        return rule.free * of[0]
    if rule.basis == SIZED:
        T = rule.free * seen.share.sqrt() * (size(of[0]) * of[2] + size(of[1]) * of[3])
    else:
        known = (HHt, over_rms(HHt @ HHt))
        T = rule.free * seen.share * of[2]
        for bound, own, direction in zip(LARGEST_WHITENING, of[:2], known, strict=True):
            T = T + bound * own.mean((1, 2), keepdim=True).tanh() * direction
    T = T / k**0.5
    growth = (T * HHt).mean((1, 2), keepdim=True) * k / mean_diagonal(HHt)
    T = T - growth * torch.eye(k, dtype=T.dtype, device=T.device)
    if rule.basis != SIZED:
        return T
    r = farthest(seen.grams[1].detach())
    return T * r / (r.square() + T.square().sum((1, 2), keepdim=True)).sqrt()


def farthest(HHt: Tensor) -> Tensor:
    """The length that a generator is kept below, [B, 1, 1]."""
    S = HHt / mean_diagonal(HHt) + LEAST_EIGENVALUE * torch.eye(HHt.shape[1]).to(HHt)
    return (-2 * torch.logdet(S / (1 + LEAST_EIGENVALUE)))[:, None, None].sqrt()


def size(z: Tensor) -> Tensor:
    """exp(p z) of the mean over a layer, [B, 1, 1]."""
    mean = z.mean((1, 2), keepdim=True)
    return (LOG_RANGE * mean.clamp(LEAST_SIZE, LARGEST_SIZE)).exp()


def rms(x: Tensor) -> Tensor:
    """Root mean square of each matrix, [B, 1, 1]."""
    return x.square().mean((1, 2), keepdim=True).sqrt()


def over_rms(x: Tensor) -> Tensor:
    """x over its root mean square within each task."""
    return x / rms(x)


def log_square(x: Tensor) -> Tensor:
    """log ||x||_F^2, [B, 1, 1]."""
    return x.square().sum((1, 2), keepdim=True).clamp(min=FLOOR).log()


def mean_diagonal(S: Tensor) -> Tensor:
    """tr S / k, [B, 1, 1]."""
    return S.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]


def largest_row_sum(S: Tensor) -> Tensor:
    """max_i sum_j |S_ij|, [B, 1, 1]."""
    return S.abs().sum(2).amax(1)[:, None, None]


def spread(S: Tensor) -> Tensor:
    """log(max_i sum_j |S_ij| / (tr S / k)) / 3, [B, 1, 1]."""
    return (largest_row_sum(S) / mean_diagonal(S)).log() / 3


class _Cells(nn.Module):
    """LSTM cells and a head."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.cells = nn.ModuleList(_cell(rule, layer) for layer in range(cells(rule)))
        self.head = linear(rule)
        self.wire = linear(rule, "wire") if "wire.W" in rule else None


def _cell(rule: Rule, layer: int) -> nn.LSTMCell:
    W_x = rule[f"lstm.W_x.{layer}"]
    cell = nn.LSTMCell(W_x.shape[1], W_x.shape[0] // 4).to(W_x)
    load_cell(cell, rule, layer)
    return cell
