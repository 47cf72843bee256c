"""metaopt: learned optimizers that exploit parameter-space symmetry."""

from metaopt._began import BEGAN as BEGAN
from metaopt._version import __version__
from metaopt.families import Family, Task, fresh_weights
from metaopt.learned import LearnedRule, load
from metaopt.models import Symmetries, Symmetry, symmetries, teleport
from metaopt.torch_optim import LearnedOptimizer, NonFiniteError

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
