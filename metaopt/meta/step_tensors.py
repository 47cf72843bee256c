"""The tensors between two inner steps, in one order: what a compiled step takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metaopt.base.network import Weights
from metaopt.rules.composed import States, tensors_of
from metaopt.tasks.base import Observation, Tasks


@dataclass(frozen=True)
class StepTensors:
    """Which tensors there are between two steps, in one order.

    Attributes:
        layers: matrices of weights.
        inputs: inputs of layers that are shown.
        numbers: which of ``loss`` and ``left`` are shown.
        rules: names of the rules, some of which may have no state.
        keys: (rule, name) of each tensor of the states.
    """

    layers: int
    inputs: int
    numbers: tuple[str, ...]
    rules: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, observation: Observation, states: States) -> StepTensors:
        """The layout of these."""
        return cls(
            len(observation.weights),
            len(observation.inputs),
            tuple(name for name in ("loss", "left") if getattr(observation, name) is not None),
            tuple(states),
            tuple((rule, name) for rule, name, _ in tensors_of(states)),
        )

    def tensors(self, weights: Weights, observation: Observation, states: States) -> list[Tensor]:
        """All tensors; weights twice, since those that were observed may have no graph."""
        return [
            *weights,
            *observation.weights,
            *observation.grads,
            *observation.inputs,
            *(getattr(observation, name) for name in self.numbers),
            *(states[rule][name] for rule, name in self.keys),
        ]

    def objects(
        self, tensors: Sequence[Tensor], tasks: Tasks
    ) -> tuple[Weights, Observation, States]:
        """What ``tensors`` was given."""
        left = iter(tensors)

        def some(count: int) -> Weights:
            return tuple(next(left) for _ in range(count))

        weights, observed, grads = some(self.layers), some(self.layers), some(self.layers)
        inputs = some(self.inputs)
        numbers = {name: next(left) for name in self.numbers}
        shown: dict[str, Any] = {"loss": None} | numbers
        observation = Observation(
            observed, grads, inputs, units=tasks.units, pairs=tasks.pairs, **shown
        )
        states: States = {rule: {} for rule in self.rules}
        for rule, name in self.keys:
            states[rule][name] = next(left)
        return weights, observation, states

    @property
    def names(self) -> list[str]:
        """A name for each of ``tensors``; equal ones mean the same before and after a step."""
        layers = range(self.layers)
        return [
            *(f"W{i}" for i in layers),
            *(f"observed W{i}" for i in layers),
            *(f"G{i}" for i in layers),
            *(f"A{i}" for i in range(self.inputs)),
            *self.numbers,
            *(f"{rule}.{name}" for rule, name in self.keys),
        ]
