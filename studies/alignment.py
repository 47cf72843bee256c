"""Where learned steps point, seen at stops of their trajectories: geometry, Newton, teleports.

At a stop, inner step t, a trajectory has just made the end of step t - 1 and is about to make the
next update:

    u = w_{t-1} + f_{t-1},   w_t = g_{t-1} . u,   next: f_t at w_t

``before`` is u, ``after`` is w_t, and ``undone`` is G^-1 . w_t with G = g_{t-1} ... g_0: the same
function where no teleport had been. The three have the same outputs. Without teleports (and at
t = 0) they are one point and nothing is said of the other two. A direction d(.) is a damped Newton
direction of ``curvature``, in all of (W1, W2) (and, beside it, in W2 alone, where only W2's part of
a vector counts). Compared by cosine, for each task:

    gradient before   -grad L(u) with d(u)
    gradient after    -grad L(w_t) with d(w_t)
    gradient gain     the second less the first: what this one teleport did
    gradient undone   -grad L(G^-1 . w_t) with d(G^-1 . w_t)
    gradient total gain   gradient after less gradient undone: what all teleports so far did
    update            f_t with d(w_t)
    update carried    f_t with d(u) carried to w_t by the derivative of w -> g_{t-1} . w at u
    update undone     f_t carried back by the derivative of w -> G^-1 . w, with d(G^-1 . w_t): the
                      step in coordinates that no teleport has changed
    ... in outputs    the same in what they do to the outputs f(w): J v for a direction v, and
                      f(w_t + f_t) - f(w_t) for the update

In outputs a step is seen modulo the group: a teleport moves no output, so that the change of
outputs by the update is that of the whole step w_t -> w_{t+1}. With k = n = m = N the orbits have
k^2 = P - m N dimensions, so that outputs are local coordinates of the weights modulo the group, and
undamped Gauss-Newton is the same there at every point of an orbit: straight to Y.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.base.network import Weights, forward
from metaopt.landscape.curvature import CURVATURES, Curvature, cosine, flat, jacobian
from metaopt.meta.unroll import InnerState, start, unroll
from metaopt.rules.composed import MetaOptimizer
from metaopt.symmetry.actions import Action, LayerPair
from metaopt.symmetry.maps import GroupElement
from metaopt.tasks.regression import TaskBatch
from metaopt.teleport.base import Generators
from metaopt.teleport.engine import of_pairs

DAMPINGS = (1e-3, 1e-6)
PIECE = 16
"""Tasks whose Hessians are in memory together."""

Key = tuple[str, float, str]
"""(curvature, damping, what is compared)."""


@dataclass(frozen=True)
class Teleported:
    """The teleport that ended the step before a stop."""

    action: Action  # of its elements
    before: Weights  # u
    element: GroupElement  # g_{t-1}, in float64; the identity where the guard refused
    total: GroupElement  # G = g_{t-1} ... g_0, in float64


@dataclass(frozen=True)
class Stop:
    """B trajectories between two inner steps."""

    step: int  # t
    weights: Weights  # w_t
    update: Weights  # f_t
    teleported: Teleported | None  # or None where none led here


@dataclass(frozen=True)
class Measured:
    """What is found at a stop, each [B], NaN for tasks whose weights are not finite."""

    state: Mapping[str, Tensor]  # condition numbers, losses and gradient norms by name
    alignment: Mapping[Key, Tensor]  # cosines


def stops(tasks: TaskBatch, optimizer: MetaOptimizer, steps: Sequence[int]) -> Iterator[Stop]:
    """The trajectories at the given inner steps; the inner loop is ``unroll``.

    Args:
        tasks: B two-layer tasks.
        optimizer: whose trajectories.
        steps: t of each stop.
    """
    with torch.no_grad():
        state, teleported = start(tasks, optimizer), None
        for step in range(max(steps) + 1):
            if step > 0:
                teleported = _teleport(tasks, optimizer, state, teleported)
                state, _ = unroll(tasks, optimizer, state, 1)
            if step in steps:
                update, _ = _proposed(optimizer, state)
                yield Stop(step, state.weights, update, teleported)


def _proposed(optimizer: MetaOptimizer, state: InnerState) -> tuple[Weights, Generators | None]:
    """f_t and T_t."""
    proposal, _ = optimizer.propose(state.observation, state.optimizer)
    assert proposal.updates is not None
    return proposal.updates, proposal.generators


def _teleport(
    tasks: TaskBatch, optimizer: MetaOptimizer, state: InnerState, last: Teleported | None
) -> Teleported | None:
    """The teleport that will end the next step, after the last one; None without teleports."""
    update, generators = _proposed(optimizer, state)
    engine = of_pairs(optimizer.engine)
    if generators is None or engine is None:
        return None
    before = tuple(W + f for W, f in zip(state.weights, update, strict=True))
    _, report = engine.teleport(before, generators, tasks)
    share = torch.where(report.refused, 0.0, report.scale)[:, None, None]
    (applied,) = report.generators
    element = engine.to_element((share * applied).double())
    total = element
    if last is not None:
        total = GroupElement(element.g @ last.total.g, last.total.g_inv @ element.g_inv)
    return Teleported(engine.action, before, element, total)


def measure(tasks: TaskBatch, stop: Stop) -> Measured:
    """Everything at a stop, in float64.

    Args:
        tasks: the same B two-layer tasks, of any dtype.
        stop: from ``stops``.
    """
    points = [stop.weights, stop.update]
    if stop.teleported is not None:
        total = stop.teleported.total
        points += [stop.teleported.before, (total.g, total.g_inv)]
    rows = torch.cat([flat(tensors) for tensors in points], dim=1)
    finite = torch.isfinite(rows).all(1).nonzero()[:, 0]
    found = [
        _measure(_doubled(tasks, index), _at(stop, index))
        for index in finite.split(PIECE)
        if len(index)
    ]
    size = tasks.size

    def whole(parts: Sequence[Tensor]) -> Tensor:
        filled = torch.full((size,), torch.nan, dtype=torch.float64, device=finite.device)
        filled[finite] = torch.cat(list(parts))
        return filled

    if not found:
        return Measured({}, {})
    return Measured(
        {name: whole([part.state[name] for part in found]) for name in found[0].state},
        {key: whole([part.alignment[key] for part in found]) for key in found[0].alignment},
    )


def _doubled(tasks: TaskBatch, index: Tensor) -> TaskBatch:
    """Tasks of an index, in float64."""
    initial = tuple(W[index].double() for W in tasks.initial)
    return TaskBatch(tasks.X[index].double(), tasks.Y[index].double(), initial, tasks.s)


def _at(stop: Stop, index: Tensor) -> Stop:
    """A stop at the tasks of an index, in float64."""

    def cut(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor[index].double() for tensor in tensors)

    def element(whole: GroupElement) -> GroupElement:
        return GroupElement(whole.g[index], whole.g_inv[index])

    gone = stop.teleported
    if gone is not None:
        gone = Teleported(gone.action, cut(gone.before), element(gone.element), element(gone.total))
    return Stop(stop.step, cut(stop.weights), cut(stop.update), gone)


def condition(tasks: TaskBatch, weights: Weights) -> Tensor:
    """cond(H), H = s(W1 X) the input of the last layer: largest over smallest singular value."""
    H = forward(weights, tasks.X, tasks.s).inputs[-1]
    singular = torch.linalg.svdvals(H)
    return singular[:, 0] / singular[:, -1]


def acted(tasks: TaskBatch, action: Action, element: GroupElement, weights: Weights) -> Weights:
    """g . (W1, W2).

    Args:
        tasks: B tasks.
        action: of the element.
        element: g [B, k, k].
        weights: (W1 [B, k, n], W2 [B, m, k]).
    """
    W1, W2 = weights
    pair = LayerPair(W1, W2, tasks.s, inputs=tasks.X, inputs_pinv=tasks.X_pinv)
    moved = action.act(element, pair)
    return moved.W_in, moved.W_out


def carried(
    tasks: TaskBatch, action: Action, element: GroupElement, at: Weights, direction: Weights
) -> Weights:
    """The derivative of w -> g . w at a point along a direction, g held fixed.

    Args:
        tasks: B tasks.
        action: of the element.
        element: g [B, k, k].
        at: the point, (W1 [B, k, n], W2 [B, m, k]).
        direction: likewise.
    """

    def moved(*weights: Tensor) -> Weights:
        return acted(tasks, action, element, weights)

    return torch.func.jvp(moved, at, direction)[1]


class _Point:
    """Gradient, Jacobian and Newton directions at B points."""

    def __init__(self, tasks: TaskBatch, weights: Weights) -> None:
        observed = tasks.observe(weights)
        assert observed.loss is not None
        self.loss = observed.loss
        self.descent = -flat(observed.grads)
        self.condition = condition(tasks, weights)
        self._J = jacobian(tasks, weights)
        self._curvatures = {name: kind(tasks, weights) for name, kind in CURVATURES.items()}

    @property
    def gradient_norm(self) -> Tensor:
        return torch.linalg.vector_norm(self.descent, dim=1)

    def in_outputs(self, direction: Tensor) -> Tensor:
        """J v, [B, m N], of v [B, P]."""
        return torch.bmm(self._J, direction[..., None])[..., 0]

    def newton(self) -> Iterator[tuple[str, float, Curvature, Tensor]]:
        """Every damped Newton direction: name, damping, curvature, d."""
        for name, curvature in self._curvatures.items():
            for damping in DAMPINGS:
                yield name, damping, curvature, curvature.direction(damping)

    def descent_cosines(self, curvature: Curvature, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Of the negative gradient with a direction: in weights, in outputs."""
        descent = curvature.part(self.descent)
        in_outputs = cosine(self.in_outputs(descent), self.in_outputs(direction))
        return cosine(descent, direction), in_outputs


