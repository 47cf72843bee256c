"""One run, as a user's loop; and many runs of one network as a stack."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metaopt.base.streams import Stream, item_generator
from metaopt.optim.finite import NonFiniteError
from studies.minilm.contenders import Plain
from studies.rivals.contenders import Contender
from studies.rivals.data import Parts, Rows
from studies.rivals.tasks import Loss, Task

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Start:
    """What all contenders of a task and a seed have in common.

    Attributes:
        model: the network with its initial weights.
        rows: numbers of the rows of each mini-batch, [steps, batch].
    """

    model: nn.Module
    rows: Tensor


def start(task: Task, count: int, stream: Stream, seed: int, steps: int) -> Start:
    """The network and the mini-batches of a seed; of fewer steps they are the first ones.

    Args:
        task: whose network.
        count: rows that there are to train on.
        stream: VALIDATION for what rates are chosen by, TEST for what is shown.
        seed: of the run.
        steps: of it.
    """
    draws = item_generator(stream, seed, 0)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int(draws.integers(2**31)))
        model = task.make()
    rows = [draws.integers(count, size=task.batch) for _ in range(steps)]
    return Start(model, torch.from_numpy(np.stack(rows)))


def judged_part(parts: Parts, stream: Stream) -> Rows:
    """What runs of a stream are judged on: rates are never chosen by what trials were shown."""
    return parts.test if stream is Stream.TEST else parts.validation


def alone(
    task: Task,
    contender: Contender,
    rate: float,
    horizon: int,
    stream: Stream,
    seed: int,
    marks: Sequence[int],
) -> list[float]:
    """The loss on rows apart after each of the steps ``marks``, of which 0 is before the first.

    Returns:
        A loss for each mark, as of ``follow``.
    """
    parts = task.parts()
    begun = start(task, len(parts.train.x), stream, seed, horizon)
    trainer = contender.trainer(begun.model, rate, horizon)
    return follow(begun, trainer, task.loss, parts.train, judged_part(parts, stream), marks)


def follow(
    begun: Start, trainer: Plain, loss: Loss, train: Rows, apart: Rows, marks: Sequence[int]
) -> list[float]:
    """A user's loop: train, and judge at the marks.

    Args:
        begun: the network, which is trained, and its mini-batches, of which a run takes all.
        trainer: of the network.
        loss: a scalar of outputs and of what they should be.
        train: the rows that are trained on.
        apart: those that judge.
        marks: steps, of which 0 is before the first.

    Returns:
        A loss for each mark; infinite from where an optimizer has raised an error about numbers.
    """
    model = begun.model

    def judged() -> float:
        trainer.judged(True)
        model.eval()
        with torch.no_grad():
            found = float(loss(model(apart.x), apart.y))
        model.train()
        trainer.judged(False)
        return found

    found = dict.fromkeys(marks, math.inf)
    model.train()
    for step in range(len(begun.rows) + 1):
        if step in found:
            found[step] = judged()
        if step == len(begun.rows) or not math.isfinite(found.get(step, 0.0)):
            break
        rows = begun.rows[step]
        trainer.zero_grad()
        loss(model(train.x[rows]), train.y[rows]).backward()
        try:
            trainer.step()
        except (NonFiniteError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            break
    return list(found.values())


def together(
    task: Task,
    contender: Contender,
    rates: Sequence[float],
    horizon: int,
    stream: Stream,
    seeds: Sequence[int],
    marks: Sequence[int],
) -> Array:
    """``alone`` for all rates and seeds side by side, [marks, rates, seeds].

    Members of the stack have an optimizer at rate 1 in common; each takes its rate's share of the
    step, which is what a step at that rate is where ``Contender.together`` holds.
    """
    parts = task.parts()
    apart = judged_part(parts, stream)
    begun = [start(task, len(parts.train.x), stream, seed, horizon) for seed in seeds]
    rows = torch.stack([one.rows for one in begun] * len(rates), 1)
    base = begun[0].model
    names = [name for name, _ in base.named_parameters()]
    stack = nn.ParameterList(
        torch.stack([one.model.get_parameter(name).detach() for one in begun] * len(rates))
        for name in names
    )
    shares = torch.tensor(rates).repeat_interleave(len(seeds))
    trainer = contender.trainer(stack, 1.0, horizon)

    def losses(x: Tensor, y: Tensor, every: int | None) -> Tensor:
        def one(weights: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
            given = dict(zip(names, weights, strict=True))
            return task.loss(functional_call(base, given, (x,)), y)

        return vmap(one, (0, every, every))(tuple(stack), x, y)

    found = torch.full((len(marks), len(shares)), math.inf)
    for step in range(horizon + 1):
        if step in marks:
            with torch.no_grad():
                found[marks.index(step)] = losses(apart.x, apart.y, None)
        if step == horizon:
            break
        trainer.zero_grad()
        losses(parts.train.x[rows[step]], parts.train.y[rows[step]], 0).sum().backward()
        before = [W.detach().clone() for W in stack]
        trainer.step()
        with torch.no_grad():
            for W, old in zip(stack, before, strict=True):
                W.copy_(old + shares.view(-1, *[1] * (W.ndim - 1)) * (W - old))
    return found.double().reshape(len(marks), len(rates), len(seeds)).numpy()


@dataclass(frozen=True)
class Cost:
    """Of one step."""

    seconds: float  # forward and backward pass, and the step; the median
    step_seconds: float  # the optimizer's part of it
    state_bytes: int  # of all tensors that the optimizer keeps


def tensors(kept: object) -> Iterator[Tensor]:
    """All tensors of an optimizer's state, which may hold lists of them.

    Args:
        kept: a value of the state: a tensor, a number, or a container of such.
    """
    if isinstance(kept, Tensor):
        yield kept
    elif isinstance(kept, dict):
        for one in kept.values():
            yield from tensors(one)
    elif isinstance(kept, list | tuple):
        for one in kept:
            yield from tensors(one)


def cost(task: Task, contender: Contender, steps: int) -> Cost:
    """Of a run at the middle rate of the grid."""
    parts = task.parts()
    begun = start(task, len(parts.train.x), Stream.VALIDATION, 0, steps)
    trainer = contender.trainer(begun.model, contender.grid[len(contender.grid) // 2], steps)
    whole, part = [], []
    clock: Callable[[], float] = time.perf_counter
    for rows in begun.rows:
        began = clock()
        trainer.zero_grad()
        task.loss(begun.model(parts.train.x[rows]), parts.train.y[rows]).backward()
        between = clock()
        trainer.step()
        ended = clock()
        whole.append(ended - began)
        part.append(ended - between)
    state = tensors([dict(optimizer.state) for optimizer in trainer.optimizers])
    size = sum(tensor.numel() * tensor.element_size() for tensor in state)
    return Cost(median(whole), median(part), size)
