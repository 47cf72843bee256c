"""What a ledger says: what some steps did to the charges, as rows, as a table, as a warning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from metaopt.base.tables import markdown_table
from metaopt.optim.ledger_books import Book
from metaopt.optim.ledger_flat import Flat
from metaopt.symmetry.groups import Symmetry

Rows = list[dict[str, Any]]

REMEDY = (
    "clip with torch.nn.utils.clip_grad_norm_ over all parameters, or read only what is measured"
)


class Writer(Protocol):
    """What is asked of ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Log a number."""


@dataclass(frozen=True)
class Span:
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

    def then(self, other: Span) -> Span:
        """Both."""
        predicted, error = other.predicted, other.error
        if self.predicted is not None and predicted is not None:
            predicted = self.predicted + predicted
        if self.error is not None and error is not None:
            error = torch.maximum(self.error, error)
        return Span(
            self.first + other.first,
            self.second + other.second,
            self.measured + other.measured,
            predicted,
            error,
        )


@torch.no_grad()
def span_of(book: Book, start: Tensor) -> Span:
    """What happened since the book began, when the charges were ``start`` [charges]."""
    flat, predicted = book.flat, book.predicted()
    weights = flat.wide()
    now = flat.total(flat.charges(weights))
    error = None
    if predicted is not None:
        predicted = flat.total(predicted)
        error = (predicted - now).abs() / flat.total(flat.scales(weights))
        predicted = predicted - start
    first, second = flat.total(book.first), flat.total(book.second)
    return Span(first, second, now - start, predicted, error)


@torch.no_grad()
def rows_of(flat: Flat, span: Span) -> Rows:
    """One dictionary for each symmetry; see ``Ledger.rows``."""
    charge = flat.by_name(flat.total(flat.charges(flat.wide())))
    parts = {
        "predicted": span.predicted,
        "measured": span.measured,
        "first_order": span.first,
        "second_order": span.second,
    }
    means = {key: None if one is None else flat.by_name(one) for key, one in parts.items()}
    errors = None if span.error is None else flat.by_name(span.error)
    return [
        {
            "name": name,
            "group": str(symmetry.group),
            "charges": charge[name].numel(),
            "charge": _mean(charge[name]),
            **{key: None if one is None else _mean(one[name]) for key, one in means.items()},
            "error": None if errors is None else float(errors[name].max()),
        }
        for name, symmetry in flat.symmetries.items()
    ]


def table(rows: Rows, symmetries: Mapping[str, Symmetry]) -> str:
    """The rows in Markdown, aligned."""
    keys = ["charge", "predicted", "measured", "error", "first_order", "second_order"]
    header = ["symmetry", "charges", *(key.replace("_", " ") for key in keys)]
    cells = [
        [
            symmetries[row["name"]].short_name,
            str(row["charges"]),
            *("-" if row[key] is None else f"{row[key]:.3g}" for key in keys),
        ]
        for row in rows
    ]
    return markdown_table(header, cells)


def log(writer: Writer, rows: Rows, step: int) -> None:
    """Mean changes of each symmetry's charges, and the largest error."""
    for row in rows:
        for key in ("measured", "predicted"):
            if row[key] is not None:
                writer.add_scalar(f"ledger/{row['name']}/{key}", row[key], step)
    errors = [row["error"] for row in rows if row["error"] is not None]
    if errors:
        writer.add_scalar("ledger/error", max(errors), step)


def fault(flat: Flat, rows: Rows, identity: tuple[Tensor, Tensor] | None, step: int) -> str | None:
    """Why the predictions up to a step are wrong, in one line; None if they are right.

    Args:
        flat: what is followed.
        rows: the ledger's, with predictions.
        identity: of the step's gradient g, <w, g> and |w| |g| [charges], if known.
        step: the step.
    """
    dtypes = {p.dtype for p in flat.parameters.values()}
    rounding = max(torch.finfo(dtype).eps for dtype in dtypes)
    least = rounding**0.5
    if identity is not None:
        products, sizes = (flat.by_name(one) for one in identity)
        cosines = {
            name: float(product.norm() / sizes[name].norm()) for name, product in products.items()
        }
        name, cosine = _largest(list(cosines), list(cosines.values()))
        if cosine > least:
            return (
                f"the gradients of step {step} break <w, grad> = 0 along {name!r} (cosine "
                f"{cosine:.1g}): they are no batch's gradient times one factor (clipped by value "
                f"or layer by layer, noise, half precision); {REMEDY}"
            )
    name, error = _largest([row["name"] for row in rows], [row["error"] for row in rows])
    # Each step may round by as much again.
    if error > least + rounding * step:
        return (
            f"after step {step} prediction and measurement along {name!r} differ by {error:.1g} of "
            f"|w|^2: gradients were changed by more than one factor (clipped by value or layer by "
            f"layer), or weights were written through .data; {REMEDY}"
        )
    return None


def _largest(names: Sequence[str], values: Sequence[float]) -> tuple[str, float]:
    """With its name; what is no number, since a half or a gradient is 0, does not count."""
    pairs = [(value, name) for name, value in zip(names, values, strict=True) if value == value]
    value, name = max(pairs, default=(0.0, ""))
    return name, value


def _mean(charge: Tensor) -> float:
    """Over the units."""
    units = charge.diagonal(dim1=1, dim2=2) if charge.dim() == 3 else charge
    return float(units.mean())
