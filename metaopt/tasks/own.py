"""A task family of your own: one Python class, named in a configuration.

    task:
      family: mypackage.tasks:MyFamily
      options: {width: 16}

    class MyFamily(metaopt.Family):
        batch = 32
        def __init__(self, width: int) -> None: ...
        def sample(self, generator): return metaopt.Task(weights={..}, data=(x, y))
        def loss(self, weights, data): return ..                   a scalar, of one task

The module is imported only when a run or an evaluation on the family begins. Reading a checkpoint
that names the family does not import it.
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
    """One task: the weights that a trajectory starts from, and the data of the loss.

    Attributes:
        weights: the initial weights by name: floating point tensors of any shapes.
        data: the tensors that ``Family.loss`` is given. The first axis of each counts examples, and
            all have the same number of them.
        test: tensors of the same kind on which validation and evaluation compute the loss. If it is
            empty, they use ``data``.
    """

    weights: Mapping[str, Tensor]
    data: tuple[Tensor, ...]
    test: tuple[Tensor, ...] = ()


class Family(ABC):
    """What your tasks are sampled from, and their loss. Subclass it and define both methods.

        L_b(w) = loss(w, data_b)        for task b

    All tasks of a family must have tensors of the same shapes.

    Attributes:
        batch: the number of examples in a mini-batch. Every inner step draws a new mini-batch from
            ``Task.data``, with replacement. None: every step uses all examples.
        shared: tensors that all tasks have in common, such as a data set. ``loss`` is given them
            after the data of the task; ``Task.data`` can then hold row numbers of the data set.
        symmetries: the symmetries of the network, as ``metaopt.symmetries(network)`` returns them.
            Rules can teleport the network only if they are given. The names in ``Task.weights``
            must then be the paths of the network's parameters.
    """

    batch: int | None = None
    shared: tuple[Tensor, ...] = ()
    symmetries: Sequence[Any] = ()

    @abstractmethod
    def sample(self, generator: np.random.Generator) -> Task:
        """Return one task.

        Args:
            generator: the only source of randomness. Generators in equal states must give equal
                tasks.
        """

    @abstractmethod
    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        """Return the loss of one task: a scalar, at least 0, and a mean over the examples.

        The function is differentiated and batched by ``torch.func``: it must not draw random
        numbers, change tensors in place, or branch on the values of tensors.

        Args:
            weights: the current weights, by the names of ``Task.weights``.
            data: a mini-batch of ``Task.data``, or all of it, or ``Task.test``.
            *shared: the tensors of ``Family.shared``.
        """


def fresh_weights(module: nn.Module, generator: np.random.Generator) -> dict[str, Tensor]:
    """Return new random weights for ``module``, drawn by its own initialisation.

    The result fits ``torch.func.functional_call(module, weights, inputs)``. The module itself does
    not change: a copy of it on the CPU is initialised anew, so that a seed gives the same weights
    on every device. The global random generators of numpy, Python and torch's CPU are restored.

    Args:
        module: a module of which every part that has parameters also has ``reset_parameters``, as
            the modules of ``torch.nn`` do.
        generator: the source of randomness.

    Returns:
        The weights by parameter path, on the CPU, in the module's dtypes, without gradients.

    Raises:
        ValueError: if a part has parameters but no method to initialise them.
    """
    module = deepcopy(module).cpu()
    with _seeded(int(generator.integers(2**63))):
        for name, part in module.named_modules():
            # torch's attention has only the private method.
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
    """Seed the CPU's global generators within the context, and restore them after it."""
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
    """Import and make the family that ``package.module:ClassName`` names.

    Modules are looked for on Python's path and then in the current folder. While the module is
    imported and the class is made, the global random generators are seeded, so that both give the
    same result in every process. They are restored afterwards.

    Args:
        name: the module and the class, separated by a colon.
        options: the keyword arguments of the class.
        field: the field of the configuration that holds the options; errors name it.

    Raises:
        UserError: one line, if there is no such class or it cannot be made.
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
    """Return the task; raise ``UserError`` if it is not a valid ``Task``."""

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
    """Call a user's code and return its result; an exception becomes one line that says where."""
    try:
        return call()
    except UserError:
        raise
    # The user's code can raise any exception.
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
    """Import a user's module; raise ``UserError``, one line, if that fails."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)

    def load() -> Any:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Otherwise the module exists, and something that it imports does not.
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                raise UserError(
                    f"{source}: no module {error.name} on Python's path or in {here}"
                ) from None
            raise

    with seeded(0):
        return asked(source, "importing it", load)


def _are_tensors(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(part, Tensor) for part in value)
