"""Reads the flows of a model: applies the rule of each call, and collects what they demand."""

from __future__ import annotations

from dataclasses import replace

from metaopt.symmetry.discovery.flow import Call, Flow, Variable
from metaopt.symmetry.discovery.movement import UnclearError
from metaopt.symmetry.discovery.operation import Operation
from metaopt.symmetry.discovery.parameters import Parameters
from metaopt.symmetry.discovery.relations import Relations
from metaopt.symmetry.discovery.rules import attention, entries, moving, norms, reductions, sums
from metaopt.symmetry.discovery.rules.registry import RULES, Rule
from metaopt.symmetry.discovery.shifts import common
from metaopt.symmetry.discovery.values import Value

# Importing these files has registered their rules.
BUILT_IN = (attention, entries, moving, norms, reductions, sums)


COMPLEX = ("mul", "view_as_real", "identity")
"""The operations whose rules know complex numbers."""


def rule_of(call: Call) -> Rule | None:
    """The rule for a call, or None if nobody has given one."""
    return RULES.get(call.name)


class Reader:
    """Follows coordinates through flows.

    Args:
        parameters: the coordinates of the model's parameters, and where demands are written.

    Attributes:
        clear: whether a rule was known for all that was done with coordinates.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.relations: Relations = parameters.relations
        self.clear = True

    def read(self, flow: Flow) -> None:
        """Write down what all calls of a flow demand, and that its outputs stay."""
        values: dict[Variable, Value] = {}
        users = flow.users()

        def value(variable: Variable) -> Value:
            if variable not in values:
                values[variable] = self._given(variable)
            return values[variable]

        for call in flow.calls:
            self._announce(call)
            op = Operation(call, self.relations, value, self.parameters, users, flow.training)
            found = _applied(op, [value(v) for v in call.inputs if not v.path])
            if call.name == "cast":
                # A run on an example knows the dtype.
                self.clear &= not any(value(variable).parts for variable in call.read)
            outputs = call.outputs
            if found is None:
                given_to_it = [value(variable) for variable in call.read]
                self.clear &= not any(given.parts for given in given_to_it)
                why = ""
                if call.module in flow.opaque and flow.opaque[call.module].startswith("its "):
                    why = f"'{call.module}' reads it, and {flow.opaque[call.module]}"
                for given in given_to_it:
                    op.fix(given, why)
                found = [op.like(variable.shape) for variable in outputs]
            else:
                self._fix_unasked(op)
            results = found if isinstance(found, list) else [found]
            self._spoil([values[v] for v in call.read if v in values], call, results)
            for variable, result in zip(outputs, results, strict=False):
                values[variable] = result.with_shape(variable.shape)
            for variable in outputs[len(results) :]:
                values[variable] = op.like(variable.shape)
        self.relations.call += 1
        self.relations.because = ""
        for variable in flow.outputs:
            self.relations.spoilt |= {shift.key for shift in value(variable).shifts}
            self.relations.fix(value(variable).labels, "its output leaves the model")
            for part in value(variable).parts:
                why = "its output leaves the model"
                self.relations.record([(part.labels, part.dims)], part.dims, why)

    def _fix_unasked(self, op: Operation) -> None:
        """Fix the tensors of a module that its rule says nothing about."""
        for name, variable in op.call.held.items():
            if name not in op.asked:
                op.fix(op.reader(variable), f"the rule for {op.call.said} does not ask for it")

    def _spoil(self, inputs: list[Value], call: Call, results: list[Value]) -> None:
        """Note the translations that end in this call without being passed on."""
        relations = self.relations
        kept = {shift.kind for result in results for shift in result.shifts}
        ended = {shift.key for shift in relations.ending}
        relations.ended |= relations.ending
        given = [shift for value in inputs for shift in value.shifts]
        relations.spoilt |= {s.key for s in given if s.kind not in kept and s.key not in ended}
        # A parameter that is used in another way is seen by what uses it.
        begun = {shift.path for result in results for shift in result.shifts}
        begun |= {shift.path for shift in relations.ending}
        for variable in call.read:
            if variable.path and variable.path not in begun:
                relations.used.add(variable.path)

    def _announce(self, call: Call) -> None:
        relations = self.relations
        relations.call += 1
        relations.said = call.said
        relations.module = call.module
        relations.ending = set()
        stuck = self.parameters.unmoved
        reasons = [stuck[v.path] for v in call.read if v.path in stuck]
        relations.because = reasons[0] if reasons else ""

    def _given(self, variable: Variable) -> Value:
        if variable.path and self.parameters.moves(variable.path):
            value = self.parameters.value(variable.path)
            if not value.part_on(-1):
                return value
            # What is added to a value adds the same along its last axis.
            own = common(variable.path, len(value.shape) - 1, -1)
            return replace(value, shifts=frozenset({own}))
        if variable.shape is None:
            return Value((), True)
        return Value(variable.shape)


def _applied(op: Operation, inputs: list[Value]) -> Value | list[Value] | None:
    rule = rule_of(op.call)
    is_complex = any(value.is_complex for value in inputs)
    if rule is None or (is_complex and op.call.name not in COMPLEX):
        return None
    try:
        return rule(op)
    except UnclearError:
        return None
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError):
        # Code may call an operation in ways that its rule did not think of. What the rule has
        # demanded so far only takes symmetries away, and the operation counts as unknown. Mistakes
        # in a rule of the user's own are told.
        if hasattr(rule, "__wrapped__"):
            raise
        return None
