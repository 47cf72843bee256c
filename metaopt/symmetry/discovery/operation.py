"""What a rule sees of a call: its inputs as values, and the ways to say what it demands.

A rule is a function of an ``Operation``. It returns the value of what the call returns (a list for
several tensors), or None if it does not know what this call does:

    def rule(op: Operation) -> Value | list[Value] | None:
        return op.homogeneous(op.value(0))
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from metaopt.symmetry.discovery import algebra, contraction, movement
from metaopt.symmetry.discovery.flow import Call, Unknown, Variable, mapped, variables
from metaopt.symmetry.discovery.parameters import Parameters
from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.discovery.shifts import scales
from metaopt.symmetry.discovery.values import Value, number

Result = Value | list[Value] | None


@dataclass(frozen=True, eq=False)
class Operation:
    """One call, as a rule sees it.

    Attributes:
        call: the call.
        relations: where demands are written.
        reader: gives the value of a variable.
        parameters: gives the value of a buffer, which has coordinates where a rule says so.
        users: the calls that take each variable.
        training: whether the model was in training mode.
        asked: the names of the module's own tensors that the rule has asked for.
    """

    call: Call
    relations: Relations
    reader: Callable[[Variable], Value]
    parameters: Parameters
    users: dict[Variable, list[Call]]
    training: bool | None
    asked: set[str] = field(default_factory=set)

    # What the call was given.

    def given(self, place: int, name: str, default: Any = None) -> Any:
        """An argument as it was passed, by its place or by its name."""
        if len(self.call.args) > place:
            return self.call.args[place]
        return self.call.kwargs.get(name, default)

    def value(self, place: int | Any, name: str = "input") -> Value:
        """The value of an argument: of a tensor, or of a number."""
        found = self.given(place, name) if isinstance(place, int) else place
        if isinstance(found, Variable):
            return self.reader(found)
        if variables(found):
            raise movement.UnclearError
        return number()

    def optional(self, place: int, name: str) -> Value | None:
        """The value of a tensor that may be left out."""
        found = self.given(place, name)
        return None if found is None else self.value(found)

    def statistics(self, place: int, name: str) -> Value | None:
        """The value of a buffer that moves with the coordinates, such as running means."""
        found = self.given(place, name)
        if not isinstance(found, Variable) or not found.path:
            return None
        return self.parameters.value(found.path)

    @property
    def module(self) -> Any:
        """The module that the call is, with its settings; None if a function was called."""
        return self.call.of

    def own(self, name: str) -> Value:
        """The value of a parameter or buffer that the module holds.

        What a rule does not ask for does not move.

        Args:
            name: its name within the module: ``"weight"``, ``"inner.bias"``.

        Raises:
            KeyError: if the module holds no tensor of this name.
        """
        if name not in self.call.held:
            held = ", ".join(self.call.held) or "none"
            raise KeyError(f"{self.call.said} holds no tensor '{name}'; it holds: {held}")
        self.asked.add(name)
        return self.reader(self.call.held[name])

    def lists(self, place: int, name: str) -> list[Value]:
        """The values of a list of tensors."""
        return [self.value(found) for found in self.given(place, name, ())]

    @property
    def inputs(self) -> list[Value]:
        """The values of all tensors among the arguments."""
        return [self.reader(variable) for variable in self.call.inputs]

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        """The sizes of what it returned, if a run saw them."""
        outputs = self.call.outputs
        return outputs[0].shape if len(outputs) == 1 else None

    def dim(self, value: Value, dim: Any) -> int | None:
        """An axis, counted from the end; None if that is not known."""
        if not isinstance(dim, int):
            return None
        if dim < 0:
            return dim
        return None if value.open else dim - len(value.shape)

    # What it demands.

    def homogeneous(self, value: Value) -> Value:
        """f(a x) = a f(x) for a > 0, entry by entry: positive scaling and permutations pass."""
        return algebra.homogeneous(self.relations, value)

    def odd(self, value: Value) -> Value:
        """f(-x) = -f(x), entry by entry: changes of sign and permutations pass."""
        return algebra.curved(self.relations, value, odd=True)

    def curved(self, value: Value) -> Value:
        """Any function of single entries: permutations pass."""
        return algebra.curved(self.relations, value)

    def joined(self) -> Value:
        """Any function of the entries at one place in all inputs: permutations of all pass."""
        return self.curved(self.multiply(*(self.curved(value) for value in self.inputs)))

    def power(self, value: Value, exponent: int) -> Value:
        """x^k, entry by entry: scales pass, raised to k."""
        return algebra.power(self.relations, value, exponent)

    def add(self, *values: Value, why: str = algebra.ADDED) -> Value:
        """x + y + .., broadcast."""
        return algebra.add(self.relations, values, why)

    def multiply(self, *values: Value) -> Value:
        """x y .., broadcast."""
        return algebra.multiply(self.relations, values)

    def total(self, value: Value, dims: Sequence[int], keep: bool = False) -> Value:
        """Sums or means over axes, counted from the end."""
        return algebra.total(self.relations, value, dims, keep)

    def contract(
        self,
        values: Sequence[Value],
        names: Sequence[Sequence[Hashable]],
        out: Sequence[Hashable],
        is_open: bool = False,
    ) -> Value:
        """Sums of products, as ``einsum`` writes them: see ``contraction.contract``."""
        tuples = [tuple(own) for own in names]
        return contraction.contract(self.relations, values, tuples, tuple(out), is_open)

    def fix(self, value: Value, why: str = "") -> Value:
        """Nothing may move."""
        why = why or f"what {self.relations.said} does with its output is not known here"
        self.relations.fix(value.labels, why)
        return value

    def assume(self, value: Value, what: str) -> None:
        """Note what must be true for the coordinates of a value to move as this rule says."""
        self.relations.assumptions.append((value.labels, what))

    def masked(self, value: Value) -> Value:
        """x m for a random mask m of single entries: scales and signs pass, nothing else."""
        for part in value.parts:
            why = f"the masks of {self.relations.said} are not permuted"
            self.relations.alone(part.labels)
            self.relations.record([(part.labels, part.dims)], part.dims, why)
        return replace(value, shifts=scales(value.shifts))

    def ended(self, *values: Value, dim: int) -> None:
        """Note the translations of values that a softmax along an axis does not see."""
        for shift in (shift for value in values for shift in value.shifts):
            if shift.is_unseen(dim):
                self.relations.ending.add(shift)

    def linear(self, value: Value, weight: Value, bias: Value | None) -> Value:
        """x W^T + b, for a weight [out, in]."""
        if value.repeats:
            value = movement.unfolded(value, weight.size(-1))
        outer = tuple(range(-len(value.shape), -1))
        names: list[tuple[Hashable, ...]] = [(*outer, "in"), ("out", "in")]
        out = (*outer, "out")
        if len(weight.shape) == 1:
            names, out = [(*outer, "in"), ("in",)], outer
        found = self.contract([value, weight], names, out, value.open)
        return found if bias is None else self.add(found, bias)

    def like(self, shape: tuple[int | None, ...] | None, is_open: bool = False) -> Value:
        """A value with no coordinates."""
        return Value((), True) if shape is None else Value(shape, is_open)

    # Moving data about.

    def moved(self, value: Value, operation: Callable[[Tensor], Any]) -> list[Value]:
        """What an operation that only moves entries makes of a value: see ``movement.moved``."""
        return movement.moved(self.relations, value, operation)

    def replayed(self, method: Callable[..., Any]) -> list[Value]:
        """The call itself, applied to the labels of its first tensor.

        Raises:
            UnclearError: if it depends on other tensors than constants, or on unknown numbers.
        """
        subject, *others = self.call.inputs
        if any(variable.constant is None for variable in others):
            raise movement.UnclearError
        nested = (self.call.args, self.call.kwargs)
        odd: list[Any] = []
        mapped(nested, Unknown, odd.append)
        if odd:
            raise movement.UnclearError

        def operation(labels: Tensor) -> Any:
            def actual(variable: Variable) -> Tensor:
                return labels if variable is subject else _held(variable)

            args, kwargs = mapped(nested, Variable, actual)
            try:
                return method(*args, **kwargs)
            except (TypeError, ValueError, IndexError, RuntimeError) as error:
                # Numbers that are not known, or a rule of shapes that labels do not follow.
                raise movement.UnclearError from error

        return movement.moved(self.relations, self.reader(subject), operation)


def _held(variable: Variable) -> Tensor:
    assert variable.constant is not None
    return variable.constant.detach().cpu()
