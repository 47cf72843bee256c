"""The global random generators of Python, numpy and torch, on which no result may depend."""

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
    """Seed the global generators within the context, and restore them after it.

    The generators of CUDA devices do not change.

    Args:
        seed: below 2^32.

    Yields:
        A function that returns the names of the generators that were used or seeded so far.
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
    """A generator's state in a form that can be compared."""
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    return [part.tobytes() if isinstance(part, np.ndarray) else part for part in state]
