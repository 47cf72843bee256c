"""Flattened rules the way published code trains them: one trajectory at a time in plain PyTorch.

``torch.nn.LSTM`` on the flattened gradient, autograd for the inner gradient, one matrix of each
kind, I + T and I - T. No guard, no measurement of drift and no refinement of the action. It begins
from the same weights as the package and draws the same tasks; a test holds their losses together,
and ``compared`` times them in turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.sweep import BUDGET, Piece, Work, trajectory_seconds
from benchmarks.timing import Side, compare
from metaopt.base.fields import DTYPES
from metaopt.base.streams import Stream
from metaopt.base.tables import markdown_table
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.tasks.build import task_family

Rule = Mapping[str, Tensor]
"""Of one learned rule, named as in the checkpoint format.

``lstm.W_x.N`` [4 h, inputs], ``lstm.W_h.N`` [4 h, h] and ``lstm.b.N`` [4 h] of cell N, gates in the
order i, f, o, u; ``head.W`` [outputs, h] and ``head.b``.
"""
SAME_RECIPE = ("meta.order=1", "meta.average=null")
"""What both sides have: first order, and no average beside it."""


class PlainLoop:
    """Meta-training by the recipe in ``configs/paper/``, a window of one trajectory at a time.

    Args:
        config: of the run; its meta-batch is not read.
        initial: the rules to begin with.
        device: where it computes.
    """

    def __init__(
        self, config: TrainConfig, initial: Mapping[str, Rule], device: torch.device
    ) -> None:
        self.config = config
        self.device = device
        self.dtype = DTYPES[config.dtype]
        self.family = task_family(config.task)
        self.networks = {name: _modules(network) for name, network in initial.items()}
        self.adam = adam(config, self.networks)
        self.drawn = self.steps_left = 0
        self.hidden: dict[str, tuple[Tensor, Tensor] | None] = {}
        self.X: Tensor
        self.Y: Tensor
        self.X_pinv: Tensor
        self.W1: Tensor
        self.W2: Tensor

    def window(self) -> float:
        """One outer step of one trajectory; returns the meta-loss."""
        meta_loss = torch.stack(self.losses()).sum()
        self.adam.zero_grad()
        meta_loss.backward()
        self.adam.step()
        return meta_loss.item()

    def losses(self) -> list[Tensor]:
        """L(w_1) .. L(w_K) of the window that is next, with its graph."""
        if self.steps_left == 0:
            self._draw()
        self.W1, self.W2 = self.W1.detach(), self.W2.detach()
        self.hidden = {
            name: None if state is None else (state[0].detach(), state[1].detach())
            for name, state in self.hidden.items()
        }
        self.steps_left -= self.config.meta.unroll
        return [self._step() for _ in range(self.config.meta.unroll)]

    def _draw(self) -> None:
        config = self.config
        task = self.family.sample(Stream.TRAIN, config.seed, self.drawn, 1, self.dtype, self.device)
        self.drawn += 1
        self.X, self.Y = task.X[0], task.Y[0]
        self.X_pinv = torch.linalg.pinv(self.X)
        self.W1, self.W2 = task.initial[0][0], task.initial[1][0]
        self.hidden = dict.fromkeys(self.networks)
        self.steps_left = config.meta.steps

    def _loss(self, W1: Tensor, W2: Tensor) -> Tensor:
        H = nn.functional.leaky_relu(W1 @ self.X, self.config.task.slope)
        return 0.5 * (self.Y - W2 @ H).square().sum()

    def _network(self, name: str, g: Tensor) -> Tensor:
        modules = self.networks[name]
        out, self.hidden[name] = modules["lstm"](g[None, None], self.hidden[name])
        return modules["head"](out[0, 0])

    def _step(self) -> Tensor:
        A, B = self.W1.detach().requires_grad_(), self.W2.detach().requires_grad_()
        G1, G2 = torch.autograd.grad(self._loss(A, B), (A, B))
        g = torch.cat([G1.flatten(), G2.flatten()])
        f = self._network("update", g)
        W1 = self.W1 + f[: G1.numel()].view_as(G1)
        W2 = self.W2 + f[G1.numel() :].view_as(G2)
        if self.config.teleporter is not None:
            T = self._network("teleport", g).view(len(W1), len(W1))
            T = self.config.teleporter.max_norm * T / torch.linalg.norm(T)
            eye = torch.eye(len(T), dtype=T.dtype, device=T.device)
            slope = self.config.task.slope
            H = nn.functional.leaky_relu(W1 @ self.X, slope)
            W1 = nn.functional.leaky_relu((eye + T) @ H, 1 / slope) @ self.X_pinv
            W2 = W2 @ (eye - T)
        self.W1, self.W2 = W1, W2
        return self._loss(W1, W2)


def _modules(rule: Rule) -> nn.ModuleDict:
    layers = cells(rule)
    rows, inputs = rule["lstm.W_x.0"].shape
    lstm = nn.LSTM(inputs, rows // 4, layers).to(rule["lstm.b.0"])
    for layer in range(layers):
        load_cell(lstm, rule, layer, f"_l{layer}")
    return nn.ModuleDict({"lstm": lstm, "head": linear(rule)})


def initial(config: TrainConfig) -> dict[str, Rule]:
    """The rules that meta-training of ``config`` begins with, by name."""
    state = meta_optimizer(config).state_dict()
    return {
        name: {
            key.removeprefix(f"networks.{name}."): tensor.detach()
            for key, tensor in state.items()
            if key.startswith(f"networks.{name}.")
        }
        for name in config.rules.by_name()
    }


def cells(rule: Rule) -> int:
    """How many cells it has, one above the other."""
    return sum(key.startswith("lstm.b.") for key in rule)


def load_cell(module: nn.Module, rule: Rule, layer: int, suffix: str = "") -> None:
    """Copy one cell into torch's own, whose gates are ordered i, f, u, o.

    Its second bias is held at zero, so that a step of Adam moves both networks alike.

    Args:
        module: ``nn.LSTM`` or ``nn.LSTMCell``.
        rule: to copy from.
        layer: the cell in it.
        suffix: of the parameters' names: ``_l0`` .. in ``nn.LSTM``, none in ``nn.LSTMCell``.
    """
    names = {"weight_ih": "W_x", "weight_hh": "W_h", "bias_ih": "b"}
    with torch.no_grad():
        for theirs, ours in names.items():
            i, f, o, u = rule[f"lstm.{ours}.{layer}"].chunk(4)
            module.get_parameter(theirs + suffix).copy_(torch.cat([i, f, u, o]))
        module.get_parameter("bias_hh" + suffix).requires_grad_(False).zero_()


def linear(rule: Rule, name: str = "head") -> nn.Linear:
    """The head, or another affine map, as torch's own layer."""
    W = rule[f"{name}.W"]
    made = nn.Linear(W.shape[1], W.shape[0]).to(W)
    with torch.no_grad():
        made.weight.copy_(W)
        made.bias.copy_(rule[f"{name}.b"])
    return made


