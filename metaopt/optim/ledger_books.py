"""What a step changes of every charge: predicted from the gradients, or measured part by part.

    [w', v'] = M [w, v, g],     (<w, w>, <w, v>, <v, v>)' = M G M^T,     <w, g> = 0

G is the Gram matrix of weights w, momentum v and gradient g under the form of the charge. For SGD
the entries of M are numbers, so that the triple on the right goes on by itself: of each gradient
only <v, g> and <g, g> are read. torch's SGD, with learning rate n, momentum m, dampening k, coupled
decay l, and sign s = -1 if it maximises:

    u = s g + l w,    v' = m v + (1 - k) u   (the first: v' = u),    w' = w - n v'
    with Nesterov's momentum w' = w - n (u + m v'), without momentum w' = w - n u

Where parameters of one symmetry have different settings, each setting is a cell with its own triple
(``ledger_forms``). <w, g> is zero only in the sum over cells: it is read in all of them but the
last, which has minus the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from metaopt.optim.ledger_flat import Flat, Tensors
from metaopt.optim.ledger_forms import Cell

Combination = tuple[float, float, float]
"""a w + b v + c g of weights, momentum and gradient."""


@dataclass(frozen=True)
class Setting:
    """How torch's SGD moves one parameter at one step.

    Attributes:
        buffered: whether it has a momentum yet.
        moves: whether it has a gradient; without one SGD leaves it alone.
    """

    lr: float
    momentum: float
    dampening: float
    nesterov: bool
    weight_decay: float
    maximize: bool
    buffered: bool = True
    moves: bool = True

    @staticmethod
    def of(group: Mapping[str, Any]) -> tuple[float, float, float, bool, float, bool]:
        """The settings of a parameter group."""
        return (
            float(group["lr"]),
            float(group["momentum"]),
            float(group["dampening"]),
            bool(group["nesterov"]),
            float(group["weight_decay"]),
            bool(group["maximize"]),
        )

    @property
    def towards(self) -> Combination:
        """s g + l w."""
        return self.weight_decay, 0.0, -1.0 if self.maximize else 1.0

    @property
    def momenta(self) -> Combination:
        """v' after the step."""
        if not self.moves or self.momentum == 0:
            return 0.0, 1.0, 0.0
        if not self.buffered:
            return self.towards
        return _add(_times(1 - self.dampening, self.towards), (0.0, self.momentum, 0.0))

    @property
    def step(self) -> Combination:
        """w' - w."""
        if not self.moves:
            return 0.0, 0.0, 0.0
        if self.momentum == 0:
            return _times(-self.lr, self.towards)
        if self.nesterov:
            return _times(-self.lr, _add(self.towards, _times(self.momentum, self.momenta)))
        return _times(-self.lr, self.momenta)

    def matrix(self) -> list[Sequence[float]]:
        """2 <w, d>, <d, d>, <w', w'>, <w', v'> and <v', v'> for the step d, [5, 6].

        In terms of <w, w>, <w, v>, <v, v>, <w, g>, <v, g> and <g, g>.
        """
        w: Combination = (1.0, 0.0, 0.0)
        after = _add(w, self.step)
        return [
            [2 * x for x in _product(w, self.step)],
            _product(self.step, self.step),
            _product(after, after),
            _product(after, self.momenta),
            _product(self.momenta, self.momenta),
        ]


def _times(number: float, x: Combination) -> Combination:
    return number * x[0], number * x[1], number * x[2]


def _add(x: Combination, y: Combination) -> Combination:
    return x[0] + y[0], x[1] + y[1], x[2] + y[2]


def _product(x: Combination, y: Combination) -> Sequence[float]:
    """<x, y> in terms of <w, w>, <w, v>, <v, v>, <w, g>, <v, g> and <g, g>."""
    mixed = [x[i] * y[j] + x[j] * y[i] for i, j in ((0, 1), (0, 2), (1, 2))]
    return x[0] * y[0], mixed[0], x[1] * y[1], mixed[1], mixed[2], x[2] * y[2]


