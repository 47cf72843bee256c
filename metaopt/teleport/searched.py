"""A model's teleport to a better point of its orbit, by a search over group elements, in place.

    T = argmax of F(g(T) . w) over ||T|| <= max_norm,   w -> g(T) . w

F is an ``Objective``, ``search.climb`` finds T, the motions of ``symmetry.motion`` carry it out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metaopt.base.streams import Stream, generator
from metaopt.landscape.between.tensors import tensors_of_model
from metaopt.landscape.data import Data
from metaopt.landscape.samples import Loss, Samples
from metaopt.symmetry.modules import require
from metaopt.symmetry.motion import GroupMotion, Motion
from metaopt.teleport.carrying import carried_out, planned, states_of, told, written
from metaopt.teleport.drift import change, require_small
from metaopt.teleport.landscape_objectives import Curvature, Sharpness
from metaopt.teleport.level_set import steepest
from metaopt.teleport.objectives import GradientNorm, Objective, OfModel, Own
from metaopt.teleport.search import (
    Ball,
    FixedRate,
    Generators,
    QuasiNewton,
    Steps,
    climb,
    norms,
    require_bounded,
    scaled,
)
from metaopt.teleport.search_report import SearchReport

LEVEL_SET = "level_set"
"""The objective that needs no symmetry."""
OBJECTIVES = ("gradient_norm", "sharpness", "curvature", LEVEL_SET)
"""Objectives that have a name."""


@dataclass(frozen=True)
class Request:
    """What to search for, and how; the arguments of ``metaopt.teleport`` of these names."""

    objective: str | OfModel
    loss: Loss | None = None
    data: Data | None = None
    fresh: Data | None = None
    maximise: bool = True
    steps: int = 10
    lr: float | None = None
    max_norm: float | None = 0.5
    tolerance: float = 1e-4
    starts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("starts", self.starts)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a finite number above 0 or None, found {self.lr}")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must not be negative, found {self.tolerance}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, found {self.seed}")
        if (self.loss is None) != (self.data is None):
            missing = "loss" if self.loss is None else "data"
            raise ValueError(f"loss and data belong together: {missing} is missing")

    def how(self) -> Steps:
        """How the search steps."""
        return QuasiNewton(self.max_norm) if self.lr is None else FixedRate(self.lr)


def objective_of(
    model: nn.Module,
    wanted: str | OfModel,
    samples: Samples | None,
    motions: Sequence[Motion],
    seed: int,
) -> Objective:
    """The objective of this name, or one's own.

    Raises:
        ValueError: if there is no such name, or it needs what is not given.
    """
    if callable(wanted):
        return Own(model, wanted)
    if wanted == "gradient_norm":
        return GradientNorm(model, samples)
    if wanted == "curvature":
        return Curvature(model, motions, seed)
    if wanted == "sharpness":
        if samples is None:
            raise ValueError("objective 'sharpness' needs loss and data")
        return Sharpness(samples, seed)
    raise ValueError(
        f"objective must be one of {', '.join(OBJECTIVES)} or a function of the model, found "
        f"{wanted!r}"
    )


def searched(
    model: nn.Module,
    motions: Sequence[Motion],
    left: dict[str, str],
    request: Request,
    optimizer: Optimizer | None,
    state: str,
) -> SearchReport:
    """Search, check, move: see ``metaopt.teleport``.

    Args:
        model: the module inside wrappers.
        motions: what moves it; may be empty.
        left: symmetries that are left out, for the report.
        request: what to search for.
        optimizer: the optimizer inside wrappers.
        state: a name in ``POLICIES``.
    """
    began = time.perf_counter()
    samples = None
    if request.loss is not None:
        samples = Samples(model, request.loss, request.data)
    if request.objective == LEVEL_SET:
        return _on_level_set(model, samples, request, optimizer)
    require_bounded(motions, request.max_norm)
    for motion in motions:
        if isinstance(motion, GroupMotion):
            for slot in motion.symmetry.slots:
                require(model, motion.symmetry, slot)
    wanted = objective_of(model, request.objective, samples, motions, request.seed)
    values = tensors_of_model(model)
    before, after, generators, count = _found(wanted, motions, values, request)
    plan = planned(motions, values, generators)
    here = change(model, values, plan.new, request.data, request.loss)
    there = change(model, values, plan.new, request.fresh)
    require_small([here.drift, there.drift], plan.new, request.tolerance)
    what = carried_out(plan, model, optimizer, state)
    names = tuple(motion.name for motion in motions)
    far = [float(norms(T[None]).max()) for T in generators]
    return SearchReport(
        objective=wanted.name,
        maximise=request.maximise,
        symmetries=names,
        objective_before=before,
        objective_after=after,
        norms=dict(zip(names, far, strict=True)),
        drift=here.drift,
        fresh_drift=there.drift,
        loss_change=here.loss,
        gradients=wanted.passes if isinstance(wanted, GradientNorm) else count,
        seconds=time.perf_counter() - began,
        state=what,
        left=dict(left),
    )


def _on_level_set(
    model: nn.Module, samples: Samples | None, request: Request, optimizer: Optimizer | None
) -> SearchReport:
    """The search that needs no symmetry. Outputs change; what stays no larger is the loss."""
    began = time.perf_counter()
    if samples is None or not request.maximise:
        raise ValueError(
            "objective 'level_set' makes the gradient large at no larger loss: give loss and data, "
            "and leave maximise at True"
        )
    had = states_of(optimizer, model)
    values = tensors_of_model(model)
    end = steepest(samples, request.steps, request.lr, request.max_norm)
    here, there = (change(model, values, end.weights, d) for d in (request.data, request.fresh))
    moved = list(end.weights) if end.distance > 0 else []
    written(model, {path: end.weights[path] for path in moved}, optimizer)
    return SearchReport(
        objective=LEVEL_SET,
        maximise=True,
        symmetries=(),
        objective_before=end.squared_before,
        objective_after=end.squared_after,
        norms={"level set": end.distance},
        drift=here.drift,
        fresh_drift=there.drift,
        loss_change=end.loss_change,
        gradients=end.gradients,
        seconds=time.perf_counter() - began,
        state=told(optimizer, model, had, moved),
        residual=end.residual,
    )


def _found(
    wanted: Objective, motions: Sequence[Motion], values: dict[str, Tensor], request: Request
) -> tuple[float, float, Generators, int]:
    """The objective before and after, the best generators, and evaluations of the objective."""
    if not motions:
        value = float("nan")
        if isinstance(wanted, GradientNorm):
            value = sum(float(G.square().sum()) for G in wanted.gradient().values())
        return value, value, (), 0
    sign = 1.0 if request.maximise else -1.0
    along = wanted.along(motions, values)

    def evaluate(generators: Generators) -> tuple[Tensor, Generators]:
        value, gradient = along(generators)
        return sign * value, tuple(sign * G for G in gradient)

    start = _starts(motions, values, request)
    end = climb(evaluate, start, request.steps, request.how(), Ball(request.max_norm))
    reached = end.values
    extra = 0
    if reached is None:
        reached, extra = evaluate(end.generators)[0], 1
    best = int(torch.nan_to_num(reached, nan=-math.inf).argmax())
    return (
        sign * float(end.first[0]),
        sign * float(reached[best]),
        tuple(T[best] for T in end.generators),
        end.gradients + extra,
    )


def _starts(motions: Sequence[Motion], values: dict[str, Tensor], request: Request) -> Generators:
    """T = 0, and random generators with norms uniform up to the bound (pi if there is none)."""
    numbers = generator(Stream.SEARCH, request.seed)
    far = math.pi if request.max_norm is None else request.max_norm
    found = []
    for motion in motions:
        zero = motion.zero(values)
        drawn = torch.from_numpy(numbers.standard_normal((request.starts - 1, *zero.shape)))
        reach = torch.from_numpy(numbers.uniform(0, far, (request.starts - 1, len(zero))))
        size = norms(drawn).clamp(min=torch.finfo(drawn.dtype).tiny)
        drawn = scaled(drawn, reach / size)
        found.append(torch.cat([zero[None], drawn]))
    return tuple(found)
