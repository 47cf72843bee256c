"""metaopt: learned optimizers that move along the symmetries of a network's parameters.

``load`` reads a learned optimizer, ``LearnedOptimizer`` trains a model with one, ``symmetries``
finds the symmetries of a model (``symmetry_rule`` tells it of your own operations), ``teleport``
moves a model along them, and ``Family``, ``Task`` and ``fresh_weights`` describe your own training
tasks. ``Rule`` and ``Proposal`` are what a learned rule of your own is made of.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metaopt._version import __version__
from metaopt.base.began import BEGAN as BEGAN
from metaopt.symmetry.discovery.find import symmetries
from metaopt.symmetry.discovery.rules.registry import symmetry_rule
from metaopt.symmetry.groups import Symmetries, Symmetry
from metaopt.tasks.own import Family, Task, fresh_weights
from metaopt.teleport.module import teleport

if TYPE_CHECKING:
    from metaopt.optim.finite import NonFiniteError
    from metaopt.optim.learned import LearnedRule, load
    from metaopt.optim.optimizer import LearnedOptimizer
    from metaopt.rules.base import Proposal, Rule

__all__ = [
    "Family",
    "LearnedOptimizer",
    "LearnedRule",
    "NonFiniteError",
    "Proposal",
    "Rule",
    "Symmetries",
    "Symmetry",
    "Task",
    "__version__",
    "fresh_weights",
    "load",
    "symmetries",
    "symmetry_rule",
    "teleport",
]

# They read configurations, and what that takes (pydantic, YAML) is slow to import: it comes with
# the first use of one of these names.
_WHEN_USED = {
    "LearnedOptimizer": "metaopt.optim.optimizer",
    "LearnedRule": "metaopt.optim.learned",
    "NonFiniteError": "metaopt.optim.finite",
    "Proposal": "metaopt.rules.base",
    "Rule": "metaopt.rules.base",
    "load": "metaopt.optim.learned",
}


def __getattr__(name: str) -> Any:
    if name not in _WHEN_USED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(_WHEN_USED[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
