"""Which rule belongs to which operation; ``symmetry_rule`` adds rules of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import wraps
from types import FunctionType
from typing import Any

from torch import nn
from torch._library.custom_ops import CustomOpDef

from metaopt.symmetry.discovery.flow import Call, Variable, canonical
from metaopt.symmetry.discovery.names import KNOWN_HOMES, function_name
from metaopt.symmetry.discovery.operation import Operation, Result
from metaopt.symmetry.discovery.shifts import NONE
from metaopt.symmetry.discovery.values import Value

Rule = Callable[[Operation], Result]

RULES: dict[str | type, Rule] = {}
"""The name of an operation, or the class of a module, -> its rule."""


def register(*names: str | type) -> Callable[[Rule], Rule]:
    """Make a function the rule for operations, or for modules of a class."""

    def registered(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return registered


def modules_with_rules() -> frozenset[type]:
    """The classes of modules whose rule speaks for all that their ``forward`` does."""
    return frozenset(name for name in RULES if isinstance(name, type))


def symmetry_rule(*operations: Any) -> Callable[[Rule], Rule]:
    """Tell ``metaopt.symmetries`` what an operation, or a module of one's own, demands.

    A rule is a function of an ``Operation``: it takes the values of the inputs, says what they
    demand of symmetries, and returns the value of the output (a list for several tensors), or None
    where it does not know. A rule for a module speaks for all that its ``forward`` does::

        @metaopt.symmetry_rule(MyLeakyReLU)
        def my_leaky_relu(op):
            return op.homogeneous(op.value(0))

    A rule that is wrong gives symmetries that are none; with an example they are tried. A rule for
    a class of modules does not hold for its subclasses, nor where hooks on ``forward`` may change
    what a module computes. A later rule replaces an earlier one, also those that metaopt has.

    Args:
        operations: classes of modules; functions of torch, or their names (``"einsum"``);
            operations made by ``torch.library.custom_op``.

    Raises:
        TypeError: if one of them is none of these.
    """
    names = [_name(operation) for operation in operations]

    def registered(rule: Rule) -> Rule:
        register(*names)(_guarded(rule))
        return rule

    return registered


def _name(operation: Any) -> str | type:
    """What the calls of an operation are named."""
    if isinstance(operation, type) and issubclass(operation, nn.Module):
        return operation
    if isinstance(operation, str):
        return canonical(operation)
    if isinstance(operation, CustomOpDef):
        operation = operation._opoverload
    elif isinstance(operation, type) or not callable(operation):
        raise TypeError(
            f"symmetry_rule: expected classes of modules, functions or their names, found "
            f"{operation!r}"
        )
    elif isinstance(operation, FunctionType) and not _is_known(operation):
        raise TypeError(
            f"symmetry_rule: {operation.__name__} is a Python function, which is followed inside; "
            f"make it a module or a torch.library.custom_op, or write a rule for what it calls"
        )
    return canonical(function_name(operation))


def _is_known(function: FunctionType) -> bool:
    """Whether a function of Python is torch's, and so one call."""
    return str(function.__module__).partition(".")[0] in KNOWN_HOMES


def _guarded(rule: Rule) -> Rule:
    """A user's rule, of which nothing is taken that one call of several operations may hide.

    That are translations, of which one operation may see what another passes on, and rotations,
    which set aside all that their calls demand.
    """

    @wraps(rule)
    def guarded(op: Operation) -> Result:
        relations = op.relations
        rotations, halves = len(relations.rotations), dict(relations.halves)
        found = rule(op)
        relations.ending = set()
        del relations.rotations[rotations:]
        relations.halves = halves
        if found is None:
            return None
        results = found if isinstance(found, list | tuple) else [found]
        _require_values(op.call, results)
        if not isinstance(found, list | tuple) and len(op.call.outputs) != 1:
            results = []
        if isinstance(op.call.output, Variable) and len(results) > 1:
            # A trace does not show that several tensors come out.
            return None
        _require_sizes(op.call, results)
        return [_plain(result) for result in results]

    return guarded


def _plain(value: Value) -> Value:
    """A value without what only a rule for one operation may say."""
    parts = tuple(replace(part, table=0) for part in value.parts)
    return replace(value, parts=parts, shifts=NONE)


def _require_values(call: Call, results: Iterable[Any]) -> None:
    for result in results:
        if not isinstance(result, Value):
            raise TypeError(
                f"the rule for {call.said} returned a {type(result).__name__}: expected a Value, a "
                f"list of them, or None"
            )


def _require_sizes(call: Call, results: list[Value] | tuple[Value, ...]) -> None:
    """What a rule says of the output fits to what a run saw."""
    outputs = call.outputs
    if len(results) < len(outputs):
        raise ValueError(
            f"the rule for {call.said} returned {len(results) or 1} of {len(outputs)} tensors: "
            f"expected a list of as many values"
        )
    for variable, result in zip(outputs, results, strict=False):
        if variable.shape is None or result.repeats:
            continue
        rank = len(variable.shape)
        for part in result.parts:
            for dim, size in zip(part.dims, part.labels.shape, strict=True):
                seen = variable.shape[dim] if -dim <= rank else None
                if seen != size:
                    raise ValueError(
                        f"the rule for {call.said} returned a value with {size} coordinates on "
                        f"axis {dim}: its output has shape {list(variable.shape)}"
                    )
