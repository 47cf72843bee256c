"""Which rule belongs to which operation; ``symmetry_rule`` adds rules of a user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from metaopt.symmetry.discovery.flow import canonical
from metaopt.symmetry.discovery.operation import Operation, Result

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

    A rule that is wrong gives symmetries that are none; with an example they are tried.

    Args:
        operations: classes of modules; functions, or their names as they are called (``"einsum"``).

    Raises:
        TypeError: if one of them is neither.
    """
    names: list[str | type] = []
    for operation in operations:
        if isinstance(operation, type) and issubclass(operation, nn.Module):
            names.append(operation)
        elif isinstance(operation, str):
            names.append(canonical(operation))
        elif callable(operation) and hasattr(operation, "__name__"):
            names.append(canonical(operation.__name__))
        else:
            raise TypeError(
                f"symmetry_rule: expected classes of modules, functions or their names, found "
                f"{operation!r}"
            )
    return register(*names)
