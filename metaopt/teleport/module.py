"""``teleport(model)``: moves a model along its symmetries, at random or by a search, in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor, nn
from torch.optim import Optimizer

from metaopt.symmetry.discovery.find import plain
from metaopt.symmetry.discovery.find import symmetries as find_symmetries
from metaopt.symmetry.groups import Skipped, Symmetries, Symmetry
from metaopt.symmetry.modules import move, touches
from metaopt.symmetry.motion import Motion, motions_of
from metaopt.symmetry.names import ranges
from metaopt.teleport.optimizer_state import POLICIES, forget, require_optimizer_of, unwrapped

if TYPE_CHECKING:
    from metaopt.teleport.search_report import SearchReport


@overload
def teleport(
    model: nn.Module,
    norm: float = ...,
    seed: int = ...,
    symmetries: Sequence[Symmetry] | None = ...,
    *,
    objective: None = ...,
    optimizer: Optimizer | None = ...,
    state: str = ...,
) -> Symmetries: ...


@overload
def teleport(
    model: nn.Module,
    norm: float = ...,
    seed: int = ...,
    symmetries: Sequence[Symmetry | Motion] | None = ...,
    *,
    objective: str | Callable[[nn.Module], Tensor],
    loss: Callable[[Any, Tensor], Tensor] | None = ...,
    data: Any = ...,
    fresh: Any = ...,
    maximise: bool = ...,
    steps: int = ...,
    lr: float | None = ...,
    max_norm: float | None = ...,
    tolerance: float = ...,
    starts: int = ...,
    optimizer: Optimizer | None = ...,
    state: str = ...,
) -> SearchReport: ...


def teleport(
    model: nn.Module,
    norm: float = 0.5,
    seed: int = 0,
    symmetries: Sequence[Symmetry | Motion] | None = None,
    *,
    objective: str | Callable[[nn.Module], Tensor] | None = None,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    data: Any = None,
    fresh: Any = None,
    maximise: bool = True,
    steps: int = 10,
    lr: float | None = None,
    max_norm: float | None = 0.5,
    tolerance: float = 1e-4,
    starts: int = 1,
    optimizer: Optimizer | None = None,
    state: str = "transport",
) -> Symmetries | SearchReport:
    """w -> g w in place, for a random element of each symmetry or for the best that is found.

        g = exp(T), ||T||_F = norm,   or   T = argmax of objective(g w) over ||T||_F <= max_norm

    The model's outputs stay the same up to the rounding of the parameters' dtype; the new weights
    are computed in float64. Gradients that the parameters hold move by the inverse transpose g^-T,
    and so become the gradients at the new weights. A second call with the same seed and ``-norm``
    undoes the first.

    Where a stream is rotated in front of equal gains (``Symmetry.blurs``), the gradients of these
    gains at the new weights are no known function of the old ones. They are set to None, with the
    optimizer's state of the gains, and a warning says so. These rotations come first, since others
    of the symmetries move the gains. After that they are symmetries no longer: list them again.

    The tensors of a symmetry may lie on different devices: each is moved where it lies, by a copy
    of the same element.

    If no list is given, symmetries that rest on an assumption (``Symmetry.assumes``, printed as
    ``[if ...]``) are not applied, and a warning names them: the outputs would change if the
    assumption were false. If a list is given, all symmetries in it are applied.
    ``metaopt.symmetries(model, example=x)`` returns a list that was tested on the inputs x.

    A search is bounded, since on an orbit without end the largest gradient does not exist. It takes
    one gradient where the objective is ``gradient_norm`` and all symmetries are exact: the gradient
    on the orbit then follows from the one at w. Otherwise each step differentiates the objective.
    Models that draw random numbers (dropout) are to be searched in evaluation mode.

    Args:
        model: the model whose parameters are moved.
        norm: the Frobenius norm of the generator of each symmetry (in attention: of each head), if
            elements are random.
        seed: the seed of the random generators, at least 0.
        symmetries: the symmetries to apply, all or some of ``metaopt.symmetries(model)``. None:
            those that are found in the model and assume nothing. A search also takes an
            ``OwnSymmetry``, and what ``metaopt.through_data`` gives.
        objective: None: random elements. ``gradient_norm``: |grad L|^2. ``sharpness``: the mean
            rise of the loss in isotropic directions. ``curvature``: of curves on the orbit. Or a
            function (model) -> scalar tensor, differentiable in the parameters. ``level_set`` needs
            no symmetry: it makes log |grad L| large under L <= L(w) (``teleport.level_set``).
        loss: of a search: (outputs, targets) -> a scalar, the mean over the samples.
        data: a pair (inputs, targets), or an iterable of such pairs (see ``metaopt.noise``). If
            neither loss nor data are given, ``gradient_norm`` takes the gradients that the
            parameters hold.
        fresh: other data, on which the drift of the outputs is measured as well.
        maximise: whether the objective is made large; otherwise small.
        steps: steps of the search, at least 1.
        lr: a fixed rate of gradient ascent, T + lr dF/dT, whose steps are taken whatever they do;
            of a level set the first size of its steps. None: the search finds the lengths of its
            steps, and takes none that makes the objective worse (``teleport.search.QuasiNewton``).
        max_norm: the bound on the norm of the generator of each symmetry (of each block), to which
            the search projects; of a level set, on |w' - w|. None: none, if all orbits are compact.
        tolerance: the drift ||f(w') - f(w)|| / (||f(w)|| + ||Y||) up to which the model is moved,
            on the data and on fresh data; ``math.inf`` lets every move through. A level set, which
            keeps the loss and not the outputs, is not held to it.
        starts: points that the search starts from, the first at w; the best is taken.
        optimizer: the optimizer that trains the model, if its state has to move too. It may be
            wrapped by Accelerate or Lightning.
        state: what happens to the optimizer's state. ``transport`` moves it to the new weights
            where that is possible exactly, and resets the rest (see ``teleport.optimizer_state``);
            ``reset`` resets the state of every parameter that moved.

    Returns:
        Of random elements the symmetries that were applied; its ``skipped`` lists what was found
        and not applied. Of a search a ``SearchReport``.

    Raises:
        ValueError: if the norm is not finite, the seed is negative, ``state`` is unknown, the
            optimizer belongs to another model or is of an unknown kind, the symmetries belong to
            another model, a stream would be rotated in front of gains that are not equal, a
            search is given no bound on an orbit without end, or its move drifts beyond the
            tolerance (then the model is as it was).

    References:
        Zhao, Gower, Walters and Yu, Improving Convergence and Generalization Using Parameter
        Symmetries, arXiv 2305.13404; Mishkin, Bietti and Gower, Level Set Teleportation, arXiv
        2403.03362.
    """
    if state not in POLICIES:
        raise ValueError(f"state must be one of {', '.join(POLICIES)}, found {state!r}")
    model = plain(model)
    if optimizer is not None:
        optimizer = unwrapped(optimizer)
        require_optimizer_of(optimizer, model)
    if objective is not None:
        # Searches read losses, which random elements have no use for.
        from metaopt.teleport.searched import LEVEL_SET, Request, searched

        listed: Sequence[Symmetry | Motion] = ()
        if objective != LEVEL_SET:
            listed = found_symmetries(model) if symmetries is None else symmetries
        motions, left = motions_of(listed)
        request = Request(
            objective, loss, data, fresh, maximise, steps, lr, max_norm, tolerance, starts, seed
        )
        return searched(model, motions, left, request, optimizer, state)
    if not (loss is None and data is None and fresh is None):
        raise ValueError(
            "loss and data are for a search: give an objective, one of gradient_norm, sharpness, "
            "curvature, level_set or a function of the model"
        )
    if symmetries is None:
        chosen = found_symmetries(model)
    else:
        chosen = Symmetries(one for one in symmetries if isinstance(one, Symmetry))
        if len(chosen) < len(symmetries):
            raise ValueError(
                "random elements are those of metaopt.symmetries(model): symmetries of one's own "
                "and actions through data need an objective to search for"
            )
    touched = touches(model, chosen, norm, seed)
    if optimizer is not None:
        POLICIES[state](optimizer, model, touched)
    move(model, touched)
    blurred = dict.fromkeys(path for symmetry in chosen for path in symmetry.blurs if norm)
    if forgotten := forget(optimizer, model, blurred):
        warnings.warn(
            f"gradients of {ranges(forgotten)} at the new weights are no known function of the old "
            f"ones, and are forgotten: take the gradient again before the next step",
            stacklevel=2,
        )
    return chosen


def found_symmetries(model: nn.Module) -> Symmetries:
    """The symmetries of a model that assume nothing; a warning names the others.

    Args:
        model: any module.
    """
    found = find_symmetries(model)
    left_alone = [_left_alone(symmetry) for symmetry in found if symmetry.assumes]
    chosen = Symmetries([s for s in found if not s.assumes], found.skipped + left_alone)
    if not chosen:
        warnings.warn(f"nothing is teleported: {chosen}", stacklevel=3)
    elif left_alone:
        warnings.warn(f"left alone: {'; '.join(map(str, left_alone))}", stacklevel=3)
    return chosen


def _left_alone(symmetry: Symmetry) -> Skipped:
    """A symmetry that rests on an assumption, with what the user can do to apply it."""
    reason = (
        f"{symmetry.short_name}: holds if {symmetry.assumes}; to move it, pass "
        f"symmetries=metaopt.symmetries(model, example=x), which tries it on inputs x"
    )
    return Skipped(symmetry.modules[0], reason)
