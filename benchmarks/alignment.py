"""Where learned steps point, seen at stops of their trajectories: geometry, Newton, teleports.

At a stop, inner step t, a trajectory has just made the end of step t - 1 and is about to make the
next update:

    u = w_{t-1} + f_{t-1},   w_t = g_{t-1} . u,   next: f_t at w_t

``before`` is u, ``after`` is w_t; they have the same outputs. Without a teleport (and at t = 0)
they are one point and nothing is said of ``before``. A direction d(.) is a damped Newton direction
of ``curvature``, in all of (W1, W2) (and, beside it, in W2 alone, where only W2's part of a vector
counts). Compared by cosine, for each task:

    gradient before   -grad L(u) with d(u)
    gradient after    -grad L(w_t) with d(w_t)
    gradient gain     the second less the first: what this one teleport did
    update            f_t with d(w_t)
    update carried    f_t with d(u) carried to w_t by the derivative of w -> g_{t-1} . w at u
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

from benchmarks.curvature import CURVATURES, Curvature, cosine, flat, jacobian
from metaopt.network import Weights, forward
from metaopt.optimizers import MetaOptimizer
from metaopt.symmetry import Generators, TeleportEngine
from metaopt.tasks import TaskBatch
from metaopt.unroll import InnerState, start, unroll

DAMPINGS = (1e-3, 1e-6)
PIECE = 16
"""Tasks whose Hessians are in memory together."""

Key = tuple[str, float, str]
"""(curvature, damping, what is compared)."""


@dataclass(frozen=True)
class Teleported:
    """The teleport that ended the step before a stop.

    Attributes:
        engine: what carried it out.
        before: u.
        generators: as applied: scaled by the guard, 0 where it refused.
    """

    engine: TeleportEngine
    before: Weights
    generators: Generators


@dataclass(frozen=True)
class Stop:
    """B trajectories between two inner steps.

    Attributes:
        step: t.
        weights: w_t.
        update: f_t.
        teleported: or None where none led here.
    """

    step: int
    weights: Weights
    update: Weights
    teleported: Teleported | None


@dataclass(frozen=True)
class Measured:
    """What is found at a stop, each [B], NaN for tasks whose weights are not finite.

    Attributes:
        state: condition numbers, losses and gradient norms by name.
        alignment: cosines.
    """

    state: Mapping[str, Tensor]
    alignment: Mapping[Key, Tensor]


def stops(tasks: TaskBatch, optimizer: MetaOptimizer, steps: Sequence[int]) -> Iterator[Stop]:
    """The trajectories at the given inner steps, ascending; the inner loop is ``unroll``.

    Args:
        tasks: B tasks.
        optimizer: whose trajectories.
        steps: t of each stop.
    """
    with torch.no_grad():
        state = start(tasks, optimizer)
        for step in steps:
            teleported = None
            if step > state.step:
                if step - 1 > state.step:
                    state, _ = unroll(tasks, optimizer, state, step - 1 - state.step)
                teleported = _teleport(tasks, optimizer, state)
                state, _ = unroll(tasks, optimizer, state, 1)
            update, _ = _proposed(optimizer, state)
            yield Stop(step, state.weights, update, teleported)


def _proposed(optimizer: MetaOptimizer, state: InnerState) -> tuple[Weights, Generators | None]:
    """f_t and T_t."""
    proposal, _ = optimizer.propose(state.observation, state.optimizer)
    assert proposal.updates is not None
    return proposal.updates, proposal.generators


def _teleport(tasks: TaskBatch, optimizer: MetaOptimizer, state: InnerState) -> Teleported | None:
    """The teleport that will end the next step, or None without one."""
    update, generators = _proposed(optimizer, state)
    if generators is None or optimizer.engine is None:
        return None
    before = tuple(W + f for W, f in zip(state.weights, update, strict=True))
    _, report = optimizer.engine.teleport(before, generators, tasks)
    share = torch.where(report.refused, 0.0, report.scale)[:, None, None]
    applied = tuple(share * T for T in report.generators)
    return Teleported(optimizer.engine, before, applied)


def measure(tasks: TaskBatch, stop: Stop) -> Measured:
    """Everything at a stop, in float64.

    Args:
        tasks: the same B two-layer tasks, of any dtype.
        stop: from ``stops``.
    """
    points = [stop.weights, stop.update]
    if stop.teleported is not None:
        points += [stop.teleported.before, stop.teleported.generators]
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

    gone = stop.teleported
    return Stop(
        stop.step,
        cut(stop.weights),
        cut(stop.update),
        None if gone is None else Teleported(gone.engine, cut(gone.before), cut(gone.generators)),
    )


def condition(tasks: TaskBatch, weights: Weights) -> Tensor:
    """cond(H), H = s(W1 X) the input of the last layer: largest over smallest singular value."""
    H = forward(weights, tasks.X, tasks.s).inputs[-1]
    singular = torch.linalg.svdvals(H)
    return singular[:, 0] / singular[:, -1]


def carried(tasks: TaskBatch, teleported: Teleported, direction: Weights) -> Weights:
    """The derivative of w -> g.w at u along a direction, g held fixed.

    Args:
        tasks: B tasks.
        teleported: g and u.
        direction: each [B, out, in].
    """

    def moved(*weights: Tensor) -> Weights:
        return teleported.engine.move(weights, teleported.generators, tasks)

    return torch.func.jvp(moved, teleported.before, direction)[1]


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
    before = _Point(tasks, stop.teleported.before)
    state |= {
        "loss before": before.loss,
        "condition before": before.condition,
        "condition ratio": after.condition / before.condition,
        "gradient norm before": before.gradient_norm,
        "gradient norm ratio": after.gradient_norm / before.gradient_norm,
    }
    for name, damping, curvature, direction in before.newton():
        weights, outputs = before.descent_cosines(curvature, direction)
        pulled = flat(carried(tasks, stop.teleported, _shaped(direction, stop.weights)))
        gain = alignment[name, damping, "gradient after"] - weights
        gain_in_outputs = alignment[name, damping, "gradient after, in outputs"] - outputs
        alignment |= {
            (name, damping, "gradient before"): weights,
            (name, damping, "gradient before, in outputs"): outputs,
            (name, damping, "gradient gain"): gain,
            (name, damping, "gradient gain, in outputs"): gain_in_outputs,
            (name, damping, "update carried"): cosine(curvature.part(update), pulled),
        }
    return Measured(state, alignment)


def _change(tasks: TaskBatch, weights: Weights, update: Weights) -> Tensor:
    """f(w + update) - f(w), [B, m N]."""
    stepped = tuple(W + f for W, f in zip(weights, update, strict=True))
    return (tasks.outputs(stepped) - tasks.outputs(weights)).flatten(1)


def _shaped(rows: Tensor, weights: Weights) -> Weights:
    """[B, P] -> one [B, out, in] for each layer: the inverse of ``flat``."""
    parts = rows.split([W[0].numel() for W in weights], dim=1)
    return tuple(part.reshape(W.shape) for part, W in zip(parts, weights, strict=True))
