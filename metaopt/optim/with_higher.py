"""``higher`` knows a learned optimizer as soon as one is made, and is not imported before."""

from __future__ import annotations

import importlib
from contextlib import suppress
from functools import cache


@cache
def make_known() -> None:
    """Register the differentiable step with ``higher``, once.

    Where ``higher`` is broken or missing nothing is registered: whoever uses it hears that from it.
    """
    with suppress(Exception):
        importlib.import_module("metaopt.optim.differentiable")