class Book(Protocol):
    """Follows the charges from step to step.

    Attributes:
        flat: what is followed.
        first: of what the steps changed so far, the part linear in the step, 2 <w, w' - w>.
        second: the part quadratic in the step, <w' - w, w' - w>.
    """

    flat: Flat
    first: Tensor
    second: Tensor

    def begin(self) -> None:
        """Read weights and state as they are."""

    def before(self) -> None:
        """Of a step, ahead of it and ahead of the closure."""

    def graded(self) -> None:
        """Of a step, when its gradients are known; ahead of it, but after the closure."""

    def after(self) -> None:
        """Of a step, when it has been taken."""

    def predicted(self) -> Tensor | None:
        """The charges of the cells now, as predicted; None if nothing is."""


class MeasuredBook:
    """Of any optimizer: 2 <w, d> and <d, d> for the step d that it took."""

    def __init__(self, flat: Flat, optimizer: Optimizer) -> None:
        del optimizer
        self.flat = flat
        self._copies: Tensors = {}
        self.begin()

    def begin(self) -> None:
        """Nothing happened yet."""
        self.first = torch.zeros(self.flat.size, dtype=torch.float64, device=self.flat.device)
        self.second = torch.zeros_like(self.first)

    def before(self) -> None:
        """Keep a copy of the weights."""
        for path, p in self.flat.parameters.items():
            if path not in self._copies:
                self._copies[path] = torch.empty_like(p)
            self._copies[path].copy_(p.detach())

    def graded(self) -> None:
        """The step is all that counts."""

    def after(self) -> None:
        """Add what the step changed: with e = -d, <w, d> = -<w', e> - <e, e>."""
        for path, p in self.flat.parameters.items():
            self._copies[path].sub_(p.detach())
        back = self.flat.working(self._copies)
        products, second = self.flat.forms.products(
            [self.flat.working(self.flat.parameters), back], back
        )
        self.first += torch.cat([-2 * (products + second), -self.flat.sums.of(back)])
        self.second[: len(second)] += second

    def predicted(self) -> None:
        """Nothing is."""


