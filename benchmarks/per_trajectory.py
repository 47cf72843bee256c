"""Batched meta-training against a loop over single trajectories, in one run.

    python -m benchmarks.per_trajectory [--batch 64] [--windows 3] [--repeats 3]

The loop is the same step the way published code writes it: one trajectory at a time,
``torch.nn.LSTM`` on the flattened gradient, autograd for the inner gradient, one matrix of each
kind. Both sides run whole outer steps (unroll of K = 10, backward, Adam) of
``configs/paper/lstm_update_tele.yaml``, hidden 300, update and teleport; only the meta-batch
differs. Printed: seconds for a trajectory of 100 steps on each side (medians over repeats), and
their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from metaopt.config import load
from metaopt.meta_train import MetaTrainer
from metaopt.schema import TrainConfig
from metaopt.streams import Stream
from metaopt.tasks import RegressionFamily

CONFIG = "paper/lstm_update_tele.yaml"


class PlainLoop:
    """One trajectory at a time in plain PyTorch: m1, m2, and the first-order pair."""

    def __init__(self, config: TrainConfig) -> None:
        task, meta = config.task, config.meta
        first, second = task.width * task.inputs, task.outputs * task.width
        self.config = config
        self.split = first
        self.networks = nn.ModuleDict(
            {
                "m1": nn.LSTM(first + second, 300, num_layers=2),
                "head1": nn.Linear(300, first + second),
                "m2": nn.LSTM(first + second, 300, num_layers=2),
                "head2": nn.Linear(300, task.width**2),
            }
        )
        own_rates = {"m1": 1e-3, "head1": 1e-3, "m2": 1e-4, "head2": 1e-4}
        self.adam = torch.optim.Adam(
            [
                {"params": self.networks[name].parameters(), "lr": own_rates[name]}
                for name in own_rates
            ]
        )
        self.meta = meta
        self.drawn = 0
        self._draw()

    def _draw(self) -> None:
        task = RegressionFamily(self.config.task).sample(Stream.TRAIN, 0, self.drawn, 1)
        self.drawn += 1
        self.X, self.Y = task.X[0], task.Y[0]
        self.X_pinv = torch.linalg.pinv(self.X)
        self.W1, self.W2 = task.initial[0][0], task.initial[1][0]
        self.hidden: dict[str, tuple[Tensor, Tensor] | None] = dict.fromkeys(("m1", "m2"))
        self.steps_left = self.meta.steps

    def window(self) -> None:
        """One outer step of one trajectory."""
        if self.steps_left == 0:
            self._draw()
        self.W1, self.W2 = self.W1.detach(), self.W2.detach()
        self.hidden = {
            name: None if state is None else (state[0].detach(), state[1].detach())
            for name, state in self.hidden.items()
        }
        total = torch.zeros(())
        for _ in range(self.meta.unroll):
            total = total + self._step()
        self.steps_left -= self.meta.unroll
        self.adam.zero_grad()
        total.backward()
        self.adam.step()

    def _loss(self, W1: Tensor, W2: Tensor) -> Tensor:
        H = nn.functional.leaky_relu(W1 @ self.X, 0.1)
        return 0.5 * (self.Y - W2 @ H).square().sum()

    def _network(self, name: str, head: str, g: Tensor) -> Tensor:
        out, self.hidden[name] = self.networks[name](g[None, None], self.hidden[name])
        return self.networks[head](out[0, 0])

    def _step(self) -> Tensor:
        A, B = self.W1.detach().requires_grad_(), self.W2.detach().requires_grad_()
        G1, G2 = torch.autograd.grad(self._loss(A, B), (A, B))
        g = torch.cat([G1.flatten(), G2.flatten()])
        f = self._network("m1", "head1", g)
        T = self._network("m2", "head2", g).view(self.W1.shape[0], -1)
        W1 = self.W1 + f[: self.split].view_as(self.W1)
        W2 = self.W2 + f[self.split :].view_as(self.W2)
        T = 0.01 * T / torch.linalg.norm(T)
        eye = torch.eye(T.shape[0])
        H = nn.functional.leaky_relu(W1 @ self.X, 0.1)
        self.W1 = nn.functional.leaky_relu((eye + T) @ H, 10.0) @ self.X_pinv
        self.W2 = W2 @ (eye - T)
        return self._loss(self.W1, self.W2)


def seconds_a_trajectory(
    window: Callable[[], object], windows: int, repeats: int, trajectories: float
) -> float:
    """Median over repeats; ``trajectories`` is what one window advances, in whole ones."""
    window()
    measured = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(windows):
            window()
        measured.append((time.perf_counter() - began) / (windows * trajectories))
    return statistics.median(measured)


def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser(description="Batched meta-training against a plain loop.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    config = load(TrainConfig, CONFIG, [f"meta.batch={arguments.batch}"])
    share = config.meta.unroll / config.meta.steps
    trainer = MetaTrainer(config, torch.device("cpu"))
    loop = PlainLoop(config)
    batched = seconds_a_trajectory(
        trainer.outer_step, arguments.windows, arguments.repeats, arguments.batch * share
    )
    plain = seconds_a_trajectory(loop.window, 10, arguments.repeats, share)
    print(f"threads {torch.get_num_threads()}, {CONFIG}, 100-step trajectories")
    print(f"loop over trajectories        {plain:.4f} s a trajectory")
    print(f"batched, meta-batch {arguments.batch:4d}      {batched:.4f} s a trajectory")
    print(f"ratio                         {plain / batched:.1f}")


if __name__ == "__main__":
    main()
