"""The flow of data through a model, from a run on an example.

The model's own code runs, on stand-ins without numbers, so that nothing is computed, nothing drawn
at random and no weight copied. Code that asks for numbers which depend on the input runs once more
with real tensors. Afterwards the model is as it was before, bit for bit.
"""

from __future__ import annotations

import copy
import dis
import logging
import sys
import warnings
from collections import deque
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import fields, is_dataclass
from types import CellType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from metaopt.symmetry.discovery.flow import AS_ON_EXAMPLE, Flow
from metaopt.symmetry.discovery.lifting import Lifting, WithNumbers, WithoutNumbers
from metaopt.symmetry.discovery.reachable import (
    ATOMS,
    attributes,
    contents,
    is_foreign,
    named_globals,
    slots_of,
)
from metaopt.symmetry.discovery.recorder import Recorder, recording
from metaopt.symmetry.discovery.restoring import Restoring
from metaopt.symmetry.discovery.watch import UntraceableError

CACHES = "transformers.cache_utils"
STORE_GLOBAL = dis.opmap["STORE_GLOBAL"]
DEPTH = 5
"""How deep tensors are looked for in what a model returns or keeps."""


def runs(model: nn.Module, example: Any, leaves: Container[type] = ()) -> list[Flow]:
    """The flows of runs in training and in evaluation mode, and as it is if its modules differ.

    Args:
        model: see ``run``.
        example: see ``run``.
        leaves: see ``run``.

    Raises:
        UntraceableError: if the model cannot run on the example; the message says why.
    """
    guard = _guard(model)
    is_mixed = len({module.training for module in model.modules()}) > 1
    modes = (True, False, None) if is_mixed else (True, False)
    return [_recorded(model, example, training, leaves, guard) for training in modes]


def run(
    model: nn.Module, example: Any, training: bool | None = None, leaves: Container[type] = ()
) -> Flow:
    """The calls of one run of a model.

    Args:
        model: the model; it is the same afterwards.
        example: the inputs: one tensor, a tuple of arguments, or a mapping of keyword arguments.
            Their numbers matter only if the code asks for them.
        training: the mode to run it in; None for that of each module.
        leaves: classes of modules that are one call, named by the class, with nothing inside.

    Raises:
        UntraceableError: if the model cannot run on the example; the message says why.
    """
    return _recorded(model, example, training, leaves, _guard(model))


def _guard(model: nn.Module) -> Restoring:
    if any(map(is_lazy, model.parameters())):
        raise UntraceableError("it has parameters without a shape; run it once before")
    return Restoring(model)


def _recorded(
    model: nn.Module,
    example: Any,
    training: bool | None,
    leaves: Container[type],
    guard: Restoring,
) -> Flow:
    """The flow of a run without numbers if that is possible, else with them."""
    preferred = training is not False
    guard.forget_cached()
    for with_gradients in (preferred, not preferred):
        # Code that needs numbers fails on stand-ins, in any way; so does code that always fails.
        mode = WithoutNumbers()
        try:
            return _run(model, example, training, leaves, guard, mode, with_gradients)
        except Exception as error:
            without = error
    if any(tensor.is_meta for tensor in model.parameters()):
        raise UntraceableError(f"{_reason(without)} (on meta there are no numbers)") from without
    try:
        with guard.holding_tensors():
            return _run(model, example, training, leaves, guard, WithNumbers(), preferred)
    except Exception as error:
        raise UntraceableError(_reason(error)) from error


def example_of(model: nn.Module) -> Any:
    """Inputs that a model of ``transformers`` brings along, on its device; None for others.

    Those of a model with adapters of ``peft`` are its base model's.
    """
    if "transformers" not in sys.modules:
        return None
    if "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel):
        model = model.get_base_model()
    if not isinstance(model, sys.modules["transformers"].PreTrainedModel):
        return None
    device = next(iter(model.parameters())).device
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), dict(model.dummy_inputs))


def _run(
    model: nn.Module,
    example: Any,
    training: bool | None,
    leaves: Container[type],
    guard: Restoring,
    mode: Lifting,
    with_gradients: bool,
) -> Flow:
    flags = [(t, t.requires_grad, t.grad) for t in model.parameters()]
    counted = [t for t in guard.tensors if not (t.is_inference() or is_lazy(t))]
    versions = [tensor._version for tensor in counted]
    try:
        with ExitStack() as stack:
            _prepare(model, training, stack)
            guard.hide_iterators()
            stack.enter_context(torch.set_grad_enabled(with_gradients))
            modes = {module.training for module in model.modules()}
            recorder = Recorder(model, guard.tensors, mode, leaves)
            replaced = _Replaced(model)
            args, kwargs = _arguments(_inputs(model, example, recorder, mode))
            for array in (x for x in guard.found if isinstance(x, np.ndarray)):
                recorder.known.read_elsewhere(array, "a numpy array that shares its memory")
            stack.enter_context(mode)
            stack.enter_context(recording(recorder))
            result = copy_context().run(model, *args, **kwargs)
            stack.close()
            known = recorder.known
            left = [known.of(tensor) for tensor in _tensors(result)]
            if not left:
                raise UntraceableError(f"it returns a {type(result).__name__} without tensors")
            # Counters tell nothing of what moves.
            made = [t for t in _kept(guard.found) if known.is_new(t)]
            kept = {id(t): t for t in made if t.is_floating_point() or t.is_complex()}
            for number in replaced.recomputed(recorder):
                kept.pop(number, None)
            left += [known.of(tensor) for tensor in kept.values()]
            left += known.changed()
            return Flow(
                recorder.calls,
                list(dict.fromkeys(left)),
                known.parameters,
                modes.pop() if len(modes) == 1 else None,
                assumes=AS_ON_EXAMPLE,
            )
    finally:
        guard.restore()
        # Graphs that wait for a backward pass ask how often tensors were written to.
        unsafe: Any = torch._C._autograd
        unsafe._unsafe_set_version_counter(tuple(counted), tuple(versions))
        for tensor, requires_grad, grad in flags:
            tensor.requires_grad_(requires_grad)
            tensor.grad = grad


