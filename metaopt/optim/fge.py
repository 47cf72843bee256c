"""``fge``: an ensemble at the cost of one training, from the minima of a cyclic learning rate.

    rate(i) = (1 - 2 t) high + 2 t low         for t = (i mod c) / c <= 1/2
              (2 - 2 t) low + (2 t - 1) high   for t > 1/2

After the step with the lowest rate, i = c/2 in each cycle of c steps, a member is collected. Their
predictions are averaged (fast geometric ensembling), and their weights (SWA).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from metaopt.base.files import make_folder
from metaopt.base.streams import Stream, item_generator
from metaopt.landscape.between.batches import Batches
from metaopt.landscape.between.ensemble import Average, Ensemble, require_average
from metaopt.landscape.between.refresh import refresh_batchnorm
from metaopt.landscape.data import Data, pairs_of, rows
from metaopt.landscape.samples import Loss
from metaopt.optim.fge_run import Run, device_of, modes_kept
from metaopt.symmetry.discovery.find import plain
from metaopt.teleport.module import teleport as move
from metaopt.teleport.optimizer_state import require_optimizer_of, unwrapped

STATE, FILE = "state.pt", "ensemble.safetensors"
EIGHTHS = 8
"""Of a cycle: how often the bar is told, and data that are watched are measured."""


def fge(
    model: nn.Module,
    optimizer: Optimizer,
    data: Data,
    cycle: int,
    lr: tuple[float, float],
    *,
    loss: Loss | None = None,
    cycles: int = 5,
    average: Average | None = None,
    watch: Data | None = None,
    teleport: float | Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    folder: str | Path | None = None,
) -> Ensemble:
    """p(x) = 1/M sum_m softmax f(x; w_m), w_m the weights at the lowest rates of M cycles.

        rate(i) = high + (low - high) min(2 t, 2 - 2 t),   t = (i mod cycle) / cycle,   i = 1, 2, ..

    Training goes on from the model as it is, with the optimizer as it is: give it a model that has
    been trained for most of its budget, with the optimizer and the state that it was trained with.
    The rate is high at the ends of a cycle and low in the middle, where a member is collected. The
    run ends with the last member, half a cycle before the end of the last cycle: it takes
    (cycles - 1/2) cycle steps. The model then has the weights of the last member, and the optimizer
    its own rates again.

    The model trains in place, in training mode; if it is in that mode already, modules that you
    have put into evaluation mode (frozen BatchNorm) stay so. Modes are given back at the end.

    Besides the weights, their gradients and the optimizer's state, memory is held for the weights
    at the start, for their mean, and for each member.

    Args:
        model: any module; wrappers (``torch.compile``, data parallel) are looked through.
        optimizer: any optimizer that has ``lr`` in its groups and whose ``step`` takes no closure.
            Groups whose rates differ keep their ratios: the largest is the one that moves between
            high and low.
        data: a pair (inputs, targets), or an iterable of such pairs that can be run through more
            than once (see ``metaopt.noise``). Each pair is a mini-batch; they go round in their
            order, and a ``DataLoader`` that shuffles draws a new one for each round.
        cycle: c, the steps of a cycle; even, at least 2. The authors' code has 2 or 4 epochs.
        lr: (high, low). The authors' code has (0.05, 0.0001), and (0.05, 0.01) for residual
            networks that were trained with 0.1.
        loss: (outputs, targets) -> a scalar. None: ``nn.functional.cross_entropy``.
        cycles: M, how many cycles, and members.
        average: what the ensemble averages (see ``Ensemble``). None: probabilities if the loss is
            cross-entropy or targets are whole numbers, outputs if the loss is one of regression.
        watch: data of the same kind, such as a validation set: their loss and error are measured
            eight times a cycle, and change nothing in the training.
        teleport: teleports at the start of each cycle, the first too: the norm of random elements
            of the model's symmetries, or the arguments of ``metaopt.teleport``, such as
            ``{"norm": 0.5, "state": "reset"}``. Outputs stay, and the state moves with the
            weights. Members then lie on several points of orbits, so that the mean of their
            weights, ``averaged``, is of no use.
        seed: of the random elements and the orders of ``batch_size``, at least 0.
        batch_size: cuts a pair into mini-batches, in a new order in each epoch; None: the pair is
            one batch.
        folder: a folder for the state, written after each member, and in the end
            ``ensemble.safetensors``. If it holds the state of a run with the same settings, the run
            goes on from there with the same bits as one that was never stopped, if the data come in
            an order that torch's or their own generator decides; ``cycles`` may have grown. None:
            nothing is written.

    Returns:
        The ensemble, in evaluation mode: called as the model is, it returns mean **probabilities**
        (of regression mean outputs). ``averaged`` is the model of mean weights (SWA), with fresh
        BatchNorm statistics; ``trace`` has rate, error and distance by step, and draws them.

    Raises:
        ValueError: if cycle is odd or below 2, cycles is below 1, a rate is negative or not finite,
            high is below low, the optimizer belongs to another model or has no rates, the data are
            of another kind or empty, weights become infinite or NaN, what to average is not known,
            or the folder holds the state of another run.

    References:
        Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, arXiv
        1802.10026; Izmailov et al., Averaging Weights Leads to Wider Optima, arXiv 1803.05407.
    """
    high, low = lr
    _require(cycle, cycles, high, low, seed)
    if average is not None:
        require_average(average)
    require_optimizer_of(unwrapped(optimizer), plain(model))
    settings = {"cycle": cycle, "high": high, "low": low, "teleport": _named(teleport)}
    settings |= {"seed": seed, "batch_size": batch_size}
    chosen = nn.functional.cross_entropy if loss is None else loss
    batches = Batches(data, batch_size, seed, device_of(model))
    run = Run(model, optimizer, batches, chosen, average, watch, settings)
    state = None if folder is None else Path(folder) / STATE
    with modes_kept(model), _rates(optimizer) as set_rate:
        if state is not None:
            make_folder(state.parent)
            if state.exists():
                run.load(state)
                _require_no_more(len(run.members), cycles, state)
        if not model.training:
            # Otherwise some of its modules may be meant to be in evaluation mode.
            model.train()
        for _ in _steps(run, cycle, cycles):
            if run.step % cycle == 0 and teleport is not None:
                move(model, optimizer=optimizer, **_element(teleport, seed, run.step // cycle))
            rate = cyclic_rate(run.step + 1, cycle, high, low)
            set_rate(rate)
            run.advance(rate)
            if run.step % cycle == cycle // 2:
                run.collect()
                if state is not None:
                    run.save(state)
        optimizer.zero_grad()
    refresh_batchnorm(run.averaged, data if batch_size is None else _cut(data, batch_size))
    assert run.average is not None
    found = Ensemble(run.averaged, run.members, run.average, run.axis, run.trace())
    if state is not None:
        found.save(state.with_name(FILE))
    return found


def cyclic_rate(step: int, cycle: int, high: float, low: float) -> float:
    """The rate of a step: high at 0 and ``cycle``, low at ``cycle / 2``, linear between.

    Args:
        step: its number, from 1 on.
        cycle: the steps of a cycle.
        high: the rate at the ends.
        low: the rate in the middle.
    """
    t = (step % cycle) / cycle
    if t <= 0.5:
        return (1 - 2 * t) * high + 2 * t * low
    return (2 - 2 * t) * low + (2 * t - 1) * high


def _steps(run: Run, cycle: int, cycles: int) -> Iterator[None]:
    """Once before each step, with a bar that is told eight times a cycle how the run goes."""
    told = {eighth * cycle // EIGHTHS for eighth in range(EIGHTHS)}
    last = (cycles - 1) * cycle + cycle // 2
    with tqdm(total=last, initial=run.step, desc="fge", disable=run.step >= last) as bar:
        run.measure()
        while run.step < last:
            yield
            if run.step % cycle in told:
                run.measure()
                bar.set_postfix(run.figures(), refresh=False)
            bar.update()


def _cut(data: Data, batch_size: int) -> list[tuple[Any, Tensor]]:
    """A pair in parts as large as the mini-batches; samples that fill none are left out."""
    ((inputs, targets),) = pairs_of(data)
    starts = range(0, len(targets) - batch_size + 1, batch_size)
    parts = [slice(start, start + batch_size) for start in starts]
    return [(rows(inputs, part), targets[part]) for part in parts]


@contextmanager
def _rates(optimizer: Optimizer) -> Iterator[Callable[[float], None]]:
    """Within it, a function that sets the rates of all groups; after it, they are as they were."""
    if not all("lr" in group for group in optimizer.param_groups):
        raise ValueError("optimizer: found groups without lr, which is what goes up and down")
    before = [float(group["lr"]) for group in optimizer.param_groups]
    largest = max(before)
    # Without any rate there are no ratios to keep.
    shares = [rate / largest if largest else 1.0 for rate in before]

    def set_all(rates: Iterable[float]) -> None:
        # A state that was loaded has brought groups of its own.
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    try:
        yield lambda rate: set_all(share * rate for share in shares)
    finally:
        set_all(before)


def _element(teleport: float | Mapping[str, Any], seed: int, number: int) -> dict[str, Any]:
    """The arguments of the teleport before a cycle: each has a seed of its own."""
    drawn = int(item_generator(Stream.ELEMENTS, seed, number).integers(2**31))
    chosen = dict(teleport) if isinstance(teleport, Mapping) else {"norm": float(teleport)}
    return {"seed": drawn, **chosen}


def _named(teleport: float | Mapping[str, Any] | None) -> str:
    """What a file says of teleports: their norm, or the arguments that are plain."""
    if not isinstance(teleport, Mapping):
        return str(teleport)
    plainly = {k: v for k, v in teleport.items() if isinstance(v, int | float | str)}
    return f"{sorted(teleport)} {sorted(plainly.items())}"


def _require_no_more(members: int, cycles: int, state: Path) -> None:
    if members > cycles:
        raise ValueError(f"{state}: has {members} members already, cycles must be at least that")


def _require(cycle: int, cycles: int, high: float, low: float, seed: int) -> None:
    if cycle < 2 or cycle % 2:
        raise ValueError(f"cycle must be an even number of steps, at least 2, found {cycle}")
    if cycles < 1:
        raise ValueError(f"cycles must be at least 1, found {cycles}")
    if not (0 <= low <= high < math.inf):
        raise ValueError(f"lr must be (high, low) with 0 <= low <= high, found ({high}, {low})")
    if seed < 0:
        raise ValueError(f"seed must not be negative, found {seed}")
