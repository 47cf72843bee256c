"""A function and its derivative as two graphs of operations, which a compiler makes faster.

    y = f(x),   (dx, ..) = f'(x)^T dy

Both are recorded at once, as one *joint* graph in which nothing is written in place. It is cut in
two such that little is kept between the halves (some of it is computed again), and each half is
handed to a compiler: torch's, or none, for tests.
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

Runs = Callable[..., Sequence[Tensor]]
"""A graph that can be called."""

Compiler = Callable[[fx.GraphModule, list[Tensor]], Runs]
"""(graph, inputs like those that it will be called with) -> something faster."""


@dataclass(frozen=True)
class Halves:
    """x -> (y, kept) and (kept, dy) -> what the joint function returned after y."""

    forward: Runs
    backward: Runs


class _NoNumbersInPython(TorchFunctionMode):
    """Refuses what takes numbers out of tensors: a graph would hold those of its recording."""

    refused = frozenset(
        getattr(Tensor, name)
        for name in ("tolist", "numpy", "item", "__array__", "__int__", "__float__", "__bool__")
    )

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in self.refused:
            raise RuntimeError(f"numbers of tensors are read in Python ({func.__name__})")
        return func(*args, **(kwargs or {}))


def halves(
    joint: Runs, x: Sequence[Tensor], dy: Sequence[Tensor], outputs: int, compiler: Compiler
) -> Halves:
    """Record a joint function and compile its halves.

    Args:
        joint: (x, dy) -> (y, dx, ..), each a tensor; it may write in place into what it made. It
            is called once, and what it does beside that is done then. The halves take contiguous
            tensors and nothing else: compiled code does not look.
        x: inputs of the function, contiguous.
        dy: like the gradients of those outputs that have one, contiguous.
        outputs: how many tensors y is.
        compiler: makes each half faster.

    Raises:
        RuntimeError: if the joint function reads numbers of tensors, which are others at each call.
    """
    # Imported where they are needed: they take as long as the rest of metaopt.
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    given = [*x, *dy]
    with _undisturbed():
        with _NoNumbersInPython():
            recorded = make_fx(joint)(*given)
        recorded = _pruned(recorded)
        pure = _pruned(make_fx(functionalize(recorded))(*given))
        # The cut tells inputs apart by these names.
        for i, node in enumerate(pure.graph.find_nodes(op="placeholder")):
            name = f"primals_{i + 1}" if i < len(x) else f"tangents_{i + 1 - len(x)}"
            node.name = node.target = name
        pure.recompile()
        first, second = min_cut_rematerialization_partition(pure, given, num_fwd_outputs=outputs)
        with torch.no_grad():
            forward = compiler(first, [*x])
            kept = list(forward(*x))[outputs:]
            return Halves(forward, compiler(second, [*kept, *dy]))


def as_recorded(graph: fx.GraphModule, inputs: list[Tensor]) -> Runs:
    """No compiler: the operations of the graph, one after another."""
    return graph


def inductor(graph: fx.GraphModule, inputs: list[Tensor]) -> Runs:
    """torch's own compiler, with a C++ program for each graph and all calls within it."""
    import torch._inductor

    _pin_factors(graph)
    for node in graph.graph.nodes:
        # What was noted while recording belongs to a tracer that is gone.
        node.meta.clear()
    compiled = torch._inductor.standalone_compile(
        graph,
        [*inputs],
        # "from_graph" makes torch pass by the folder that keeps what was compiled.
        dynamic_shapes="from_example_inputs",
        options={"config_patches": {"cpp_wrapper": True}},
    )
    return compiled


def _pruned(graph: fx.GraphModule) -> fx.GraphModule:
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _pin_factors(graph: fx.GraphModule) -> None:
    """Keep the factors of batched products where they lay, in memory, when they were recorded.

    The compiler would leave some of them transposed across the batch, and torch then multiplies
    one pair of matrices after another: a quarter of all time of a window.
    """
    from torch._inductor import inductor_prims

    products = (torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default)
    calls = graph.graph.find_nodes
    for product in [node for one in products for node in calls(op="call_function", target=one)]:
        for factor in product.all_input_nodes:
            strides = list(factor.meta["val"].stride())
            if factor.op != "placeholder" and 0 not in strides:
                with graph.graph.inserting_before(product):
                    pinned = graph.graph.call_function(
                        inductor_prims.force_stride_order, (factor, strides)
                    )
                product.replace_input_with(factor, pinned)
    graph.recompile()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without what the compiler says of its own internals, and without the user's Ctrl-C.

    A terminal sends that to the processes of the compiler too, whose end would look like a failure.
    It comes through afterwards.
    """
    log = logging.getLogger("torch._inductor")
    level = log.level
    log.setLevel(logging.ERROR)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        log.setLevel(level)
