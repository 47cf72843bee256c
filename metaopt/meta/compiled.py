"""Inner steps that are compiled: a few programs in place of some thousand operations.

    (w_t, o_t, h_t) -> (w_{t+1}, o_{t+1}, h_{t+1}, L(w_{t+1})),   o the observation, h the states

The step is recorded with its derivative (``joint``), once for each kind of trajectories: the sizes
of all tensors, and what rules are shown. How many steps a window has does not matter. Gradients
of the LSTMs' weights are no part of the derivative: what they are sums of is, and goes to the sums
of the window (``affine``). Compiled steps differ from those operation by operation by rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metaopt.meta.joint import Compiler, halves, inductor
from metaopt.meta.looks import Observe
from metaopt.meta.plain_step import PlainStep, Traced
from metaopt.meta.step_tensors import StepTensors
from metaopt.meta.unroll import Advanced, InnerState, operation_by_operation
from metaopt.rules.composed import MetaOptimizer, Optimizer, States, Step
from metaopt.rules.learned.affine import Affine, Terms
from metaopt.tasks.base import Tasks
from metaopt.tasks.regression import TaskBatch
from metaopt.teleport.base import TeleportTrace

SHOWN = 150
"""Characters of an error of the compiler that are shown."""


class _Use(NamedTuple):
    """One use of an affine map, whose gradients the compiled derivative leaves to its sums."""

    module: int  # in ``PlainStep.maps``
    map: int  # of that module
    tensors: int  # dz and the inputs


class _Compiled:
    """The compiled step of one kind of trajectories.

    Raises whatever recording or compiling raises.

    Args:
        plain: the step.
        tasks: B tasks of that kind.
        between: the tensors before a step.
        compiler: makes recorded graphs faster.

    Attributes:
        after: the layout of what it returns.
    """

    def __init__(
        self, plain: PlainStep, tasks: TaskBatch, between: Sequence[Tensor], compiler: Compiler
    ) -> None:
        self._plain = plain
        named = dict(plain.named_parameters())
        self._parameters = list(named.values())
        data = plain.data(tasks)
        given_now = (*between, *data.values(), *named.values())
        # Copies: recording takes steps too, and a rule may advance its state in place.
        x = [t.detach().clone(memory_format=torch.contiguous_format) for t in given_now]
        parts = len(between), len(x) - len(named)

        def step(
            given: Sequence[Tensor],
        ) -> tuple[StepTensors, list[Tensor], list[tuple[Affine, ...]]]:
            parameters = dict(zip(named, given[parts[1] :], strict=True))
            of_step = given[: parts[0]], dict(zip(data, given[parts[0] : parts[1]], strict=True))
            found: tuple[StepTensors, list[Tensor], list[tuple[Affine, ...]]]
            found = torch.func.functional_call(self._plain, parameters, of_step)
            return found

        # What comes with a graph; and what a step gives with a graph, the next one takes with it.
        before, self._has_graph = None, [t.requires_grad for t in given_now]
        while before != self._has_graph:
            before = self._has_graph
            self.after, outputs, _ = step(_leaves(x, before))
            with_graph = {
                name for name, y in zip(self.after.names, outputs, strict=False) if y.requires_grad
            }
            flags = zip(plain.layout.names, before, strict=False)
            of_state = [has or name in with_graph for name, has in flags]
            self._has_graph = [*of_state, *before[parts[0] :]]
        # Some tensors stand in several places: a loss that is observed too.
        self._places = _places(outputs)
        self._differentiable = [y.requires_grad for y in _unique(outputs)]
        dy = [torch.ones_like(y).contiguous() for y in _unique(outputs) if y.requires_grad]
        self._uses: list[_Use] = []
        self._reached: list[bool] = []

        def joint(*given: Tensor) -> tuple[Tensor, ...]:
            """Called once, to be recorded; it notes which gradients and uses there are."""
            with torch.enable_grad():
                leaves = _leaves(given[: len(x)], self._has_graph)
                _, outputs, maps = step(leaves)
                ys = _unique(outputs)
                dx = torch.autograd.grad(
                    [y for y in ys if y.requires_grad],
                    [leaf for leaf in leaves if leaf.requires_grad],
                    given[len(x) :],
                    allow_unused=True,
                )
            self._reached = [d is not None for d in dx]
            terms = list(_terms(maps))
            self._uses = [_Use(module, k, len(term)) for module, k, term in terms]
            # One that passes through unchanged would be the input itself.
            passes = {id(leaf) for leaf in leaves}
            return (
                *(y.detach().clone() if id(y) in passes else y.detach().contiguous() for y in ys),
                *(d.contiguous() for d in dx if d is not None),
                *(t for _, _, term in terms for t in term),
            )

        self._halves = halves(joint, x, dy, len(self._differentiable), compiler)

    def covers(self, between: Sequence[Tensor]) -> bool:
        """Whether all that comes with a graph has a gradient."""
        flags = zip(between, self._has_graph, strict=False)
        return all(has or not t.requires_grad for t, has in flags)

    def __call__(self, tasks: TaskBatch, between: Sequence[Tensor]) -> Advanced[States]:
        """One step."""
        maps = [module.maps() for module in self._plain.maps]
        x = [*between, *self._plain.data(tasks).values(), *self._parameters]
        # Inputs without a gradient: autograd takes the sums of the window after all steps that
        # name them.
        waiting = [p for of_module in maps for affine in of_module for p in affine.parameters]
        found = _Step.apply(self, maps, len(x), *x, *waiting)
        count = len(self.after.names)
        *tensors, loss = (found[place] for place in self._places[: count + 1])
        trace = [found[place] for place in self._places[count + 1 :]]
        weights, observation, states = self.after.objects(tensors, tasks)
        report = Traced(TeleportTrace(*trace)) if trace else None
        return Advanced(Step(weights, states, report), loss, observation)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs, each once, and what the derivative needs."""
        found = list(self._halves.forward(*(t.contiguous() for t in x)))
        count = len(self._differentiable)
        # A compiler may return one tensor for two outputs, only one of which has a derivative.
        return [y.detach() for y in found[:count]], found[count:]

    @property
    def constant(self) -> list[bool]:
        """Whether each output has no derivative."""
        return [not one for one in self._differentiable]

    def backward(
        self, kept: Sequence[Tensor], dy: Sequence[Tensor], maps: Sequence[tuple[Affine, ...]]
    ) -> list[Tensor | None]:
        """The gradients of x; the terms of those of weights go to the sums of the maps."""
        given = [d for d, is_one in zip(dy, self._differentiable, strict=True) if is_one]
        found = iter(self._halves.backward(*kept, *(d.contiguous() for d in given)))
        reached = iter(self._reached)
        dx = [next(found) if has and next(reached) else None for has in self._has_graph]
        for module, k, count in self._uses:
            dz, *inputs = (next(found) for _ in range(count))
            sums = maps[module][k].sums
            sums.begin(inputs[0])
            sums.add(dz, inputs)
        return dx


