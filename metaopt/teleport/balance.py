"""``balance(model)``: moves a model to a chosen point of its orbit, in closed form, in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metaopt.base.tables import markdown_table
from metaopt.landscape.data import Data
from metaopt.landscape.gauss_newton import is_estimated, sharpness_stack
from metaopt.landscape.moments import require_per_sample
from metaopt.landscape.noise import gradient_stack, noise_stack
from metaopt.landscape.samples import Loss, Samples
from metaopt.symmetry.balancing import Balanced, balanced, logarithm
from metaopt.symmetry.balancing_parts import Like
from metaopt.symmetry.conserved import QUADRATIC, named, parameters_of
from metaopt.symmetry.discovery.find import plain
from metaopt.symmetry.discovery.find import symmetries as find_symmetries
from metaopt.symmetry.elements import Diagonal, ScaledRotation
from metaopt.symmetry.frames import columns, framed
from metaopt.symmetry.groups import Group, Symmetry
from metaopt.symmetry.modules import move, touches_of
from metaopt.symmetry.names import short
from metaopt.symmetry.touch import weights as moved
from metaopt.teleport.optimizer_state import POLICIES, require_optimizer_of, unwrapped

Stacks = dict[str, Tensor]

NULL = 1e-10
"""Moments of less than this share of the largest count as 0."""
BY: dict[str, str] = {
    "norm": "squared norm of the weights",
    "gradient": "squared norm of the gradient",
    "noise": "trace of the gradient noise",
    "sharpness": "trace of the Gauss-Newton matrix",
}
"""What ``balance`` makes least -> in words."""
_OF_DATA: dict[str, Callable[[Samples, Sequence[Symmetry]], Stacks]] = {
    "gradient": gradient_stack,
    "noise": noise_stack,
    "sharpness": sharpness_stack,
}


@dataclass(frozen=True)
class Balance:
    """What ``balance`` did.

    Attributes:
        by: what it made least: ``norm``, ``gradient``, ``noise`` or ``sharpness``.
        before: its value before, over the parameters that the symmetries move.
        after: its value after, the least on the orbit.
        residual: the gradient along the orbit that is left, relative to its scale.
        moved: {name of the symmetry: how far it was moved}: the largest |t| of its units, or the
            largest eigenvalue of |log g^T g| / 2.
        left: {name of the symmetry: why it, or some of its units, stayed}.
        is_estimated: whether the values are estimates from random draws, as the Gauss-Newton
            matrix's are if a sample has more than 64 outputs.
    """

    by: str
    before: float
    after: float
    residual: float
    moved: dict[str, float]
    left: dict[str, str]
    is_estimated: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """A plain dictionary for each symmetry: ``name``, ``moved``, ``left``."""
        return [
            {"name": name, "moved": moved, "left": self.left.get(name, "")}
            for name, moved in self.moved.items()
        ]

    def __str__(self) -> str:
        head = f"{BY[self.by]}: {self.before:.6g} -> {self.after:.6g}"
        if self.is_estimated:
            head += " (estimated from random draws)"
        rows = [[short(r["name"]), f"{r['moved']:.3g}", r["left"]] for r in self.rows()]
        return f"{head}\n\n{markdown_table(['symmetry', 'moved by', 'left alone'], rows)}"


def balance(
    model: nn.Module,
    by: str = "norm",
    *,
    loss: Loss | None = None,
    data: Data | None = None,
    optimizer: Optimizer | None = None,
    symmetries: Sequence[Symmetry] | None = None,
    example: Any = None,
    state: str = "transport",
) -> Balance:
    """Move a model to the point of its orbit where something is least, without a search.

        g = argmin over the orbit of   |w|^2   |grad L|^2   Tr Sigma   or   Tr G

    w are the weights, Sigma the covariance of per-sample gradients, G the Gauss-Newton matrix.
    There both sides of each symmetry weigh the same: W_in W_in^T = W_out^T W_out by norm, and with
    gradients instead of weights otherwise; by noise it is where SGD moves no charge on average. The
    outputs stay, and so do what the loss and its gradient flow make of the model. All scaled units
    and all matrices are balanced together (``symmetry.balancing``). Of the points that only
    rotations tell apart, a fixed one is taken (``symmetry.frames``), so that every point of the
    orbit is led to the same weights. Units without gradients go to their least norm; a general
    linear group stays where gradients do not reach all directions of its hidden space. Signs of
    units stay, also where a symmetry would allow them to change.

    New weights are computed in float64. Gradients that parameters hold, and the optimizer's state,
    move along as ``teleport`` moves them.

    Args:
        model: the model whose parameters are moved.
        by: ``norm``, ``gradient``, ``noise`` or ``sharpness``; the last three take loss and data.
        loss: (outputs, targets) -> a scalar, a mean over the samples.
        data: a pair (inputs, targets), or an iterable of such pairs (see ``landscape.samples``).
        optimizer: the optimizer that trains the model, if its state has to move too.
        symmetries: those to move along, of ``metaopt.symmetries(model)``. None: all that are found
            and have a quadratic charge; without an example only those that assume nothing.
        example: inputs of the model, on which the symmetries are tried if no list is given.
        state: what happens to the optimizer's state, as for ``teleport``.

    Returns:
        A report that can be printed.

    Raises:
        ValueError: if ``by`` or ``state`` is unknown, loss or data are missing, a sample has no
            gradient of its own, the optimizer belongs to another model or is of an unknown kind, or
            weights are not finite.

    References:
        Bhatia, Positive Definite Matrices (2007), chapter 4, for the geometric mean; Ziyin et al.,
        arXiv 2402.07193, for the noise equilibrium.
    """
    if by not in BY:
        raise ValueError(f"by must be one of {', '.join(BY)}, found {by!r}")
    if state not in POLICIES:
        raise ValueError(f"state must be one of {', '.join(POLICIES)}, found {state!r}")
    if by != "norm" and (loss is None or data is None):
        missing = " and ".join(n for n, x in (("loss", loss), ("data", data)) if x is None)
        raise ValueError(f"by={by!r} looks at gradients of samples: {missing} must be given")
    model = plain(model)
    if optimizer is not None:
        optimizer = unwrapped(optimizer)
        require_optimizer_of(optimizer, model)
    chosen = _chosen(model, symmetries, example)
    weights = parameters_of(model, chosen)
    frozen = [path for path, weight in weights.items() if not weight.requires_grad]
    if frozen:
        raise ValueError(
            f"{frozen[0]!r} is frozen, but a symmetry that is given moves it: list the symmetries "
            f"of the model as it is now"
        )
    wide = {path: weight.detach().double() for path, weight in weights.items()}
    if by == "norm":
        stacks = {path: weight[None] for path, weight in wide.items()}
    else:
        assert loss is not None
        samples = Samples(model, loss, data)
        stacks = _OF_DATA[by](samples, chosen)
        gradient = stacks if by == "gradient" else gradient_stack(samples, chosen)
        for symmetry in chosen:
            require_per_sample(symmetry, wide, gradient)
    found = _settled(chosen, stacks, "weights" if by == "norm" else "gradients", wide)
    clear = {one: moments for one, moments in found.moments.items() if one not in found.reasons}
    elements = framed(found, clear, wide)
    touched = touches_of(elements.items())
    if optimizer is not None:
        POLICIES[state](optimizer, model, touched)
    move(model, touched)
    estimated = by == "sharpness" and bool(chosen) and is_estimated(samples)
    return _report(by, found, chosen, estimated)


def _settled(
    symmetries: Sequence[Symmetry], stacks: Stacks, like: Like, weights: Mapping[str, Tensor]
) -> Balanced:
    """The least value, where it fixes all weights of a matrix; units that it does not see by norm.

    Directions of a hidden space in which there are weights, but none of what is made least, could
    be scaled and mixed at will. Their symmetries stay as they are.
    """
    moving, reasons = list(symmetries), dict[Symmetry, str]()
    while True:
        found = balanced(moving, stacks, like)
        touched = touches_of(found.items())
        there = {path: moved(weight, touched.get(path, [])) for path, weight in weights.items()}
        unseen = [one for one, moments in found.moments.items() if _is_unseen(one, moments, there)]
        if not unseen:
            break
        for one in unseen:
            reasons[one] = "gradients do not reach all directions of its hidden space"
        moving = [one for one in moving if one not in reasons]
    if found.unseen:
        _unseen_by_norm(found, moving, there)
    found.reasons |= reasons
    return found


def _is_unseen(symmetry: Symmetry, moments: Tensor, weights: Mapping[str, Tensor]) -> bool:
    """Whether there are weights in directions in which the moments, [blocks, k, k], are 0."""
    values, vectors = torch.linalg.eigh(moments)
    is_null = values <= NULL * values[:, -1:]
    x = columns(symmetry, symmetry.slots, weights)
    inside = (vectors * is_null[:, None]).mT @ x
    return bool((inside.norm(dim=(1, 2)) > NULL**0.5 * x.norm(dim=(1, 2))).any())


def _unseen_by_norm(
    found: Balanced, symmetries: Sequence[Symmetry], weights: Mapping[str, Tensor]
) -> None:
    """Units without gradients go to their least norm: nothing else says where they should be.

    Args:
        found: the elements, which change in place.
        symmetries: those that moved.
        weights: w after them, by path.
    """
    stacks = {path: weight[None] for path, weight in weights.items()}
    for symmetry, element in balanced(symmetries, stacks, "weights", found.unseen).items():
        t = logarithm(symmetry, element) + logarithm(symmetry, found[symmetry])
        is_scaling = symmetry.group is Group.SCALING
        found[symmetry] = Diagonal(t) if is_scaling else ScaledRotation(t, torch.zeros_like(t))


def _chosen(
    model: nn.Module, symmetries: Sequence[Symmetry] | None, example: Any
) -> list[Symmetry]:
    """The symmetries that have a quadratic charge; a warning names those that assume something."""
    found = find_symmetries(model, example) if symmetries is None else symmetries
    chosen = [symmetry for symmetry in found if symmetry.group in QUADRATIC]
    if symmetries is None and example is None:
        assuming = [symmetry for symmetry in chosen if symmetry.assumes]
        if assuming:
            named = "; ".join(f"{s.short_name} (if {s.assumes})" for s in assuming)
            warnings.warn(
                f"left alone: {named}: pass example=x, which tries them on inputs x", stacklevel=3
            )
        chosen = [symmetry for symmetry in chosen if not symmetry.assumes]
    if not chosen:
        warnings.warn(f"nothing is balanced: {found}", stacklevel=3)
    return chosen


def _report(by: str, found: Balanced, chosen: Sequence[Symmetry], estimated: bool) -> Balance:
    names = named(chosen)
    far = {n: _distance(logarithm(s, found[s])) if s in found else 0.0 for n, s in names.items()}
    left = {name: found.reasons[one] for name, one in names.items() if one in found.reasons}
    return Balance(by, found.before, found.after, found.residual, far, left, estimated)


def _distance(t: Tensor) -> float:
    """The largest |t|, of symmetric matrices the largest modulus of an eigenvalue."""
    values = torch.linalg.eigvalsh(t) if t.dim() == 3 else t
    return float(values.abs().max())
