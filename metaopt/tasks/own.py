"""A task family of a user's own: one Python class, named in a configuration.

    task:
      family: mypackage.tasks:MyFamily
      options: {width: 16}

    class MyFamily(metaopt.Family):
        batch = 32
        def __init__(self, width: int) -> None: ...
        def sample(self, generator): return metaopt.Task(weights={..}, data=(x, y))
        def loss(self, weights, data): return ..                   a scalar, of one task

The module is imported when a run or an evaluation on the family begins, and by nothing else:
reading a checkpoint that names it imports nothing.
"""

from __future__ import annotations

import importlib
import inspect
import os
import random
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from metaopt.base.errors import UserError
from metaopt.base.global_generators import seeded

R = TypeVar("R")


@dataclass(frozen=True)
class Task:
    """One task: an optimizee with its data.

    Attributes:
        weights: where its trajectory starts, by name and of any shapes.
        data: tensors whose first axis counts examples, the same number in each.
        test: of the same kind, to be judged on in validation and evaluation; empty for ``data``.
    """

    weights: Mapping[str, Tensor]
    data: tuple[Tensor, ...]
    test: tuple[Tensor, ...] = ()


class Family(ABC):
    """What tasks are sampled from, and their loss. All tasks have tensors of the same shapes.

    Attributes:
        batch: examples of a mini-batch, drawn anew, with replacement, for every inner step; None
            for all of them.
        shared: tensors that all tasks have in common, handed to ``loss`` after the data of the
            task: a data set, of which ``data`` then holds row numbers.
        symmetries: of the network, ``metaopt.symmetries(network)``, where rules are to teleport it;
            its parameters' paths are then the names of ``Task.weights``.
    """

    batch: int | None = None
    shared: tuple[Tensor, ...] = ()
    symmetries: Sequence[Any] = ()

    @abstractmethod
    def sample(self, generator: np.random.Generator) -> Task:
        """One task.

        Args:
            generator: all that the task may depend on; equal states give equal tasks.
        """

    @abstractmethod
    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        """The loss of one task: a scalar, at least 0, and a mean over the examples in ``data``.

        Differentiated and batched by ``torch.func``: no random numbers, no changes in place, no
        branches on values.
        """


def fresh_weights(module: nn.Module, generator: np.random.Generator) -> dict[str, Tensor]:
    """New weights for ``module``, by its own initialisation, for ``torch.func.functional_call``.

    Args:
        module: whose parts have ``reset_parameters``, as those of ``torch.nn`` do; it is left as it
            is: a copy on the CPU is drawn anew, so that a seed names the same weights on every
            device.
        generator: what they depend on. The global generators of torch's CPU, of numpy and of
            Python, from which such a method may draw, are left as they were; no other is touched.

    Raises:
        ValueError: where a part has parameters and no way to draw them anew.
    """
    module = deepcopy(module).cpu()
    with _seeded(int(generator.integers(2**63))):
        for name, part in module.named_modules():
            # Attention has the private one alone.
            reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
            if callable(reset):
                reset()
            elif any(True for _ in part.parameters(recurse=False)):
                raise ValueError(
                    f"{type(part).__name__} {name!r} has parameters, but no reset_parameters to "
                    f"draw them anew"
                )
    return {name: p.detach() for name, p in module.named_parameters()}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Global generators of the CPU start at ``seed`` within, and are where they were after it."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        # torch.manual_seed would reseed those of every other device, and nothing puts them back.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def make(name: str, options: Mapping[str, Any], field: str = "task.options") -> Family:
    """The family that ``package.module:ClassName`` names.

    Modules are looked for where Python does, and then in the current folder. While the module is
    imported and the class is made the global random generators are seeded, and then as they were:
    what either draws from them is the same in every process.

    Args:
        name: of the class.
        options: its keyword arguments.
        field: of the configuration that they come from, for errors.

    Raises:
        UserError: one line, where there is no such class, or it cannot be made.
    """
    source = f"field task.family: {name}"
    module_name, _, class_name = name.partition(":")
    found = getattr(module_of(module_name, source), class_name, None)
    if found is None:
        raise UserError(f"{source}: module {module_name} has no {class_name}")
    if not (isinstance(found, type) and issubclass(found, Family)):
        raise UserError(
            f"{source}: found {type(found).__name__} {class_name}, expected a subclass of "
            f"metaopt.Family"
        )
    if missing := sorted(found.__abstractmethods__):
        raise UserError(f"{source}: the class does not define {' and '.join(missing)}")
    try:
        inspect.signature(found).bind(**options)
    except TypeError as error:
        raise UserError(
            f"field {field}: {error}; {class_name}{inspect.signature(found)} is what {name} takes"
        ) from None
    with seeded(0):
        family = asked(source, "__init__", lambda: found(**options))
    batch, shared = family.batch, family.shared
    if batch is not None and (type(batch) is not int or batch < 1):
        raise UserError(f"{source}: batch: found {batch!r:.40}, expected a whole number or None")
    if not _are_tensors(shared):
        raise UserError(f"{source}: shared: found {shared!r:.40}, expected a tuple of tensors")
    return family


def check_task(task: Any, source: str) -> Task:
    """The task itself; raises ``UserError`` where it is none."""

    def mistake(what: str, found: str, expected: str) -> UserError:
        return UserError(f"{source}: sample: {what}: found {found:.60}, expected {expected}")

    if not isinstance(task, Task):
        raise mistake("what it returns", type(task).__name__, "metaopt.Task")
    named = task.weights
    if not (isinstance(named, Mapping) and named and _are_tensors(tuple(named.values()))):
        raise mistake("weights", repr(named), "a dictionary of tensors")
    for name, W in named.items():
        if not W.is_floating_point() or W.numel() == 0:
            found = f"{list(W.shape)} of {W.dtype}"
            raise mistake(f"weights[{name!r}]", found, "numbers of floating point")
    for field, tensors in (("data", task.data), ("test", task.test)):
        if not _are_tensors(tensors) or (field == "data" and not tensors):
            raise mistake(field, repr(tensors), "a tuple of tensors")
        counts = {len(tensor) if tensor.dim() else 0 for tensor in tensors}
        if len(counts) > 1 or 0 in counts:
            shapes = str([list(tensor.shape) for tensor in tensors])
            raise mistake(field, shapes, "a first axis that counts examples, alike in all")
    return task


def asked(source: str, method: str, call: Callable[[], R]) -> R:
    """What a user's code returns; its mistakes as one line that names the place."""
    try:
        return call()
    except UserError:
        raise
    # Code of the user's can raise anything at all.
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f for f in frames if not f.filename.startswith((_TORCH, _HERE))] or frames
        place = f"{os.path.basename(places[-1].filename)}:{places[-1].lineno}"
        reason = " ".join(str(error).split())
        raise UserError(
            f"{source}: {method} raised {type(error).__name__} ({place}): {reason:.300}"
        ) from error


_TORCH = os.path.dirname(torch.__file__)
_HERE = os.path.dirname(os.path.dirname(__file__))


def module_of(name: str, source: str) -> Any:
    """A module of a user's, imported; raises ``UserError``, one line, where that fails."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)

    def load() -> Any:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Else the module is there, and something that it imports is not.
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                raise UserError(
                    f"{source}: no module {error.name} on Python's path or in {here}"
                ) from None
            raise

    with seeded(0):
        return asked(source, "importing it", load)


def _are_tensors(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(part, Tensor) for part in value)
