"""What to do with an optimizer's state at a teleport: move it, forget it, or leave it as it is.

    python -m benchmarks.teleport_state

A two-layer net is trained on a regression for 100 steps, teleported by random elements of its
symmetries, and trained on for 50. Printed is the geometric mean over seeds of the loss some steps
after the teleport, by what became of the state; a norm of 1e-6 is a teleport to where one is. It
takes a minute.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import metaopt

BEFORE, AFTER = 100, (1, 5, 20, 50)
POLICIES = ("transport", "reset", "left alone")
OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "SGD 0.02, momentum 0.9": lambda model: SGD(model.parameters(), lr=0.02, momentum=0.9),
    "Adam 0.005": lambda model: Adam(model.parameters(), lr=0.005),
}


def _problem(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.1), nn.Linear(16, 4)).double()
    teacher = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    x = torch.randn(128, 8, dtype=torch.float64)
    return model, x, 3 * teacher(x).detach()


def _train(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def losses_after(
    make: Callable[[nn.Module], Optimizer], policy: str, norm: float, seed: int
) -> list[float]:
    """The losses from the first step after the teleport on."""
    model, x, y = _problem(seed)
    optimizer = make(model)
    _train(model, optimizer, x, y, BEFORE)
    if policy == "left alone":
        metaopt.teleport(model, norm, seed)
    else:
        metaopt.teleport(model, norm, seed, optimizer=optimizer, state=policy)
    return _train(model, optimizer, x, y, max(AFTER) + 1)


def table(norms: Sequence[float], seeds: int) -> str:
    """One row for each optimizer, norm and policy."""
    lines = [f"{'optimizer':<24} {'norm':>5} {'state':<11}" + "".join(f"{n:>10}" for n in AFTER)]
    for name, make in OPTIMIZERS.items():
        for norm in norms:
            for policy in POLICIES:
                runs = [losses_after(make, policy, norm, seed) for seed in range(seeds)]
                means = [math.exp(sum(math.log(run[n]) for run in runs) / len(runs)) for n in AFTER]
                row = "".join(f"{mean:>10.4g}" for mean in means)
                lines.append(f"{name:<24} {norm:>5} {policy:<11}{row}")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--norms", type=float, nargs="+", default=[1e-6, 0.5, 2.0])
    options = parser.parse_args()
    print(table(options.norms, options.seeds))


if __name__ == "__main__":
    main()
