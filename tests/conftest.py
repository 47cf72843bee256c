"""Side by side (``pytest -n``), each process and what it starts gets one thread."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Iterator

import pytest

# Before torch is imported, which reads once what is set here and by metaopt (idle_threads).
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import metaopt as metaopt

# The many processes that tests start compile the package once, even where the shell forbids it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_finish() -> None:
    """What the tests import, some 100 000 objects, is not searched for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws from the global generators depends on no test before it."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def rules_of_metaopt() -> Iterator[None]:
    """Rules for symmetries that a test adds are gone after it."""
    from metaopt.symmetry.discovery.rules.registry import RULES

    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)