def adam(config: TrainConfig, modules: Mapping[str, nn.Module]) -> torch.optim.Adam:
    """Adam with a learning rate for each network, as the configuration has it."""
    rates = {name: rule.learning_rate for name, rule in config.rules.by_name().items()}
    return torch.optim.Adam(
        [{"params": modules[name].parameters(), "lr": rate} for name, rate in rates.items()]
    )


@dataclass(frozen=True)
class Comparison:
    """Seconds a trajectory of full length."""

    label: str  # the configuration's file, and what was set
    batch: int  # trajectories side by side in metaopt
    windows: int  # of the trajectories that metaopt was timed on
    metaopt: float  # seconds of metaopt
    loop: float  # seconds of the loop

    @property
    def ratio(self) -> float:
        """How many times metaopt is faster."""
        return self.loop / self.metaopt


def compared(work: Work, device: torch.device, budget: float = BUDGET) -> Comparison:
    """Whole outer steps of metaopt and of the loop, in turns."""
    work = replace(work, overrides=(*SAME_RECIPE, *work.overrides))
    full, unroll = work.windows_of_trajectory, work.loaded().meta.unroll
    _, _, windows = trajectory_seconds(Piece(work.batch, work), device, budget)
    alone = work.loaded([f"meta.steps={full * unroll}"])
    loop = PlainLoop(alone, initial(alone), device)

    def trajectory() -> None:
        for _ in range(full):
            loop.window()

    sides = {
        "metaopt": Side(work.ready(windows, device), work.batch * windows / full),
        "loop": Side(trajectory, 1),
    }
    return Comparison(work.label, work.batch, windows, **compare(sides, device))


def table(found: Sequence[Comparison]) -> str:
    """For people: seconds a trajectory, and in brackets how many times metaopt is faster."""
    rows = [
        [row.label, str(row.batch), f"{row.metaopt:.4g}", f"{row.loop:.4g} ({row.ratio:.2f}x)"]
        for row in found
    ]
    return markdown_table(["configuration", "B", "metaopt", "one at a time"], rows)
