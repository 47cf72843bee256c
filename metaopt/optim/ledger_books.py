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

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from metaopt.optim.ledger_flat import Flat, Tensors
from metaopt.optim.ledger_forms import Cell


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

    def rows(self) -> tuple[float, ...]:
        """w, w' - w and v' in terms of w, v and g: three rows of three."""
        stay = (1.0, 0.0, 0.0)
        if not self.moves:
            return *stay, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0
        towards = (self.weight_decay, 0.0, -1.0 if self.maximize else 1.0)
        step, after = towards, (0.0, 1.0, 0.0)
        if self.momentum != 0:
            kept = 1 - self.dampening
            after = towards
            if self.buffered:
                after = _add(tuple(kept * x for x in towards), (0.0, self.momentum, 0.0))
            step = _add(towards, tuple(self.momentum * x for x in after))
            step = step if self.nesterov else after
        return *stay, *(-self.lr * x for x in step), *after


def _add(x: Iterable[float], y: Iterable[float]) -> tuple[float, float, float]:
    one, two, three = (a + b for a, b in zip(x, y, strict=True))
    return one, two, three


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
        self.begin()

    def begin(self) -> None:
        """Nothing happened yet."""
        size = self.flat.forms.size + self.flat.sums.size
        self.first = torch.zeros(size, dtype=torch.float64, device=self.flat.device)
        self.second = torch.zeros_like(self.first)
        self._from: Tensors = {}

    def before(self) -> None:
        """Keep a copy of the weights."""
        self._from = {path: p.detach().clone() for path, p in self.flat.parameters.items()}

    def graded(self) -> None:
        """The step is all that counts."""

    def after(self) -> None:
        """Add what the step changed."""
        weights = self.flat.working(self._from)
        ends = self.flat.working(self.flat.parameters)
        steps = {path: ends[path] - x for path, x in weights.items()}
        first, second = self.flat.forms.products([weights, steps], steps)
        self.first += torch.cat([2 * first, self.flat.sums.of(steps)])
        self.second[: len(second)] += second
        self._from = {}

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
        self._wanted: list[tuple[float, ...]] = []
        self._rows = torch.zeros(0)
        self._entries = _entries(flat)
        self._several = _Several(flat.forms.cells, flat.device)
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Read weights and momenta as they are."""
        flat = self.flat
        w = flat.wide()
        v = {path: x.double() for path, x in flat.working(self._momenta()).items()}
        ww, wv = flat.forms.products([w, v], w)
        self._triple = torch.stack([ww, wv, flat.forms.products([v], v)[0]])
        self._pair = torch.stack([flat.sums.of(w), flat.sums.of(v)])
        self.first = torch.zeros(len(self._entries), dtype=torch.float64, device=flat.device)
        self.second = torch.zeros_like(self.first)

    def before(self) -> None:
        """Gradients may come with the closure."""

    @torch.no_grad()
    def graded(self) -> None:
        """Take the step."""
        flat, scaler = self.flat, getattr(self._optimizer, "grad_scale", None)
        g = flat.working({path: p.grad for path, p in flat.parameters.items()})
        v = {path: x for path, x in flat.working(self._momenta()).items() if path in g}
        lefts = [v, g, flat.working(flat.parameters)] if flat.several else [v, g]
        vg, gg, *rest = flat.forms.products(lefts, g)
        wg = self._several.closed(rest[0]) if rest else torch.zeros_like(gg)
        if scaler is not None:
            # A fused SGD is given gradients that a GradScaler has not divided yet.
            vg, wg, gg = vg / scaler, wg / scaler, gg / scaler.square()
        ww, wv, vv = self._triple
        rows = self._coefficients()
        quadratic, linear = rows[..., : flat.forms.size], rows[..., flat.forms.size :]
        gram = torch.stack([ww, wv, wg, wv, vv, vg, wg, vg, gg]).view(3, 3, -1)
        gram = torch.einsum("ian,abn,jbn->ijn", quadratic, gram, quadratic)
        first, second = 2 * gram[0, 1], gram[1, 1]
        triple = torch.stack([ww + first + second, gram[0, 2] + gram[1, 2], gram[2, 2]])
        _, step, momentum = torch.einsum("ian,an->in", linear[:, :2], self._pair)
        pair = torch.stack([self._pair[0] + step, momentum])
        changed = torch.cat([first, step])
        if (skipped := getattr(self._optimizer, "found_inf", None)) is not None:
            stays = skipped.to(flat.device) != 0
            triple = torch.where(stays, self._triple, triple)
            pair = torch.where(stays, self._pair, pair)
            changed, second = (torch.where(stays, 0.0, x) for x in (changed, second))
        self._triple, self._pair = triple, pair
        self.first += changed
        self.second[: len(second)] += second

    def after(self) -> None:
        """The step was taken when its gradients were known."""

    def predicted(self) -> Tensor:
        """<w, w> of the recursion."""
        return torch.cat([self._triple[0], self._pair[0]])

    def _momenta(self) -> dict[str, Tensor | None]:
        state = self._optimizer.state
        return {
            path: state[p].get("momentum_buffer") if p in state else None
            for path, p in self.flat.parameters.items()
        }

    def _coefficients(self) -> Tensor:
        """[row, w v g, entries]; sent to the device only when a setting has changed."""
        settings = settings_of(self._optimizer, self.flat.parameters)
        wanted = [settings[cell.paths[0]].rows() for cell in self.flat.cells]
        if wanted != self._wanted:
            rows = torch.tensor(wanted, dtype=torch.float64).T.contiguous()
            if self.flat.device.type == "cuda":
                rows = rows.pin_memory()
            rows = rows.to(self.flat.device, non_blocking=True)
            self._rows = rows.index_select(1, self._entries).view(3, 3, -1)
            self._wanted = wanted
        return self._rows


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


def _entries(flat: Flat) -> Tensor:
    """The cell of each entry."""
    lengths = torch.tensor([cell.stop - cell.start for cell in flat.cells])
    return torch.arange(len(lengths)).repeat_interleave(lengths).to(flat.device)


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