class PredictedBook:
    """Of torch's SGD: the recursion at the head of this file.

    Args:
        flat: what is followed; parameters of a cell have one setting.
        optimizer: SGD.
    """

    def __init__(self, flat: Flat, optimizer: SGD) -> None:
        self.flat, self._optimizer = flat, optimizer
        self._wanted: list[Setting] = []
        self._quadratic: list[tuple[Tensor, int, int]] = []
        self._linear = torch.zeros(0)
        self._several = _Several(flat.forms.cells, flat.device)
        # <w, w>, <w, v>, <v, v>, <w, g>, <v, g> and <g, g>; and what a step makes of it.
        shape = 6, flat.forms.size
        self._known = torch.zeros(shape, dtype=torch.float64, device=flat.device)
        self._next = torch.zeros_like(self._known[:5])
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Read weights and momenta as they are."""
        flat = self.flat
        w = flat.wide()
        v = {path: x.double() for path, x in flat.working(self._momenta()).items()}
        flat.forms.products([w, v], w, out=self._known[:2])
        flat.forms.products([v], v, out=self._known[2:3])
        self._pair = torch.stack([flat.sums.of(w), flat.sums.of(v)])
        self.first = torch.zeros(flat.size, dtype=torch.float64, device=flat.device)
        self.second = torch.zeros_like(self.first)

    def before(self) -> None:
        """Gradients may come with the closure."""

    @torch.no_grad()
    def graded(self) -> None:
        """Take the step."""
        flat, scaler = self.flat, getattr(self._optimizer, "grad_scale", None)
        g = flat.working({path: p.grad for path, p in flat.parameters.items()})
        v = {path: x for path, x in flat.working(self._momenta()).items() if path in g}
        wg, vg, gg = self._known[3:]
        flat.forms.products([v, g], g, out=self._known[4:])
        if flat.several:
            wg.copy_(
                self._several.closed(flat.forms.products([flat.working(flat.parameters)], g)[0])
            )
        if scaler is not None:
            # A fused SGD is given gradients that a GradScaler has not divided yet.
            for form, degree in ((wg, 1), (vg, 1), (gg, 2)):
                form.div_(scaler**degree)
        quadratic, linear = self._coefficients()
        for matrix, start, stop in quadratic:
            torch.mm(matrix, self._known[:, start:stop], out=self._next[:, start:stop])
        changed, triple = self._next[:2], self._next[2:]
        step, momentum = (linear * self._pair).sum(1)
        pair = torch.stack([self._pair[0] + step, momentum])
        if (skipped := getattr(self._optimizer, "found_inf", None)) is not None:
            stays = skipped.to(flat.device) != 0
            changed, step = (torch.where(stays, 0.0, x) for x in (changed, step))
            triple, pair = (
                torch.where(stays, old, new)
                for old, new in ((self._known[:3], triple), (self._pair, pair))
            )
        self._known[:3] = triple
        self._pair = pair
        self.first[: flat.forms.size] += changed[0]
        self.first[flat.forms.size :] += step
        self.second[: flat.forms.size] += changed[1]

    def after(self) -> None:
        """The step was taken when its gradients were known."""

    def predicted(self) -> Tensor:
        """<w, w> of the recursion."""
        return torch.cat([self._known[0], self._pair[0]])

    def _momenta(self) -> dict[str, Tensor | None]:
        state = self._optimizer.state
        return {
            path: state[p].get("momentum_buffer") if p in state else None
            for path, p in self.flat.parameters.items()
        }

    def _coefficients(self) -> tuple[list[tuple[Tensor, int, int]], Tensor]:
        """Matrices of ``Setting.matrix`` for stretches of entries, and of translations' entries.

        They are sent to the device only when a setting has changed.
        """
        settings = settings_of(self._optimizer, self.flat.parameters)
        wanted = [settings[cell.paths[0]] for cell in self.flat.cells]
        if wanted == self._wanted:
            return self._quadratic, self._linear
        self._wanted = wanted
        cells = self.flat.forms.cells
        alike = itertools.groupby(zip(wanted, cells, strict=False), key=lambda pair: pair[0])
        stretches = [(setting, [cell for _, cell in pairs]) for setting, pairs in alike]
        self._quadratic = [
            (self._sent(setting.matrix()), few[0].start, few[-1].stop) for setting, few in stretches
        ]
        shifts = [
            row
            for setting, cell in zip(wanted[len(cells) :], self.flat.sums.cells, strict=True)
            for row in [(setting.step[:2], setting.momenta[:2])] * (cell.stop - cell.start)
        ]
        self._linear = self._sent(shifts).view(-1, 2, 2).permute(1, 2, 0)
        return self._quadratic, self._linear

    def _sent(self, numbers: Sequence[Any]) -> Tensor:
        """On the device, which is not waited for."""
        tensor = torch.tensor(numbers, dtype=torch.float64)
        if self.flat.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.flat.device, non_blocking=True)


def settings_of(optimizer: SGD, parameters: Mapping[str, nn.Parameter]) -> dict[str, Setting]:
    """The settings of parameters at the step to come, by path."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    shared = {id(group): Setting.of(group) for group in optimizer.param_groups}
    found = {}
    known: dict[Hashable, Setting] = {}
    for path, p in parameters.items():
        buffered = p in optimizer.state and optimizer.state[p].get("momentum_buffer") is not None
        key = (*shared[id(groups[id(p)])], buffered, p.grad is not None)
        found[path] = known.setdefault(key, Setting(*key))
    return found


class _Several:
    """<w, g> of cells of which several make one symmetry."""

    def __init__(self, cells: Sequence[Cell], device: torch.device) -> None:
        last = {cell.name: cell for cell in cells}
        size = cells[-1].stop if cells else 0
        keep = torch.zeros(size, dtype=torch.float64)
        to = torch.arange(size)
        for cell in cells:
            if cell is not last[cell.name]:
                keep[cell.start : cell.stop] = 1
                to[cell.start : cell.stop] = torch.arange(cell.stop - cell.start)
                to[cell.start : cell.stop] += last[cell.name].start
        self._keep, self._to = keep.to(device), to.to(device)

    def closed(self, wg: Tensor) -> Tensor:
        """As read, but in the last cell of a symmetry, which has minus the rest."""
        read = wg * self._keep
        return read.index_add(0, self._to, -read * self._keep)