def _prepare(model: nn.Module, training: bool | None, stack: ExitStack) -> None:
    """Set the mode, and switch off what would hide calls."""
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    if training is not None:
        for module in model.modules():
            if "training" in module.__dict__:
                module.__dict__["training"] = training
        for module in model.modules():
            # The user's own ``train`` may change more than the flag.
            if not is_foreign(module.train):
                module.train(training)
    stack.enter_context(_without_fast_path())
    stack.enter_context(_quiet())
    if "torch._dynamo" in sys.modules:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
    first = next(iter(model.parameters()), None)
    if first is not None and first.is_meta:
        stack.enter_context(torch.device("meta"))
    elif torch.get_default_device().type == "meta":
        stack.enter_context(torch.device("cpu"))


@contextmanager
def _quiet() -> Iterator[None]:
    """torch does not log that an operation needs numbers, since it runs again with them."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class _Replaced:
    """Finds attributes that are computed anew from the weights in each run.

    Args:
        model: the model before the run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held = [
            (module.__dict__, name, tensor)
            for module in model.modules()
            for name, tensor in module.__dict__.items()
            if isinstance(tensor, Tensor)
        ]

    def recomputed(self, recorder: Recorder) -> Iterator[int]:
        """The ``id`` of tensors that replaced others which were not read, without the input."""
        known = recorder.known
        from_input = set(known.inputs)
        for call in recorder.calls:
            if not from_input.isdisjoint(call.inputs):
                from_input.update(call.outputs)
        for held, name, before in self._held:
            now = held.get(name)
            if not isinstance(now, Tensor) or now is before or not known.is_new(now):
                continue
            if not known.has_met(before) and known.of(now) not in from_input:
                yield id(now)


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """torch's attention and transformer layers run as written, not as one fused operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _inputs(model: nn.Module, example: Any, recorder: Recorder, mode: Lifting) -> Any:
    """The inputs to run on, which are known to the recorder: stand-ins, or copies."""
    on_meta = any(tensor.is_meta for tensor in model.parameters())

    def stand_in(tensor: Tensor) -> Tensor:
        if isinstance(mode, WithoutNumbers):
            tensor = mode.from_tensor(tensor.to("meta") if on_meta else tensor, static_shapes=True)
        else:
            tensor = tensor.clone()
        recorder.known.meet_input(tensor)
        return tensor

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return stand_in(leaf)
        # Other objects, such as caches, are copied since the model may write to them.
        leaf = copy.deepcopy(leaf)
        for tensor in _tensors(leaf, caches=True):
            recorder.known.meet_input(tensor)
        return leaf

    return pytree.tree_map(copied, example)


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, tuple | list) else ((example,), {})


def _tensors(found: Any, depth: int = DEPTH, caches: bool = False) -> Iterator[Tensor]:
    """The tensors in what a model is given, returns or keeps.

    Caches of ``transformers`` are left out unless asked for: they are meant to hold hidden values,
    which the next call reads with the same weights.
    """
    if isinstance(found, Tensor):
        yield found
    if depth == 0 or type(found) in ATOMS or isinstance(found, Tensor | nn.Module | type):
        return
    inside: list[Any] = []
    if isinstance(found, Mapping):
        inside = list(found.values())
    elif isinstance(found, tuple | list | set | frozenset):
        inside = list(found)
    elif not caches and any(kind.__module__ == CACHES for kind in type(found).__mro__):
        return
    elif is_dataclass(found):
        inside = [getattr(found, field.name, None) for field in fields(found)]
    else:
        inside = list((attributes(found) or {}).values())
    for one in inside:
        yield from _tensors(one, depth - 1, caches)


def _kept(found: list[Any]) -> Iterator[Tensor]:
    """The tensors that objects of the model's code hold."""
    held = {id(thing) for thing in found}
    for thing in found:
        inside: list[Any] = []
        if isinstance(thing, dict):
            inside = list(dict.values(thing))
        elif isinstance(thing, list | set | deque):
            inside = list(thing)
        elif isinstance(thing, CellType):
            inside = [contents(thing)]
        elif isinstance(thing, FunctionType) and STORE_GLOBAL in thing.__code__.co_code[::2]:
            inside = [value for _, _, value in named_globals(thing)]
        else:
            inside = list(slots_of(thing).values())
        for one in inside:
            if type(one) not in ATOMS and id(one) not in held:
                yield from _tensors(one)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"it does not run on the example: {lines[0] if lines else type(error).__name__}"