def _measure(tasks: TaskBatch, stop: Stop) -> Measured:
    after = _Point(tasks, stop.weights)
    update = flat(stop.update)
    state = {
        "loss after": after.loss,
        "condition after": after.condition,
        "gradient norm after": after.gradient_norm,
        "update norm": torch.linalg.vector_norm(update, dim=1),
    }
    alignment: dict[Key, Tensor] = {}
    for name, damping, curvature, direction in after.newton():
        weights, outputs = after.descent_cosines(curvature, direction)
        part = curvature.part(update)
        change = _change(tasks, stop.weights, _shaped(part, stop.weights))
        alignment |= {
            (name, damping, "gradient after"): weights,
            (name, damping, "gradient after, in outputs"): outputs,
            (name, damping, "update"): cosine(part, direction),
            (name, damping, "update, in outputs"): cosine(change, after.in_outputs(direction)),
        }
    if stop.teleported is None:
        return Measured(state, alignment)
    gone = stop.teleported
    back = GroupElement(gone.total.g_inv, gone.total.g)
    before = _Point(tasks, gone.before)
    undone = _Point(tasks, acted(tasks, gone.action, back, stop.weights))
    returned = flat(carried(tasks, gone.action, back, stop.weights, stop.update))
    state |= {
        "loss before": before.loss,
        "condition before": before.condition,
        "condition ratio": after.condition / before.condition,
        "gradient norm before": before.gradient_norm,
        "gradient norm ratio": after.gradient_norm / before.gradient_norm,
        "loss undone": undone.loss,
        "condition undone": undone.condition,
        "gradient norm undone": undone.gradient_norm,
    }
    alignment |= _gains(before, "gradient before", "gradient gain", alignment)
    for name, damping, curvature, direction in before.newton():
        shaped = _shaped(direction, stop.weights)
        pulled = flat(carried(tasks, gone.action, gone.element, gone.before, shaped))
        alignment[name, damping, "update carried"] = cosine(curvature.part(update), pulled)
    alignment |= _gains(undone, "gradient undone", "gradient total gain", alignment)
    for name, damping, curvature, direction in undone.newton():
        along = cosine(curvature.part(returned), direction)
        alignment[name, damping, "update undone"] = along
    return Measured(state, alignment)


def _gains(
    point: _Point, own: str, gain: str, alignment: Mapping[Key, Tensor]
) -> dict[Key, Tensor]:
    """Cosines of the gradient with Newton's at a point, and by how much those after are larger."""
    found = {}
    for name, damping, curvature, direction in point.newton():
        cosines = point.descent_cosines(curvature, direction)
        for where, here in zip(("", ", in outputs"), cosines, strict=True):
            after = alignment[name, damping, f"gradient after{where}"]
            found[name, damping, f"{own}{where}"] = here
            found[name, damping, f"{gain}{where}"] = after - here
    return found


def _change(tasks: TaskBatch, weights: Weights, update: Weights) -> Tensor:
    """f(w + update) - f(w), [B, m N]."""
    stepped = tuple(W + f for W, f in zip(weights, update, strict=True))
    return (tasks.outputs(stepped) - tasks.outputs(weights)).flatten(1)


def _shaped(rows: Tensor, weights: Weights) -> Weights:
    """[B, P] -> one [B, out, in] for each layer: the inverse of ``flat``."""
    parts = rows.split([W[0].numel() for W in weights], dim=1)
    return tuple(part.reshape(W.shape) for part, W in zip(parts, weights, strict=True))
