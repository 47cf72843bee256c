"""Finds the symmetries of a model from its modules and from which module feeds which.

The output of each layer is followed through everything that reads it, until each path ends in a
layer that can undo a change of basis. The groups of this symmetry are those that commute with all
operations on the way. If one reader is unknown, the layer is left alone.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from metaopt.symmetry.discovery.attention import inside_attention, inside_transformer_layer
from metaopt.symmetry.discovery.layers import NORMS, convolved_axes, makes, norm_passage, reads
from metaopt.symmetry.discovery.operations import MODULES, Layout, Order, Passage, is_shape, rule_of
from metaopt.symmetry.discovery.tracing import Trace
from metaopt.symmetry.discovery.unseen import tampered
from metaopt.symmetry.groups import Group, Skipped, Slot, Symmetry, largest

TRANSFORMER_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
CONTAINERS = (nn.TransformerEncoder, nn.TransformerDecoder, nn.Transformer)
COMPOSITE = (nn.MultiheadAttention, *TRANSFORMER_LAYERS, *CONTAINERS)
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass
class _Way:
    """What lies on the paths from a layer to the layers that read it."""

    slots: list[Slot] = field(default_factory=list)
    carried: list[Slot] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    limits: dict[str, frozenset[Group]] = field(default_factory=dict)
    assumes: list[str] = field(default_factory=list)

    def why_no_continuous_group(self) -> str:
        """The operations on the way that allow permutations only, as a reason."""
        curved = [name for name, allows in self.limits.items() if largest(allows) is None]
        return f"only permutations pass {', '.join(curved)}"


class _BlockedError(Exception):
    """Something reads the output of a layer and does not allow it to change."""


class Finder:
    """Finds the symmetries that one trace shows.

    Args:
        model: the model that was traced.
        trace: one trace of it.
        permutations: whether to list permutations too.
    """

    def __init__(self, model: nn.Module, trace: Trace, permutations: bool) -> None:
        self.model = model
        self.trace = trace
        self.permutations = permutations

    def found(self) -> Iterator[Symmetry | Skipped]:
        """The symmetries of all layers that the trace calls, and the layers that have none."""
        for node in self.trace.graph.nodes:
            module = self._module(node)
            if module is None:
                continue
            path = str(node.target)
            if path in self.trace.opaque:
                reason = f"{type(module).__name__} cannot be traced: {self.trace.opaque[path]}"
                yield Skipped(path, reason)
            elif type(module) in COMPOSITE:
                yield from _inside(module, path)
            elif any(True for _ in module.parameters()) and type(module) not in MODULES:
                yield from self._behind(node, module, path)

    def _behind(self, node: fx.Node, module: nn.Module, path: str) -> Iterator[Symmetry | Skipped]:
        """The symmetries of the hidden space behind one layer, or why there are none."""
        made = makes(module, path, self._layout_before(node))
        way = _Way()
        try:
            if isinstance(made, str):
                raise _BlockedError(made)
            self._require_one_call(module, path)
            self._follow(node, made.layout, made.size, way)
        except _BlockedError as blocked:
            yield Skipped(path, str(blocked))
            return
        allows = made.allows.intersection(*way.limits.values())
        common = Symmetry(
            name=f"{path or 'model'} -> {', '.join(dict.fromkeys(way.readers))}",
            group=Group.SCALING,
            size=made.size,
            incoming=made.slots,
            outgoing=tuple(dict.fromkeys(way.slots)),
            assumes=" and ".join(dict.fromkeys(filter(None, [made.assumes, *way.assumes]))),
        )
        group = largest(allows)
        permuted = self.permutations and Group.PERMUTATION in allows
        if group is not None:
            yield replace(common, group=group, allows=allows)
        elif not permuted:
            yield Skipped(path, way.why_no_continuous_group())
        if permuted:
            incoming = tuple(dict.fromkeys([*made.slots, *way.carried]))
            only = frozenset({Group.PERMUTATION})
            yield replace(common, group=Group.PERMUTATION, incoming=incoming, allows=only)

    def _follow(self, node: fx.Node, layout: Layout, size: int, way: _Way) -> None:
        """Collect all readers of a node; raise ``_BlockedError`` at one that is unknown."""
        if not node.users:
            raise _BlockedError("nothing reads its output")
        for user in node.users:
            if is_shape(user) or self._is_reader(user, node, layout, size, way):
                continue
            passage = self._passage(user, node, layout, size)
            if passage is None:
                raise _BlockedError(self._why_blocked(user))
            name = self._name(user)
            way.limits[name] = way.limits.get(name, passage.allows) & passage.allows
            way.carried += passage.carried
            way.assumes.append(passage.assumes)
            self._follow(user, passage.layout, size, way)

    def _is_reader(
        self, user: fx.Node, node: fx.Node, layout: Layout, size: int, way: _Way
    ) -> bool:
        """Whether the path ends at this node; if so, its slots are noted."""
        module, path = self._module(user), str(user.target)
        if module is None or path in self.trace.opaque:
            return False
        if (reason := tampered(module)) is not None:
            raise _BlockedError(f"'{path}' reads it, and {reason}")
        read = reads(module, path, user, node, layout, size)
        if read is None:
            return False
        self._require_one_call(module, path)
        way.slots += read.slots
        way.readers.append(path)
        name = self._name(user)
        way.limits[name] = way.limits.get(name, read.allows) & read.allows
        return True

    def _passage(self, user: fx.Node, node: fx.Node, layout: Layout, size: int) -> Passage | None:
        """What a node does to the hidden space that it passes on; None if that is unknown."""
        given = [*user.args, *user.kwargs.values()]
        if sum(argument is node for argument in given) != 1:
            return None
        # Every known operation takes the hidden space first, except a number times it.
        if user.args[:1] != (node,) and user.target is not operator.mul:
            return None
        module = self._module(user)
        if type(module) in NORMS:
            self._require_one_call(module, str(user.target))
            return norm_passage(module, str(user.target), layout, size)
        rule = rule_of(user, module)
        return None if rule is None else rule(user, module, layout)

    def _layout_before(self, node: fx.Node) -> Layout | None:
        """Where the channels of a call's input lie, if a convolution or flattening made it."""
        # Tensors have no axis -9: an operation that returns this layout has moved no axes.
        any_layout = Layout(-9)
        while node.args and isinstance(node.args[0], fx.Node):
            node = node.args[0]
            module = self._module(node)
            dims = None if module is None else convolved_axes(module)
            if dims is not None:
                return Layout(-dims - 1)
            if type(module) in NORMS:
                continue
            rule = rule_of(node, module)
            passage = None if rule is None else rule(node, module, any_layout)
            if passage is None:
                return None
            if passage.layout.order is not Order.UNITS:
                return passage.layout
        return None

    def _module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls; None if it calls none."""
        if node.op != "call_module":
            return None
        return self.model.get_submodule(str(node.target))

    def _require_one_call(self, module: nn.Module | None, path: str) -> None:
        calls = self.trace.calls[id(module)]
        if calls > 1:
            raise _BlockedError(f"'{path}' is called {calls} times")

    def _name(self, node: fx.Node) -> str:
        """The name of the operation of a node, for messages."""
        module = self._module(node)
        if module is None:
            return str(getattr(node.target, "__name__", node.target))
        return f"{type(module).__name__} '{node.target}'"

    def _why_blocked(self, user: fx.Node) -> str:
        if user.op == "output":
            return "its output leaves the model"
        if user.target in ADDITIONS:
            return "its output is added to another value"
        return f"what {self._name(user)} does with its output is not known here"


def _inside(module: nn.Module, path: str) -> Iterator[Symmetry | Skipped]:
    """The symmetries inside torch's attention, transformer layers and their containers."""
    if type(module) is nn.MultiheadAttention:
        yield from inside_attention(module, path)
        return
    if type(module) in TRANSFORMER_LAYERS:
        odd = [f"'{name}': {why}" for name, m in module.named_modules() if (why := tampered(m))]
        yield from (Skipped(path, reason) for reason in odd)
        if odd:
            return
        yield from inside_transformer_layer(module, path)
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if type(child) in (*COMPOSITE, nn.ModuleList):
            yield from _inside(child, below)
        elif type(module) in CONTAINERS and any(True for _ in child.parameters()):
            yield Skipped(below, "its output leaves the stack")
