"""metaopt: learned optimizers that exploit parameter-space symmetry."""

from metaopt._version import __version__
from metaopt.learned import LearnedRule, load
from metaopt.models import Symmetries, Symmetry, symmetries, teleport
from metaopt.torch_optim import LearnedOptimizer

__all__ = [
    "LearnedOptimizer",
    "LearnedRule",
    "Symmetries",
    "Symmetry",
    "__version__",
    "load",
    "symmetries",
    "teleport",
]