class _Step(torch.autograd.Function):
    """The compiled step: x -> y."""

    @staticmethod
    def forward(
        ctx: Any,
        step: _Compiled,
        maps: Sequence[tuple[Affine, ...]],
        count: int,
        *x: Tensor,
    ) -> tuple[Tensor, ...]:
        outputs, kept = step.forward(x[:count])
        ctx.step, ctx.maps, ctx.waiting = step, maps, len(x) - count
        ctx.save_for_backward(*kept)
        ctx.mark_non_differentiable(
            *(y for y, is_one in zip(outputs, step.constant, strict=True) if is_one)
        )
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = ctx.step.backward(ctx.saved_tensors, dy, ctx.maps)
        return (None, None, None, *dx, *([None] * ctx.waiting))


class CompiledSteps:
    """An ``Advance`` that compiles steps of this package's own tasks; others run as they are.

    Where a step cannot be compiled, one line says why, and all run operation by operation.

    Args:
        compiler: makes recorded graphs faster.
        say: tells users a line.
    """

    def __init__(
        self, compiler: Compiler = inductor, say: Callable[[str], object] = warnings.warn
    ) -> None:
        self._compiler = compiler
        self._say = say
        self._kinds: dict[tuple[object, ...], _Compiled] = {}
        self._failed = False

    def __call__(
        self,
        seen: Tasks,
        following: Tasks,
        optimizer: Optimizer[Any],
        state: InnerState[Any],
        observe: Observe,
    ) -> Advanced[Any]:
        """See ``operation_by_operation``."""
        may = seen is following and not self._failed
        if may and isinstance(seen, TaskBatch) and isinstance(optimizer, MetaOptimizer):
            layout = StepTensors.of(state.observation, state.optimizer)
            between = layout.tensors(state.weights, state.observation, state.optimizer)
            compiled = self._of_kind(seen, optimizer, layout, between, observe)
            if compiled is not None:
                return compiled(seen, between)
        return operation_by_operation(seen, following, optimizer, state, observe)

    def _of_kind(
        self,
        tasks: TaskBatch,
        optimizer: MetaOptimizer,
        layout: StepTensors,
        between: Sequence[Tensor],
        observe: Observe,
    ) -> _Compiled | None:
        sizes = tuple((t.shape, t.dtype) for t in (*between, tasks.X, tasks.Y))
        kind = (optimizer, observe, tasks.s, layout, sizes)
        found = self._kinds.get(kind)
        if found is None or not found.covers(between):
            try:
                step = PlainStep(optimizer, observe, tasks, layout)
                found = _Compiled(step, tasks, between, self._compiler)
            except Exception as error:
                self._failed = True
                why = f"{type(error).__name__}: {error}".splitlines()[0][:SHOWN]
                self._say(
                    f"meta.compile: steps run operation by operation, as they cannot be compiled: "
                    f"{why} (meta.compile=never does not try)"
                )
                return None
            self._kinds[kind] = found
        return found


def _leaves(tensors: Sequence[Tensor], has_graph: Sequence[bool]) -> list[Tensor]:
    pairs = zip(tensors, has_graph, strict=True)
    return [t.detach().requires_grad_() if has else t.detach() for t, has in pairs]


def _unique(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list({id(t): t for t in tensors}.values())


def _places(tensors: Sequence[Tensor]) -> list[int]:
    """Where each of them is in ``_unique``."""
    order = list(dict.fromkeys(map(id, tensors)))
    return [order.index(id(t)) for t in tensors]


def _terms(
    maps: Sequence[tuple[Affine, ...]],
) -> Iterator[tuple[int, int, tuple[Tensor, ...]]]:
    """(number of the module, of its map, one term) of all that the backward pass recorded."""
    for module, of_module in enumerate(maps):
        for k, affine in enumerate(of_module):
            assert isinstance(affine.sums, Terms)
            for term in affine.sums.found:
                yield module, k, term
