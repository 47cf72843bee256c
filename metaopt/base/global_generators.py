"""The global random generators of Python, numpy and torch, which nothing here may depend on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_STATES: dict[str, Callable[[], Any]] = {
    "Python's (random)": random.getstate,
    "numpy's (numpy.random)": lambda: np.random.get_state(legacy=True),
    "torch's": lambda: torch.default_generator.get_state(),
}


@contextmanager
def seeded(seed: int) -> Iterator[Callable[[], list[str]]]:
    """The global generators as ``seed`` makes them, and after it as they were.

    Those of CUDA devices stay as they are.

    Args:
        seed: below 2^32.

    Yields:
        The names of those that were drawn from, or seeded, until it is called.
    """
    python, numpy, torch_cpu = (state() for state in _STATES.values())
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    before = {name: _plain(state()) for name, state in _STATES.items()}
    try:
        yield lambda: [name for name, state in _STATES.items() if _plain(state()) != before[name]]
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torch_cpu)


def _plain(state: Any) -> Any:
    """A state as something that can be compared."""
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    return [part.tobytes() if isinstance(part, np.ndarray) else part for part in state]
