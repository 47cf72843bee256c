"""``Ledger(model, optimizer)``: what training does to each charge, foretold and measured."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from metaopt.base.tables import markdown_table
from metaopt.optim.ledger_books import (
    Book,
    Flat,
    MeasuredBook,
    PredictedBook,
    settings_of,
)
from metaopt.symmetry.conserved import named, parameters_of
from metaopt.symmetry.discovery.find import plain
from metaopt.symmetry.discovery.find import symmetries as find_symmetries
from metaopt.symmetry.groups import Group, Skipped, Symmetry
from metaopt.symmetry.modules import tensor_at
from metaopt.teleport.optimizer_state import require_optimizer_of, unwrapped

REMEDY = (
    "clip with torch.nn.utils.clip_grad_norm_ over all parameters, or read only what is measured"
)


class Writer(Protocol):
    """What is asked of ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Log a number."""


@dataclass(frozen=True)
class _Span:
    """What some steps did to the charges [charges].

    Attributes:
        first: the part of the change linear in each step.
        second: the quadratic part.
        measured: the change, as measured.
        predicted: the change, as predicted; None if nothing is.
        error: |predicted - measured| in units of the size of the halves; None if nothing is.
    """

    first: Tensor
    second: Tensor
    measured: Tensor
    predicted: Tensor | None
    error: Tensor | None

    def then(self, other: _Span) -> _Span:
        """Both."""
        predicted, error = other.predicted, other.error
        if self.predicted is not None and predicted is not None:
            predicted = self.predicted + predicted
        if self.error is not None and error is not None:
            error = torch.maximum(self.error, error)
        return _Span(
            self.first + other.first,
            self.second + other.second,
            self.measured + other.measured,
            predicted,
            error,
        )


class Ledger:
    """Predicts and measures what each step of an optimizer does to every charge of a model.

        C' - C = 2 <w, d> + <d, d>,   d the step,   <w, grad L> = 0

    With torch's SGD (any momentum, dampening, Nesterov, coupled weight decay, groups of different
    settings, gradients clipped by their norm) the triple (<w, w>, <w, v>, <v, v>) of weights and
    momentum v has a closed recursion, which needs <v, g> and <g, g> of each gradient g alone. The
    charge is predicted by it from the first step on, without looking at the weights again, and holds
    to rounding. With any other optimizer nothing is predicted: what its steps change is taken
    apart into the first-order part, which would be zero along the gradient, and the second-order
    part.

        ledger = metaopt.Ledger(model, optimizer)
        ...                                         # the training loop, as it was
        print(ledger)

    Symmetries that move a parameter that is frozen, or that the optimizer does not train, are left
    alone, since <w, grad L> counts it too. Weights or momenta that change between two steps (a
    teleport, ``load_state_dict``) are noticed, unless they were written through ``.data``: the
    ledger starts anew. Steps that a ``GradScaler`` skips change nothing.

    Args:
        model: the model that is trained.
        optimizer: the optimizer that trains it, or a wrapper of Accelerate or Lightning around it.
        symmetries: whose charges; None: those of ``metaopt.symmetries(model, example)`` that assume
            nothing.
        example: inputs of the model, if no list is given.
        writer: a ``SummaryWriter`` of TensorBoard: each symmetry's mean change, measured and
            predicted, and the largest error, are logged every ``log_every`` steps.
        every: look at each ``every``-th step only, to save time; each step that is looked at is
            predicted and measured by itself.
        log_every: how often predictions are compared with what is measured. In between nothing
            waits for the device.

    Attributes:
        steps: how many steps were taken since the beginning.
        restarts: how often the ledger started anew.
        skipped: what is left alone, and why.

    Raises:
        ValueError: if the optimizer is another model's, a symmetry that is given belongs to another
            model or moves a buffer, or no symmetry with a charge is trained.

    References:
        Kunin et al., Neural Mechanics, arXiv 2012.04728; Ziyin et al., arXiv 2402.07193.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        symmetries: Iterable[Symmetry] | None = None,
        example: Any = None,
        writer: Writer | None = None,
        *,
        every: int = 1,
        log_every: int = 100,
    ) -> None:
        for name, value in (("every", every), ("log_every", log_every)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        self._model = plain(model)
        self._optimizer = unwrapped(optimizer)
        require_optimizer_of(self._optimizer, self._model)
        self.skipped: list[Skipped] = []
        if symmetries is None:
            symmetries = self._safe(find_symmetries(model, example))
        self._symmetries = self._trained(named(symmetries))
        if not self._symmetries:
            reasons = "; ".join(map(str, self.skipped)) or "no symmetry of this model has any"
            raise ValueError(f"there are no charges to follow: {reasons}")
        self._parameters = parameters_of(self._model, self._symmetries.values())
        self._writer, self._every, self._log_every = writer, every, log_every
        self.steps = self.restarts = 0
        self._sampled = self._due = self._warned = False
        self._checked = -log_every
        self._sum: _Span | None = None
        self._rows: list[dict[str, Any]] | None = None
        self._identity: tuple[Tensor, Tensor] | None = None
        self._parts: dict[str, Any] = dict.fromkeys(self._parameters)
        self._keys: dict[str, Any] = {}
        self._regroup()
        self._book = self._new_book()
        self._begin()
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before),
            self._optimizer.register_step_post_hook(self._after),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Look a last time, and leave the optimizer; the table stays."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._rows = self.rows()
        self._judge(self._rows)

    @property
    def predicts(self) -> bool:
        """Whether changes are predicted: whether the optimizer is torch's SGD."""
        return isinstance(self._book, PredictedBook)

    def rows(self) -> list[dict[str, Any]]:
        """One plain dictionary for each symmetry, e.g. for ``pandas.DataFrame``.

        Returns:
            Of each: ``name``, ``group``, ``charges`` (how many), and means over the units (the
            diagonal of a matrix): ``charge`` now, its ``predicted`` and ``measured`` change since
            the ledger started (anew), with ``first_order`` and ``second_order`` part; ``error``, the
            largest difference of prediction and measurement, in units of |w_in|^2 + |w_out|^2.
            ``predicted`` and ``error`` are None if nothing is predicted.
        """
        if self._rows is not None:
            return self._rows
        flat, span = self._book.flat, self._total()
        charge = flat.by_name(flat.total(flat.charges(flat.wide())))
        parts = {
            "predicted": span.predicted,
            "measured": span.measured,
            "first_order": span.first,
            "second_order": span.second,
        }
        means = {key: {} if value is None else flat.by_name(value) for key, value in parts.items()}
        errors = {} if span.error is None else flat.by_name(span.error)
        return [
            {
                "name": name,
                "group": str(symmetry.group),
                "charges": charge[name].numel(),
                "charge": _mean(charge[name]),
                **{key: _mean(of[name]) if of else None for key, of in means.items()},
                "error": float(errors[name].max()) if errors else None,
            }
            for name, symmetry in self._symmetries.items()
        ]

    def charges(self) -> dict[str, Tensor]:
        """The charges now, measured, in float64, on the CPU; shaped [blocks, ..] as they act."""
        flat = self._book.flat
        return flat.by_name(flat.total(flat.charges(flat.wide())))

    def predictions(self) -> dict[str, Tensor] | None:
        """The charges now as predicted, shaped as ``charges``; None if nothing is predicted."""
        predicted = self._book.predicted()
        return (
            None if predicted is None else self._book.flat.by_name(self._book.flat.total(predicted))
        )

    def __str__(self) -> str:
        header = ["symmetry", "charges", "charge", "predicted", "measured", "error"]
        header += ["first order", "second order"]
        keys = ["charge", "predicted", "measured", "error", "first_order", "second_order"]
        rows = [
            [
                self._symmetries[row["name"]].short_name,
                str(row["charges"]),
                *("-" if row[key] is None else f"{row[key]:.3g}" for key in keys),
            ]
            for row in self.rows()
        ]
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        about = (
            f"{steps}, of which each {self._every}-th was looked at" * (self._every > 1) or steps
        )
        if self.restarts:
            about += f"; started anew {self.restarts} times, since weights changed between steps"
        left = [f"left alone: {one}" for one in self.skipped]
        return "\n".join([about, markdown_table(header, rows), *left])

    def _safe(self, found: Iterable[Symmetry]) -> list[Symmetry]:
        """Those that assume nothing and move parameters alone."""
        chosen = []
        for symmetry in found:
            buffers = [
                slot.path
                for slot in symmetry.slots
                if not isinstance(tensor_at(self._model, slot.path), nn.Parameter)
            ]
            if symmetry.assumes:
                self._skip(symmetry, f"holds if {symmetry.assumes}; pass example= or symmetries=")
            elif buffers:
                self._skip(symmetry, f"moves {buffers[0]}, which no gradient moves")
            else:
                chosen.append(symmetry)
        return chosen

    def _trained(self, chosen: Mapping[str, Symmetry]) -> dict[str, Symmetry]:
        """Those of whose parameters all are trained by the optimizer."""
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        kept = {}
        for name, symmetry in chosen.items():
            parameters = parameters_of(self._model, [symmetry])
            idle = [
                path for path, p in parameters.items() if not p.requires_grad or id(p) not in held
            ]
            if idle:
                why = "is no parameter of the optimizer"
                if not parameters[idle[0]].requires_grad:
                    why = "is frozen"
                self._skip(symmetry, f"{idle[0]} {why}")
            else:
                kept[name] = symmetry
        return kept

    def _skip(self, symmetry: Symmetry, reason: str) -> None:
        if symmetry.group in {Group.ORTHOGONAL, Group.SIGNS, Group.PERMUTATION}:
            return
        self.skipped.append(Skipped(symmetry.modules[0], f"{symmetry.short_name}: {reason}"))

    def _new_book(self) -> Book:
        flat = Flat(self._symmetries, self._parameters, self._parts.__getitem__)
        # A subclass may step in another way.
        if type(self._optimizer) is SGD:
            return PredictedBook(flat, self._optimizer)
        return MeasuredBook(flat, self._optimizer)

    def _regroup(self) -> bool:
        """Whether parameters of one cell came to have different settings; then they are parted."""
        if type(self._optimizer) is not SGD:
            return False
        keys: dict[str, Any] = dict(settings_of(self._optimizer, self._parameters))
        if keys == self._keys:
            return False
        self._keys = keys
        parted = False
        for symmetry in self._symmetries.values():
            cells: dict[Any, set[Any]] = {}
            for slot in symmetry.slots:
                cells.setdefault(self._parts[slot.path], set()).add(keys[slot.path])
            parted |= any(len(settings) > 1 for settings in cells.values())
        if parted:
            self._parts = {path: (part, keys[path]) for path, part in self._parts.items()}
        return parted

    @torch.no_grad()
    def _begin(self) -> None:
        self._book.begin()
        flat = self._book.flat
        self._start = flat.total(flat.charges(flat.wide()))
        self._stamps = self._stamp()

    def _restart(self, reason: str) -> None:
        if not self.restarts:
            warnings.warn(f"ledger: {reason}: it starts anew", stacklevel=5)
        self.restarts += 1
        self._begin()

    def _stamp(self) -> list[tuple[int, ...]]:
        """Something that changes when weights or momenta are written."""
        state = self._optimizer.state
        stamps = []
        for p in self._parameters.values():
            momentum = state[p].get("momentum_buffer") if p in state else None
            more = () if momentum is None else (id(momentum), momentum._version)
            stamps.append((p.data_ptr(), p._version, *more))
        return stamps

    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        del optimizer
        self._sampled = self.steps % self._every == 0
        if not self._sampled:
            return None
        self._due = self.steps - self._checked >= self._log_every
        if self._every > 1:
            self._begin()
        elif self._stamp() != self._stamps:
            self._restart(
                f"weights or momenta changed between steps {self.steps} and {self.steps + 1} "
                f"(a teleport, load_state_dict)"
            )
        self._book.before()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._graded()
            return None

        def and_read() -> Any:
            loss = closure()
            self._graded()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": and_read}
        return (args[0], and_read, *args[2:]), kwargs

    @torch.no_grad()
    def _graded(self) -> None:
        """When the gradients are known."""
        if self._regroup():
            self._book = self._new_book()
            if self._every > 1:
                self._begin()
            elif self.steps:
                self._restart(f"parameters of one symmetry part at step {self.steps + 1}")
            else:
                self._begin()
        flat = self._book.flat
        if self._due and self.predicts:
            gradients = flat.working({path: p.grad for path, p in self._parameters.items()})
            if gradients:
                self._identity = flat.identities(flat.working(self._parameters), gradients)
        self._book.graded()

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del optimizer, args, kwargs
        self.steps += 1
        if not self._sampled:
            return
        self._book.after()
        self._stamps = self._stamp()
        if self._every > 1:
            span = self._span()
            self._sum = span if self._sum is None else self._sum.then(span)
        if self._due:
            self._checked = self.steps - 1
            rows = self.rows()
            self._judge(rows)
            self._log(rows)

    def _total(self) -> _Span:
        return self._span() if self._every == 1 or self._sum is None else self._sum

    @torch.no_grad()
    def _span(self) -> _Span:
        """From where the book began."""
        flat, predicted = self._book.flat, self._book.predicted()
        weights = flat.wide()
        now = flat.total(flat.charges(weights))
        error = None
        if predicted is not None:
            predicted = flat.total(predicted)
            error = (predicted - now).abs() / flat.total(flat.scales(weights))
            predicted = predicted - self._start
        first, second = flat.total(self._book.first), flat.total(self._book.second)
        return _Span(first, second, now - self._start, predicted, error)

    def _judge(self, rows: list[dict[str, Any]]) -> None:
        """Warn, once, if a prediction failed."""
        if self._warned or not self.predicts:
            return
        self._identity, identity = None, self._identity
        dtypes = {p.dtype for p in self._parameters.values()}
        least = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
        if identity is not None:
            products, sizes = (self._book.flat.by_name(one) for one in identity)
            cosines = {
                name: float(product.norm() / sizes[name].norm())
                for name, product in products.items()
            }
            name = max(cosines, key=lambda one: cosines[one])
            if cosines[name] > least:
                return self._warn(
                    f"the gradients of step {self.steps} break <w, grad> = 0 along {name!r} "
                    f"(cosine {cosines[name]:.1g}): they are no batch's gradient times one factor "
                    f"(clipped by value or layer by layer, noise, half precision)"
                )
        worst = max(rows, key=lambda row: float(row["error"]))
        if worst["error"] > least:
            self._warn(
                f"after step {self.steps} prediction and measurement along {worst['name']!r} differ "
                f"by {worst['error']:.1g} of |w|^2: gradients were changed by more than one factor "
                f"(clipped by value or layer by layer), or weights were written through .data"
            )
        return None

    def _warn(self, what: str) -> None:
        self._warned = True
        warnings.warn(f"ledger: {what}; {REMEDY}", stacklevel=5)

    def _log(self, rows: list[dict[str, Any]]) -> None:
        if self._writer is None:
            return
        for row in rows:
            for key in ("measured", "predicted"):
                if row[key] is not None:
                    self._writer.add_scalar(f"ledger/{row['name']}/{key}", row[key], self.steps)
        if self.predicts:
            worst = max(row["error"] for row in rows)
            self._writer.add_scalar("ledger/error", worst, self.steps)


def _mean(charge: Tensor) -> float:
    """Over the units."""
    units = charge.diagonal(dim1=1, dim2=2) if charge.dim() == 3 else charge
    return float(units.mean())
