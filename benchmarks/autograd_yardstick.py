"""Coordinate-wise rules in plain batched PyTorch: ``nn.LSTMCell``, autograd left to itself.

All trajectories side by side, a row a coordinate; inner gradients by ``torch.autograd.grad``, the
exponential by ``torch.matrix_exp``, the meta-gradient by ``backward`` through everything. No guard,
no measurement of drift and no refinement of the action: it does less than the package.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.parameters import Network, adam, linear, load_cell
from metaopt import build
from metaopt.outer_schedule import schedule
from metaopt.rules.features import LOG_RANGE
from metaopt.schema import TrainConfig
from metaopt.statistics import FLOOR
from metaopt.streams import Stream

State = list[tuple[Tensor, Tensor]]


class AutogradStep:
    """Meta-training of a coordinate-wise configuration, a window at a time.

    Args:
        config: of the run.
        initial: the rules to begin with.
        device: where it computes.
    """

    def __init__(
        self, config: TrainConfig, initial: Mapping[str, Network], device: torch.device
    ) -> None:
        self.config = config
        self.device = device
        self.family = build.task_family(config.task)
        self.networks = {name: _Cells(network) for name, network in initial.items()}
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
            group["lr"] = rule.outer_lr * factor
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
        batch, dtype = config.meta.batch, build.DTYPES[config.dtype]
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
        """[rows, features] -> [B, coordinates]."""
        own = self.networks[name]
        rule = self.config.rules.by_name()[name]
        zero = rows.new_zeros(len(rows), rule.hidden)
        states: State = self.states[name] or [(zero, zero) for _ in own.cells]
        new = []
        for cell, state in zip(own.cells, states, strict=True):
            rows, c = cell(rows, state)
            new.append((rows, c))
        self.states[name] = new
        return rule.scale * own.head(rows).view(len(self.X), -1)

    def _step(self) -> Tensor:
        A, B = self.W1.detach().requires_grad_(), self.W2.detach().requires_grad_()
        loss, H = self._loss(A, B)
        G = torch.autograd.grad(loss.sum(), (A, B))
        W, loss, H = (A.detach(), B.detach()), loss.detach(), H.detach()
        f = self._network("update", update_rows(W, G, loss))
        split = A[0].numel()
        W1 = self.W1 + f[:, :split].view_as(A)
        W2 = self.W2 + f[:, split:].view_as(B)
        teleporter = self.config.teleporter
        if teleporter is not None:
            T = self._network("teleport", generator_rows(W, G, loss, H)).view_as(H @ H.mT)
            T = T / (1 + T.square().sum((1, 2), keepdim=True) / teleporter.max_norm**2).sqrt()
            slope = self.config.task.slope
            Z = W1 @ self.X
            moved = torch.matrix_exp(T) @ nn.functional.leaky_relu(Z, slope)
            W1 = W1 + (nn.functional.leaky_relu(moved, 1 / slope) - Z) @ self.X_pinv
            W2 = W2 @ torch.matrix_exp(-T)
        self.W1, self.W2 = W1, W2
        return self._loss(W1, W2)[0]


def update_rows(W: tuple[Tensor, ...], G: tuple[Tensor, ...], loss: Tensor) -> Tensor:
    """Features of every weight, [B * P, 5]."""
    layers = []
    for weight, g in zip(W, G, strict=True):
        log = g.abs().log().div(LOG_RANGE).clamp(min=-1)
        sign = (g * torch.e**LOG_RANGE).clamp(-1, 1)
        columns = (log, sign, over_rms(g), weight, log_loss(loss).expand_as(g))
        layers.append(torch.stack(columns, dim=-1).flatten(1, 2))
    return torch.cat(layers, dim=1).flatten(0, 1)


def generator_rows(W: tuple[Tensor, ...], G: tuple[Tensor, ...], loss: Tensor, H: Tensor) -> Tensor:
    """Features of every entry of the generator, [B * k^2, 9]."""
    (W1, W2), (G1, G2) = W, G
    HHt = H @ H.mT
    W2tG2 = over_rms(W2.mT @ G2)
    columns = (
        HHt / HHt.diagonal(dim1=1, dim2=2).mean(1)[:, None, None],
        over_rms(G2.mT @ G2),
        over_rms(G1 @ G1.mT),
        W2tG2,
        W2tG2.mT,
        over_rms(W2.mT @ W2),
        over_rms(W1 @ W1.mT),
        torch.eye(HHt.shape[1], dtype=HHt.dtype, device=HHt.device).expand_as(HHt),
        log_loss(loss).expand_as(HHt),
    )
    return torch.stack(columns, dim=-1).flatten(0, 2)


def over_rms(x: Tensor) -> Tensor:
    """x over its root mean square within each task."""
    return x / x.square().mean((1, 2), keepdim=True).sqrt()


def log_loss(loss: Tensor) -> Tensor:
    """log(L) / p, [B, 1, 1]."""
    return loss.clamp(min=FLOOR).log()[:, None, None] / LOG_RANGE


class _Cells(nn.Module):
    """LSTM cells and a head."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.cells = nn.ModuleList(_cell(network, layer) for layer in range(len(network.b)))
        self.head = linear(network)


def _cell(network: Network, layer: int) -> nn.LSTMCell:
    W_x = network.W_x[layer]
    cell = nn.LSTMCell(W_x.shape[1], W_x.shape[0] // 4, dtype=W_x.dtype, device=W_x.device)
    load_cell(cell, network, layer)
    return cell
