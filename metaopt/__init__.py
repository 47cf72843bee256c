"""metaopt: learned optimizers that exploit parameter-space symmetry."""

from metaopt._version import __version__
from metaopt.base.began import BEGAN as BEGAN
from metaopt.optim.finite import NonFiniteError
from metaopt.optim.learned import LearnedRule, load
from metaopt.optim.optimizer import LearnedOptimizer
from metaopt.symmetry.discovery.find import symmetries
from metaopt.symmetry.groups import Symmetries, Symmetry
from metaopt.tasks.own import Family, Task, fresh_weights
from metaopt.teleport.module import teleport

__all__ = [
    "Family",
    "LearnedOptimizer",
    "LearnedRule",
    "NonFiniteError",
    "Symmetries",
    "Symmetry",
    "Task",
    "__version__",
    "fresh_weights",
    "load",
    "symmetries",
    "teleport",
]
