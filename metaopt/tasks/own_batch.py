"""Tasks of a user's family side by side, computed from the loss of one task.

    L_b(w) = loss(w_b, data_b),   grad L_b by reverse mode, over b by ``vmap``

The inner loop works on matrices [B, out, rest]. Weights of any shape are reshaped to them, in the
same way as ``LearnedOptimizer`` does. With mini-batches, inner step t sees L on rows of the data
that depend only on the task and on t, and are drawn on the device:

    rows_b,t = floor(n u),   u uniform, from Philox at (key of task b, t)

The network stays unknown: rules see no inputs of layers, and teleports through the data are not
possible. Hidden units can be scaled if the family lists its symmetries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaopt.base.errors import UserError
from metaopt.base.global_generators import seeded
from metaopt.base.loss_statistics import SMALL_LOSS
from metaopt.base.network import Forward, Weights, as_matrices
from metaopt.base.streams import Stream, choices, item_generator
from metaopt.symmetry.groups import Symmetries, Symmetry
from metaopt.symmetry.pairs import LinearPairs, pairs_of
from metaopt.symmetry.units import HiddenUnits, units_of
from metaopt.tasks.base import NOTHING, Hidden, Observation, TaskFamily, Tasks
from metaopt.tasks.exact_norms import ExactNorms
from metaopt.tasks.own import Family, Task, asked, check_task

Shapes = dict[str, torch.Size]
INEXACT = 1e-6
"""The relative change of a loss, in float64, at which a listed symmetry counts as false."""


@dataclass(frozen=True)
class LossTasks(Tasks):
    """B tasks of a user's family.

    Attributes:
        family: the user's family, which computes the loss.
        shapes: the shapes of the weights by name, in the order of the matrices.
        initial: the weights that trajectories start from, each [B, out, rest].
        data: the data to train on, each [B, n, ..].
        test: the data that trajectories are judged on, each [B, n', ..]; if empty, ``data``.
        shared: the tensors that all tasks have in common, without an axis B.
        keys: the keys of the random streams of mini-batches, int64 [B, 2].
        seen: the mini-batch of the inner step, each [B, family.batch, ..]; if empty, all data.
        units: the hidden units that may be scaled, or None if the family lists no symmetries.
        pairs: the linear pairs, or None if it lists none.
    """

    family: Family
    shapes: Shapes
    initial: Weights
    data: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    shared: tuple[Tensor, ...]
    keys: Tensor
    seen: tuple[Tensor, ...] = ()
    units: HiddenUnits | None = None
    pairs: LinearPairs | None = None
    hides: Hidden = NOTHING
    horizon: int | None = None

    def at(self, step: int) -> Self:
        """The tasks with the mini-batch of inner step ``step``, if there are mini-batches."""
        if self.family.batch is None:
            return self
        rows = choices(self.keys, step, self.family.batch, below=self.data[0].shape[1])
        tasks = torch.arange(self.size, device=rows.device)[:, None]
        return replace(self, seen=tuple(tensor[tasks, rows] for tensor in self.data))

    def observe(self, weights: Weights, passed: Forward | None = None) -> Observation:
        """Loss and exact gradient at ``weights``, on the mini-batch of the step."""
        over_tasks = vmap(grad_and_value(self._of_one), in_dims=(0, 0))
        grads, loss = over_tasks(weights, self.seen or self.data)
        return Observation(weights, grads, (), loss, self.units, self.pairs)

    def seen_loss(self, weights: Weights) -> Tensor:
        """L(w), [B], on the mini-batch of the step."""
        return vmap(self._of_one, in_dims=(0, 0))(weights, self.seen or self.data)

    def loss(self, weights: Weights) -> Tensor:
        """L(w), [B], on all data that the tasks are judged on."""
        return vmap(self._of_one, in_dims=(0, 0))(weights, self.test or self.data)

    def judged(self, weights: Weights, observed: Tensor | None) -> Tensor:
        """The loss on the data that tasks are judged on; ``observed`` if it is just that."""
        if self.seen or self.test or observed is None:
            return self.loss(weights)
        return observed

    def _of_one(self, matrices: Weights, data: tuple[Tensor, ...]) -> Tensor:
        parts = zip(self.shapes.items(), matrices, strict=True)
        weights = {name: W.reshape(shape) for (name, shape), W in parts}
        # Only this one of torch's attention kernels can be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH), ExactNorms():
            return self.family.loss(weights, data, *self.shared)

    def repeated(self, times: int) -> Self:
        """Each task ``times`` times in a row."""
        return self._each(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def select(self, index: slice) -> Self:
        """The tasks of a slice of the batch."""
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """The same tasks on another device or in another dtype; integers keep theirs."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

        units = None if self.units is None else self.units.to(device)
        pairs = None if self.pairs is None else self.pairs.to(device)
        shared = tuple(map(move, self.shared))
        return replace(self._each(move), shared=shared, units=units, pairs=pairs)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The tasks with ``change`` applied to every tensor that has an axis B."""
        initial, data, test, seen = (
            tuple(map(change, tensors))
            for tensors in (self.initial, self.data, self.test, self.seen)
        )
        keys = change(self.keys)
        return replace(self, initial=initial, data=data, test=test, seen=seen, keys=keys)


@dataclass(frozen=True)
class LossFamily(TaskFamily[LossTasks]):
    """Makes tasks of a user's family, by their index in a stream.

    Args:
        own: the user's family.
        name: the path of its class, for errors.
    """

    own: Family
    name: str

    def drawn(self, stream: Stream, seed: int, start: int, count: int) -> LossTasks:
        """Tasks ``start`` .. ``start + count - 1``, each from a random generator of its own.

        Raises:
            UserError: if a task is not valid, or its shapes differ from those of the others.
        """
        keys, tasks = [], []
        for index in range(start, start + count):
            generator = item_generator(stream, seed, index)
            keys.append(torch.from_numpy(generator.integers(2**32, size=2)))
            found = asked(self._source, "sample", partial(self.own.sample, generator))
            tasks.append(check_task(found, self._source))
        shapes = {name: W.shape for name, W in tasks[0].weights.items()}
        for task in tasks:
            self._require_alike(task, tasks[0])
        initial = (torch.stack([task.weights[name] for task in tasks]) for name in shapes)
        return LossTasks(
            family=self.own,
            shapes=shapes,
            initial=tuple(as_matrices(W.detach()) for W in initial),
            data=_stacked([task.data for task in tasks]),
            test=_stacked([task.test for task in tasks]),
            shared=self.own.shared,
            keys=torch.stack(keys),
            units=self._units(shapes),
            pairs=pairs_of(self.own.symmetries, shapes),
        )

    def check(self) -> None:
        """Sample, observe and judge two tasks; raise ``UserError``, one line, if that fails."""
        tasks = self._drawn_alike().to("cpu", torch.float32).at(0)
        loss = self._loss_alike(tasks)
        if loss.dim() != 1 or not loss.is_floating_point():
            raise UserError(
                f"{self._source}: loss returned {list(loss.shape[1:])} of {loss.dtype}, expected a "
                f"scalar of floating point"
            )
        found = asked(self._source, "the gradient of loss", lambda: tasks.observe(tasks.initial))
        judged = asked(self._source, "loss of test", lambda: tasks.judged(tasks.initial, loss))
        for what, values in (("loss", loss), ("loss of test", judged)):
            if not bool((values >= 0).all()):
                raise UserError(
                    f"{self._source}: {what}: found {float(values.min()):.3g} at the initial "
                    f"weights, expected a number, at least 0"
                )
        self._require_exact(tasks)
        for name, G in zip(tasks.shapes, found.grads, strict=True):
            if not bool(torch.isfinite(G).all()):
                raise UserError(
                    f"{self._source}: the gradient of loss by weights[{name!r}] is not finite at "
                    f"the initial weights"
                )

    def _drawn_alike(self) -> LossTasks:
        """Two tasks; raise ``UserError`` unless equal generators give equal tasks."""
        found = []
        for seed in (1, 2):
            with seeded(seed) as moved:
                found.append(self.drawn(Stream.VALIDATION, 0, 0, 2))
                globals_used = moved()
        first, second = (_named(tasks) for tasks in found)
        for part in first | second:
            if not _same_bits(first.get(part), second.get(part)):
                also = f"; found use of global generators: {', '.join(globals_used)}"
                raise UserError(
                    f"{self._source}: sample: {part} differs between two draws from equal "
                    f"generators, expected tasks that depend on the generator given and nothing "
                    f"else{also if globals_used else ''}"
                )
        return found[0]

    def _loss_alike(self, tasks: LossTasks) -> Tensor:
        """The loss of tasks; raise ``UserError`` unless it is the same when computed again."""
        found = []
        for seed in (1, 2):
            with seeded(seed):
                found.append(asked(self._source, "loss", lambda: tasks.seen_loss(tasks.initial)))
        first, second = found
        if first.shape == second.shape and not torch.allclose(first, second, equal_nan=True):
            raise UserError(
                f"{self._source}: loss: found {float(first[0]):.6g} and {float(second[0]):.6g} of "
                f"the same weights and data, expected no random numbers and nothing that it keeps"
            )
        return first

    @property
    def no_units(self) -> str:
        """Why no hidden unit of its tasks can be scaled, and what to write in the class."""
        listed = self.own.symmetries
        if listed:
            return (
                "the symmetries that its class lists allow no positive scaling of its weights, or "
                "rest on assumptions: print(metaopt.symmetries(network)) says what they allow"
            )
        if isinstance(listed, Symmetries):
            return (
                "metaopt.symmetries found none in its network, and printed says why (ReLU or "
                "LeakyReLU between layers would have some): leave rules.teleport out"
            )
        return (
            "its class does not say which its symmetries are: add symmetries = "
            "metaopt.symmetries(network) to it"
        )

    def _units(self, shapes: Shapes) -> HiddenUnits | None:
        """The hidden units of the symmetries that the family lists, if any can be scaled."""
        listed = self.own.symmetries
        if not isinstance(listed, list | tuple) or not all(isinstance(s, Symmetry) for s in listed):
            raise UserError(
                f"{self._source}: symmetries: found {listed!r:.60}, expected the list that "
                f"metaopt.symmetries(network) returns"
            )
        try:
            return units_of(listed, shapes)
        except ValueError as error:
            raise UserError(f"{self._source}: symmetries: {error}") from None

    def _require_exact(self, tasks: LossTasks) -> None:
        """Raise ``UserError`` if scaling units of the listed symmetries changes the loss."""
        exact = tasks.to("cpu", torch.float64)
        moved = exact.initial
        if exact.units is not None:
            signs = torch.arange(exact.units.count).remainder(2).double() - 0.5
            moved, _ = exact.units.scaled(signs.expand(exact.size, -1), moved)
        if exact.pairs is not None:
            moved = exact.pairs.multiplied(moved, _shears(exact.pairs, moved))
        before, after = exact.seen_loss(exact.initial), exact.seen_loss(moved)
        change = float(((after - before).abs() / before.clamp(min=SMALL_LOSS)).max())
        if not change < INEXACT:
            raise UserError(
                f"{self._source}: symmetries: moving along them changes the loss by {change:.1e} "
                f"of itself, expected those of the network that loss runs"
            )

    @property
    def _source(self) -> str:
        return f"field task.family: {self.name}"

    def _require_alike(self, task: Task, first: Task) -> None:
        wanted, found = _layout(first), _layout(task)
        for part in wanted | found:
            if found.get(part) != wanted.get(part):
                raise UserError(
                    f"{self._source}: sample: {part}: found {found.get(part)} in one task and "
                    f"{wanted.get(part)} in another, expected it alike in all tasks"
                )


def _shears(pairs: LinearPairs, like: Weights) -> list[Tensor]:
    """The matrices of g = I + N / 2, N with ones above the diagonal, on each width."""
    found = []
    for width in pairs.widths:
        eye = torch.eye(width.size, dtype=like[0].dtype)
        g = eye + torch.diag(eye.new_ones(width.size - 1), 1) / 2
        sides = torch.stack([g.mT, torch.linalg.inv(g)])[None, :, None]
        found.append(sides.expand(like[0].shape[0], -1, width.count, -1, -1))
    return found


def _layout(task: Task) -> dict[str, list[int]]:
    """The shape of each tensor of a task, by name."""
    named = {f"weights[{name!r}]": W for name, W in task.weights.items()}
    named |= {f"data[{i}]": tensor for i, tensor in enumerate(task.data)}
    named |= {f"test[{i}]": tensor for i, tensor in enumerate(task.test)}
    return {name: list(tensor.shape) for name, tensor in named.items()}


def _named(tasks: LossTasks) -> dict[str, Tensor]:
    """All tensors of tasks that were drawn, by name."""
    parts = {"weights": tasks.initial, "data": tasks.data, "test": tasks.test}
    return {f"{name}[{i}]": one for name, found in parts.items() for i, one in enumerate(found)}


def _same_bits(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are equal, with NaN equal to NaN."""
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _stacked(tasks: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(column) for column in zip(*tasks, strict=True))
