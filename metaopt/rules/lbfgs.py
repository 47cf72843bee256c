"""L-BFGS behind the interface of ``composed``: torch's own, its evaluations told apart."""

from __future__ import annotations

import torch

from metaopt.base.network import Weights
from metaopt.rules.composed import Optimizer, Step
from metaopt.tasks.base import Observation, Problem, Tasks

_LINE_SEARCH_EVALUATIONS = 26


class LBFGS(Optimizer["list[_TaskSolver]"]):
    """Limited-memory BFGS with strong Wolfe line search: ``torch.optim.LBFGS``, one for each task.

    A line search takes a number of evaluations of its own on each task, so that an inner step here
    is one more gradient evaluation, and the weights after t steps are the best among the t + 1
    points evaluated first (the starting point is the first of them).

    Of tasks with mini-batches an evaluation sees one mini-batch, as everybody's does. A line search
    can only compare losses on the same data: it keeps the mini-batch of the inner step at which it
    begins, evaluates the weights where it begins on that one too, which is a step like any other,
    and the best are those of this line search. That is ``step(closure)`` in a user's loop.

    Args:
        history: number of pairs kept.
    """

    def __init__(self, history: int) -> None:
        self.history = history

    def initial_state(self, tasks: Tasks, observation: Observation) -> list[_TaskSolver]:
        """One solver for each task."""
        return [
            _TaskSolver(
                tasks.select(slice(b, b + 1)),
                tuple(W[b : b + 1] for W in observation.weights),
                self.history,
            )
            for b in range(tasks.size)
        ]

    def step(
        self,
        weights: Weights,
        observation: Observation,
        state: list[_TaskSolver],
        problem: Problem,
    ) -> Step[list[_TaskSolver]]:
        """One more gradient evaluation for each task; gives the best weights so far."""
        best = [solver.advance() for solver in state]
        return Step(tuple(torch.cat(layer) for layer in zip(*best, strict=True)), state)


class _TaskSolver:
    """``torch.optim.LBFGS`` on one task, its evaluations told apart.

    ``torch`` runs whole line searches; the points that they evaluate are queued and handed out one
    by one. It also evaluates the last point again at the start of each iteration: where the data
    are still the same, that one is answered from memory and not counted.
    """

    def __init__(self, task: Tasks, start: Weights, history: int) -> None:
        self._task = task
        self._data: Tasks = task.at(0)
        self._evaluations = 0
        self._parameters = [W.detach().clone().requires_grad_() for W in start]
        self._torch = torch.optim.LBFGS(
            self._parameters,
            max_iter=1,
            # By default an iteration may evaluate once only: no room for a line search.
            max_eval=_LINE_SEARCH_EVALUATIONS,
            history_size=history,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )
        self._seen: list[tuple[Weights, float, Weights]] = []
        self._queue: list[tuple[Weights, float]] = []
        self._best: tuple[Weights, float] = (start, float("inf"))
        self._stalled = False
        # The starting point is an evaluation, but no step.
        self._closure()
        self.advance()

    def advance(self) -> Weights:
        """Hand out one more evaluated point; returns the best so far."""
        if not self._queue and not self._stalled:
            self._iterate()
        if self._queue:
            point, loss = self._queue.pop(0)
            if loss < self._best[1]:
                self._best = (point, loss)
        return self._best[0]

    def _iterate(self) -> None:
        # Of the line search before, only its last accepted point can be asked for again.
        self._seen = [entry for entry in self._seen if self._is_current(entry[0])]
        # The first line search goes on from the evaluation of the starting point.
        if self._evaluations > 1 and (data := self._task.at(self._evaluations)) is not self._data:
            self._data, self._seen, self._best = data, [], (self._best[0], float("inf"))
        with torch.enable_grad():
            self._torch.step(self._closure)
        # Without a new point the search is at its end (a zero gradient, or no finite direction).
        self._stalled = not self._queue

    def _is_current(self, point: Weights) -> bool:
        return all(torch.equal(W, p) for W, p in zip(point, self._parameters, strict=True))

    def _closure(self) -> float:
        for point, loss, grads in self._seen:
            if self._is_current(point):
                self._set_gradient(grads)
                return loss
        point = tuple(p.detach().clone() for p in self._parameters)
        observed = self._data.observe(point)
        self._evaluations += 1
        assert observed.loss is not None
        loss = float(observed.loss)
        self._seen.append((point, loss, observed.grads))
        self._queue.append((point, loss))
        self._set_gradient(observed.grads)
        return loss

    def _set_gradient(self, grads: Weights) -> None:
        for parameter, G in zip(self._parameters, grads, strict=True):
            parameter.grad = G.clone()
