"""``orbit(model, symmetry, loss, data)``: what changes along an orbit on which the loss stays.

    w(t) = exp(t T) w,   L(w(t)) = L(w)

Gradients move by the inverse transpose and curvature with them, so that for a scaling or a general
linear group with T the identity each of |w|^2, |grad L|^2, the trace of the gradients' covariance
and the trace of the Gauss-Newton matrix is c + a e^{2t} + b e^{-2t}; here they are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.landscape.data import Data
from metaopt.landscape.orbit_figure import Panel, orbit_figure, write_figure
from metaopt.landscape.point import Point
from metaopt.landscape.samples import Loss, Samples
from metaopt.landscape.subgroup import Subgroup, found_symmetry
from metaopt.symmetry.conserved import CONSERVING, form
from metaopt.symmetry.groups import Group, Symmetry
from metaopt.symmetry.modules import move_for_a_trial, tensor_at, touches_of

SHOWN = 11
"""Rows of the printed table, at most."""


@dataclass(frozen=True, eq=False)
class Orbit:
    """Quantities along w(t) = exp(t T) w, each a float64 tensor [len(t)] on the CPU.

    Gradients and curvature are those by all parameters that require gradients, and so is the norm
    of the weights.

    Attributes:
        symmetry: the symmetry.
        generator: T (see ``orbit``).
        matrix: ``gauss-newton`` or ``hessian``, which M is.
        damping: lambda, divided by the largest modulus of an eigenvalue of M.
        is_exact: whether M was written out and decomposed; else trace, eigenvalue and direction
            are those of a Krylov space, with what it leaves of the trace estimated.
        start: the loss at t = 0.
        t: where.
        loss: L, the mean loss.
        squared_norm: |w|^2.
        gradient_norm: |grad L|.
        noise_trace: tr Sigma, Sigma = 1/N sum_n (g_n - grad L)(g_n - grad L)^T.
        trace: tr M.
        trace_error: the standard error of the trace; 0 if it is exact.
        eigenvalue: the largest eigenvalue of M.
        cosine: cos(-grad L, d), d = -(|M| + lambda)^-1 grad L.
        cosine_error: by how much the cosine moved in the last 20 products; 0 if it is exact.
        charge: what gradient flow conserves, [len(t), *shape] (see ``metaopt.charges``); None if
            the group has no charge, or moves a buffer.
    """

    symmetry: Symmetry
    generator: Tensor
    matrix: str
    damping: float
    is_exact: bool
    start: float
    t: Tensor
    loss: Tensor
    squared_norm: Tensor
    gradient_norm: Tensor
    noise_trace: Tensor
    trace: Tensor
    trace_error: Tensor
    eigenvalue: Tensor
    cosine: Tensor
    cosine_error: Tensor
    charge: Tensor | None = None

    @property
    def loss_change(self) -> float:
        """max_t |L(w(t)) - L(w)| / |L(w)|: rounding, if the symmetry is one."""
        return float((self.loss - self.start).abs().max() / abs(self.start))

    @property
    def total_charge(self) -> Tensor | None:
        """The sum of the charge over blocks and units, of matrices the trace: [len(t)]."""
        if self.charge is None:
            return None
        if self.symmetry.group is Group.LINEAR:
            return self.charge.diagonal(dim1=-2, dim2=-1).flatten(1).sum(1)
        return self.charge.flatten(1).sum(1)

    def rows(self) -> list[dict[str, float]]:
        """One plain dictionary for each t, e.g. for ``pandas.DataFrame``; ``charge`` is its sum."""
        columns = {name: getattr(self, name) for name in _NAMES}
        if self.total_charge is not None:
            columns["charge"] = self.total_charge
        return [{name: float(x[i]) for name, x in columns.items()} for i in range(len(self.t))]

    def plot(self, path: str | Path | None = None) -> Any:
        """One figure with a panel for each quantity, written if a path is given.

        Args:
            path: a file that ends with .png, .pdf or .svg; None: none is written.

        Returns:
            The ``matplotlib.figure.Figure``, which a notebook shows.

        Raises:
            ValueError: if the path ends otherwise.
        """
        title = f"{self.symmetry.short_name} ({self.symmetry.group})"
        figure = orbit_figure(self.t, self._panels(), title)
        if path is not None:
            write_figure(figure, path)
        return figure

    def _panels(self) -> list[Panel]:
        name, letter = ("Gauss-Newton", "G") if self.matrix == "gauss-newton" else ("Hessian", "H")
        panels = [
            Panel("loss", "L", self.loss, best=""),
            Panel("squared norm of the weights", "|w|²", self.squared_norm),
            Panel("norm of the gradient", "|∇L|", self.gradient_norm),
            Panel("gradient noise of one sample", "tr Σ", self.noise_trace),
            Panel(f"sharpness: trace of the {name}", f"tr {letter}", self.trace, self.trace_error),
            Panel(f"largest eigenvalue of the {name}", f"λ({letter})", self.eigenvalue),
            Panel(
                "gradient and Newton direction",
                "cosine",
                self.cosine,
                self.cosine_error,
                "greatest",
            ),
        ]
        if self.total_charge is not None:
            panels.append(Panel("charge, sum over units", "C", self.total_charge, best=""))
        return panels

    def __str__(self) -> str:
        rows = self.rows()
        shown = rows[:: -(-(len(rows) - 1) // (SHOWN - 1)) or 1]
        names = [name for name in rows[0] if not name.endswith("_error")]
        lines = [" ".join(f"{_HEADS[name]:>10}" for name in names)]
        lines += [" ".join(f"{_short(row[name]):>10}" for name in names) for row in shown]
        errors = (self.trace_error, self.cosine_error)
        how = "exact"
        if not self.is_exact:
            trace, cosine = (_short(float(error.max())) for error in errors)
            how = f"trace to {trace}, eigenvalue to 1e-4, cosine to {cosine}"
        return "\n".join(
            [
                f"orbit of {self.symmetry.short_name} ({self.symmetry.group})",
                *lines,
                f"loss: largest relative change {self.loss_change:.1e}",
                f"M: {self.matrix}, {how}; damping {self.damping:g}",
            ]
        )

    __repr__ = __str__


_NAMES = (
    "t",
    "loss",
    "squared_norm",
    "gradient_norm",
    "noise_trace",
    "trace",
    "trace_error",
    "eigenvalue",
    "cosine",
    "cosine_error",
)
_HEADS = {
    "t": "t",
    "loss": "loss",
    "squared_norm": "|w|^2",
    "gradient_norm": "|grad|",
    "noise_trace": "tr noise",
    "trace": "tr M",
    "eigenvalue": "max eig",
    "cosine": "cos Newton",
    "charge": "charge",
}


def _short(value: float) -> str:
    return f"{value:.4g}"


def orbit(
    model: nn.Module,
    symmetry: Symmetry | str,
    loss: Loss,
    data: Data,
    t: Tensor | Sequence[float] | None = None,
    generator: Tensor | str | None = None,
    seed: int = 0,
    *,
    matrix: str = "gauss-newton",
    damping: float = 1e-3,
) -> Orbit:
    """Loss, gradient, noise and curvature along w(t) = exp(t T) w, for a generator T of a symmetry.

    At each t the weights are moved and everything is measured anew. Afterwards the model is as it
    was, to the bit, with its gradients, its buffers and torch's random numbers.

    M is the Gauss-Newton matrix, or the Hessian, which is slower and has eigenvalues of both signs.
    With up to 1,024 parameters it is written out. With more, Lanczos' method finds the largest
    eigenvalue to 1e-4 and the cosine until it moves by less than 1e-4 in 20 products, by 300
    products at most; what its Krylov space leaves of the trace is Hutchinson's estimate by 32
    vectors of random signs, the same at each t.

    Args:
        model: any module. Its mode is kept.
        symmetry: one of ``metaopt.symmetries(model)``, or its name.
        loss: (outputs, targets) -> a scalar, the mean over the samples.
        data: a pair (inputs, targets), or an iterable of such pairs that can be run through more
            than once (see ``Samples``).
        t: where to measure, finite numbers; None: 21 from -2 to 2.
        generator: T, for a general linear group [blocks, size, size]; for positive scaling
            [blocks, size], the logarithm by which each unit grows; for a scale and rotation
            [blocks, 2], logarithm and angle; for an orthogonal group [blocks, size, size], skew.
            The first axis may be missing if there is one block. ``"identity"``: all units by the
            same t; ``"random"``: of Frobenius norm 1 in each block, from the seed. None: the
            identity, and random for orthogonal groups and translations, which have none.
        seed: of the random numbers, at least 0.
        matrix: ``gauss-newton`` or ``hessian``.
        damping: lambda divided by the largest modulus of an eigenvalue, above 0.

    Raises:
        ValueError: if the model has no such symmetry, its group is discrete, T has another shape
            or is no generator, t is not finite, the data are empty, no parameter requires a
            gradient, or a sample has no gradient of its own (BatchNorm in training mode).

    References:
        Zhao, Gower, Walters and Yu, arXiv 2305.13404, for gradients and Newton's direction on
        orbits; Dinh et al., arXiv 1703.04933, for sharpness.
    """
    times = _times(t)
    samples = Samples(model, loss, data)
    chosen = found_symmetry(samples.model, symmetry)
    subgroup = Subgroup.of(chosen, generator, seed)
    point = Point(samples, matrix, damping, subgroup.numbers.of)
    rows: list[dict[str, float]] = []
    charges: list[Tensor] = []
    with _restored(samples.model, chosen) as restore:
        start = point.loss()
        for one in times.tolist():
            restore()
            if one != 0:
                move_for_a_trial(samples.model, touches_of([(chosen, subgroup.at(one))]))
            rows.append(point.measured())
            charges += _charge(samples.model, chosen)
    columns = {name: times.new_tensor([row[name] for row in rows]) for name in rows[0]}
    return Orbit(
        symmetry=chosen,
        generator=subgroup.T,
        matrix=matrix,
        damping=damping,
        is_exact=point.is_exact,
        start=start,
        t=times,
        charge=torch.stack(charges) if charges else None,
        **columns,
    )


@contextmanager
def _restored(model: nn.Module, symmetry: Symmetry) -> Iterator[Callable[[], None]]:
    """What a symmetry moves, and torch's random numbers, as they were at the end of the context.

    Yields:
        What puts them back within the context.
    """
    paths = {slot.path for slot in symmetry.slots}
    saved = {path: tensor_at(model, path).detach().clone() for path in sorted(paths)}
    devices = {parameter.device for parameter in model.parameters()}
    cuda = [str(device) for device in devices if device.type == "cuda"]

    def restore() -> None:
        # Unnoticed by graphs that still wait for their backward pass.
        for path, value in saved.items():
            tensor_at(model, path).data.copy_(value)
        # Each point sees the same random numbers, if data or loss draw any.
        torch.set_rng_state(state)

    with torch.random.fork_rng(cuda):
        state = torch.get_rng_state()
        try:
            yield restore
        finally:
            restore()


def _charge(model: nn.Module, symmetry: Symmetry) -> list[Tensor]:
    """The charge of a symmetry in a list; an empty one if it has none, or moves a buffer."""
    tensors = {slot.path: tensor_at(model, slot.path) for slot in symmetry.slots}
    is_learned = all(isinstance(tensor, nn.Parameter) for tensor in tensors.values())
    if symmetry.group not in CONSERVING or not is_learned:
        return []
    wide = {path: tensor.detach().double() for path, tensor in tensors.items()}
    return [form(symmetry, wide, wide).cpu()]


def _times(t: Tensor | Sequence[float] | None) -> Tensor:
    # With 0 itself, which linspace misses by rounding.
    times = torch.arange(-10, 11, device="cpu").double() / 5 if t is None else t
    times = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
    if times.dim() != 1 or len(times) == 0 or not bool(times.isfinite().all()):
        raise ValueError(f"t must be one or more finite numbers, found {times.tolist()}")
    return times
