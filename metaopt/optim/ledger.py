"""``Ledger(model, optimizer)``: what training does to each charge, foretold and measured."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from metaopt.optim.ledger_books import Book, MeasuredBook, PredictedBook, settings_of
from metaopt.optim.ledger_chosen import followed
from metaopt.optim.ledger_flat import Flat
from metaopt.optim.ledger_report import Rows, Span, Writer, fault, log, rows_of, span_of, table
from metaopt.symmetry.conserved import parameters_of
from metaopt.symmetry.discovery.find import plain
from metaopt.symmetry.groups import Symmetry
from metaopt.teleport.optimizer_state import require_optimizer_of, unwrapped


class Ledger:
    """Predicts and measures what each step of an optimizer does to every charge of a model.

        C' - C = 2 <w, d> + <d, d>,   d the step,   <w, grad L> = 0

    With torch's SGD (any momentum, dampening, Nesterov, coupled weight decay, groups of different
    settings, gradients clipped by their norm) the triple (<w, w>, <w, v>, <v, v>) of weights and
    momentum v has a closed recursion, which needs <v, g> and <g, g> of each gradient g alone. The
    charge is predicted by it from the first step on, without looking at the weights again, and it
    holds to rounding. With any other optimizer nothing is predicted: what its steps change is taken
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
        symmetries: whose charges; None: those of ``metaopt.symmetries(model, example)``, without
            an example only those that assume nothing.
        example: inputs of the model, if no list is given; heads of attention that is written out
            are found only with one.
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
        self._symmetries, self.skipped = followed(self._model, self._optimizer, symmetries, example)
        self._parameters = parameters_of(self._model, self._symmetries.values())
        self._writer, self._every, self._log_every = writer, every, log_every
        self.steps = self.restarts = 0
        self._sampled = self._due = self._warned = False
        self._checked = -log_every
        self._sum: Span | None = None
        self._rows: Rows | None = None
        self._identity: tuple[Tensor, Tensor] | None = None
        self._parts: dict[str, Any] = dict.fromkeys(self._parameters)
        self._keys: dict[str, Any] = {}
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

    def rows(self) -> Rows:
        """One plain dictionary for each symmetry, e.g. for ``pandas.DataFrame``.

        Returns:
            Of each: ``name``, ``group``, ``charges`` (how many), and means over the units (the
            diagonal of a matrix): ``charge`` now, its ``predicted`` and ``measured`` change since
            the ledger started (anew), with ``first_order`` and ``second_order`` part; ``error``,
            the largest difference of prediction and measurement, in units of |w_in|^2 + |w_out|^2
            (of the sum of |w| for a translation).
            ``predicted`` and ``error`` are None if nothing is predicted.
        """
        if self._rows is not None:
            return self._rows
        return rows_of(self._book.flat, self._total())

    def charges(self) -> dict[str, Tensor]:
        """The charges now, measured, in float64, on the CPU; shaped [blocks, ..] as they act."""
        flat = self._book.flat
        return flat.by_name(flat.total(flat.charges(flat.wide())))

    def predictions(self) -> dict[str, Tensor] | None:
        """The charges as predicted, shaped as ``charges``; None if nothing is predicted.

        If not every step is looked at: those after the last one that was.
        """
        flat, predicted = self._book.flat, self._book.predicted()
        return None if predicted is None else flat.by_name(flat.total(predicted))

    def __str__(self) -> str:
        about = "1 step" if self.steps == 1 else f"{self.steps} steps"
        if self._every > 1:
            about += f", every {self._every} of which one was looked at"
        if self.restarts:
            about += f"; started anew {self.restarts} times, since something changed between steps"
        left = [f"left alone: {one}" for one in self.skipped]
        return "\n".join([about, table(self.rows(), self._book.flat.symmetries), *left])

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
            span = span_of(self._book, self._start)
            self._sum = span if self._sum is None else self._sum.then(span)
        if self._due:
            self._checked = self.steps - 1
            rows = self.rows()
            self._judge(rows)
            if self._writer is not None:
                log(self._writer, rows, self.steps)

    def _total(self) -> Span:
        return (
            span_of(self._book, self._start) if self._every == 1 or self._sum is None else self._sum
        )

    def _judge(self, rows: Rows) -> None:
        """Warn, once, if weights are not finite, or a prediction failed."""
        identity, self._identity = self._identity, None
        if not self._warned and not all(math.isfinite(row["charge"]) for row in rows):
            self._warned = True
            warnings.warn(f"ledger: weights are not finite after {self.steps} steps", stacklevel=5)
        if self._warned or not self.predicts:
            return
        if (why := fault(self._book.flat, rows, identity, self.steps)) is not None:
            self._warned = True
            warnings.warn(f"ledger: {why}", stacklevel=5)
