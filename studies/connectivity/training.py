"""Training: runs side by side, one stacked tensor for each parameter, by ``torch.func.vmap``.

Runs differ in their initial weights and in the order of their mini-batches. BatchNorm normalises
each run by its own mini-batch; its statistics are stacked like the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional
from tqdm import trange

from metaopt.base.streams import Stream, item_generator
from metaopt.landscape.samples import plain_attention
from metaopt.tasks.datasets import Labelled
from studies.connectivity.networks import Network
from studies.images import Images

MOMENTUM = 0.9
LAST = 0.01
"""The rate at the end, as a share of the first one."""


class Use(IntEnum):
    """What runs are for: the key of their random streams, so that no two uses share a draw."""

    ENDS = 40
    ENDS_TUNING = 41
    RIVALS = 42
    RIVALS_TUNING = 43


@dataclass(frozen=True)
class Recipe:
    """How a run is trained."""

    epochs: int
    rate: float
    decay: float = 5e-4
    batch: int = 50
    restarts: int = 0
    """Cosines from the rate to 0 that share the epochs; 0: flat, then linear to 1 %."""

    def factor(self, done: float) -> float:
        """Of the rate, after a share of the steps.

        1 up to half of them, linear to 0.01 at 0.9, then 0.01; or (1 + cos(pi s)) / 2, s the share
        of a cycle that is done.
        """
        if self.restarts:
            return (1 + math.cos(math.pi * (done * self.restarts % 1))) / 2
        return 1 - (1 - LAST) * min(max((done - 0.5) / 0.4, 0.0), 1.0)

    def steps(self, data: Labelled) -> int:
        """In all."""
        return self.epochs * (len(data.y) // self.batch)


def initial(network: Network, pixels: int, use: Use, run: int) -> nn.Module:
    """A network as it is before its training."""
    seed = int(item_generator(Stream.INITIALISATION, use, run).integers(2**31))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return network.build(pixels, network.width)


class Stack:
    """Runs side by side."""

    def __init__(self, network: Network, train: Labelled, use: Use, runs: Sequence[int]) -> None:
        self.network, self.train = network, train
        self.modules = [initial(network, train.X.shape[1], use, run) for run in runs]
        self._orders = [item_generator(Stream.MINIBATCH, use, run) for run in runs]
        self.parameters, self.buffers = stack_module_state(self.modules)
        self._base = self.modules[0]
        self._optimizer: torch.optim.Optimizer | None = None
        self._step = 0
        self._order = torch.empty(0)

    def _made(self, recipe: Recipe) -> torch.optim.Optimizer:
        leaves = list(self.parameters.values())
        if self.network.adam:
            return torch.optim.AdamW(leaves, recipe.rate, weight_decay=recipe.decay)
        return torch.optim.SGD(leaves, recipe.rate, MOMENTUM, weight_decay=recipe.decay)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of each run: [R, S, pixels], [R, S] -> [R]."""

        def one(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor
        ) -> Tensor:
            return functional.cross_entropy(
                functional_call(self._base, (parameters, buffers), (x,)), y
            )

        with plain_attention():
            found: Tensor = vmap(one)(self.parameters, self.buffers, x, y)
        return found

    def run(self, recipe: Recipe, marks: Sequence[int]) -> list[list[nn.Module]]:
        """Train up to the last mark; a second call goes on from there.

        Args:
            recipe: the same in each call.
            marks: numbers of steps.

        Returns:
            The networks after as many steps, [marks, R].
        """
        if self._optimizer is None:
            self._optimizer = self._made(recipe)
        optimizer, found = self._optimizer, []
        steps, batches = recipe.steps(self.train), len(self.train.y) // recipe.batch
        said = f"{self.network.name} x {len(self.modules)}"
        bar = trange(self._step, max(marks), desc=said, leave=False)
        for step in bar:
            if step % batches == 0:
                draws = [order.permutation(len(self.train.y)) for order in self._orders]
                self._order = torch.stack([torch.from_numpy(rows) for rows in draws])
            rows = self._order[:, step % batches * recipe.batch :][:, : recipe.batch]
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * recipe.factor(step / steps)
            optimizer.zero_grad()
            losses = self.losses(self.train.X[rows], self.train.y[rows])
            losses.sum().backward()
            optimizer.step()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{float(losses.detach().mean()):.3f}", refresh=False)
            if step + 1 in marks:
                found.append(self.networks())
        self._step = max(marks)
        return found

    @torch.no_grad()
    def networks(self) -> list[nn.Module]:
        """Each run's as it is now, by itself."""
        found = []
        for run in range(len(self.modules)):
            network = self.network.build(self.train.X.shape[1], self.network.width)
            stacked = self.parameters | self.buffers
            network.load_state_dict({path: value[run].clone() for path, value in stacked.items()})
            found.append(network)
        return found

    def optimizer_of(self, run: int, network: nn.Module) -> torch.optim.Optimizer:
        """SGD that goes on from a run's momentum, for the network that is the run's now."""
        assert self._optimizer is not None
        group = self._optimizer.param_groups[0]
        optimizer = torch.optim.SGD(
            network.parameters(), group["lr"], MOMENTUM, weight_decay=group["weight_decay"]
        )
        for path, parameter in network.named_parameters():
            stacked = self.parameters[path]
            buffer = self._optimizer.state[stacked]["momentum_buffer"]
            optimizer.state[parameter]["momentum_buffer"] = buffer[run].clone()
        return optimizer


def ends(
    network: Network, images: Images, recipe: Recipe, use: Use, runs: Sequence[int]
) -> list[nn.Module]:
    """Trained networks."""
    return Stack(network, images.train, use, runs).run(recipe, [recipe.steps(images.train)])[0]
