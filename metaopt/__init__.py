"""metaopt: learned optimizers that move along the symmetries of a network's parameters.

``load`` reads a learned optimizer, ``LearnedOptimizer`` trains a model with one, ``symmetries``
finds the symmetries of a model (``symmetry_rule`` tells it of your own operations), ``teleport``
moves a model along them. ``charges``, ``noise``, ``noether`` and ``orbit`` say where on its orbit a
model stands, ``sharpness``, ``curvature`` and ``criticality`` what the loss and the orbit look like
there, ``balance`` moves it to a chosen point of the orbit, and ``Ledger`` follows its charges in
training. ``connect`` joins trained networks by curves of low loss, ``align`` moves one along its
symmetries towards another, ``barrier`` is what the loss climbs between them, ``symmetry_curve``
joins a network to its image under a symmetry, and ``fge`` makes an ensemble in one training.
``Family``, ``Task`` and ``fresh_weights`` describe your own training tasks; ``Rule`` and
``Proposal`` are what a learned rule of your own is made of.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metaopt._version import __version__
from metaopt.base.began import BEGAN as BEGAN
from metaopt.base.idle_threads import THREADS_SLEEP as THREADS_SLEEP
from metaopt.symmetry.conserved import charges
from metaopt.symmetry.discovery.find import symmetries
from metaopt.symmetry.discovery.rules.registry import symmetry_rule
from metaopt.symmetry.groups import Symmetries, Symmetry
from metaopt.symmetry.motion import OwnSymmetry
from metaopt.tasks.own import Family, Task, fresh_weights
from metaopt.teleport.module import teleport

if TYPE_CHECKING:
    from metaopt.landscape.between.align import align
    from metaopt.landscape.between.align_report import AlignReport
    from metaopt.landscape.between.barrier import Barrier, barrier
    from metaopt.landscape.between.connect import connect
    from metaopt.landscape.between.curves import Curve
    from metaopt.landscape.between.ensemble import Ensemble
    from metaopt.landscape.between.refresh import refresh_batchnorm
    from metaopt.landscape.between.symmetry_curve import symmetry_curve
    from metaopt.landscape.criticality import criticality
    from metaopt.landscape.curvature_of_orbit import curvature
    from metaopt.landscape.noether import noether
    from metaopt.landscape.noise import noise
    from metaopt.landscape.orbit import orbit
    from metaopt.landscape.sharpness import sharpness
    from metaopt.optim.fge import fge
    from metaopt.optim.finite import NonFiniteError
    from metaopt.optim.learned import LearnedRule, load
    from metaopt.optim.ledger import Ledger
    from metaopt.optim.optimizer import LearnedOptimizer
    from metaopt.optim.teleporting import Teleporting
    from metaopt.rules.base import Proposal, Rule
    from metaopt.teleport.balance import balance
    from metaopt.teleport.search_report import SearchReport
    from metaopt.teleport.through_data import through_data

__all__ = [
    "AlignReport",
    "Barrier",
    "Curve",
    "Ensemble",
    "Family",
    "LearnedOptimizer",
    "LearnedRule",
    "Ledger",
    "NonFiniteError",
    "OwnSymmetry",
    "Proposal",
    "Rule",
    "SearchReport",
    "Symmetries",
    "Symmetry",
    "Task",
    "Teleporting",
    "__version__",
    "align",
    "balance",
    "barrier",
    "charges",
    "connect",
    "criticality",
    "curvature",
    "fge",
    "fresh_weights",
    "load",
    "noether",
    "noise",
    "orbit",
    "refresh_batchnorm",
    "sharpness",
    "symmetries",
    "symmetry_curve",
    "symmetry_rule",
    "teleport",
    "through_data",
]

# They read configurations, and what that takes (pydantic, YAML) is slow to import: it comes with
# the first use of one of these names.
_WHEN_USED = {
    "AlignReport": "metaopt.landscape.between.align_report",
    "Barrier": "metaopt.landscape.between.barrier",
    "Curve": "metaopt.landscape.between.curves",
    "Ensemble": "metaopt.landscape.between.ensemble",
    "LearnedOptimizer": "metaopt.optim.optimizer",
    "LearnedRule": "metaopt.optim.learned",
    "Ledger": "metaopt.optim.ledger",
    "NonFiniteError": "metaopt.optim.finite",
    "Proposal": "metaopt.rules.base",
    "Rule": "metaopt.rules.base",
    "SearchReport": "metaopt.teleport.search_report",
    "Teleporting": "metaopt.optim.teleporting",
    "align": "metaopt.landscape.between.align",
    "balance": "metaopt.teleport.balance",
    "barrier": "metaopt.landscape.between.barrier",
    "connect": "metaopt.landscape.between.connect",
    "criticality": "metaopt.landscape.criticality",
    "curvature": "metaopt.landscape.curvature_of_orbit",
    "fge": "metaopt.optim.fge",
    "load": "metaopt.optim.learned",
    "noether": "metaopt.landscape.noether",
    "noise": "metaopt.landscape.noise",
    "orbit": "metaopt.landscape.orbit",
    "refresh_batchnorm": "metaopt.landscape.between.refresh",
    "sharpness": "metaopt.landscape.sharpness",
    "symmetry_curve": "metaopt.landscape.between.symmetry_curve",
    "through_data": "metaopt.teleport.through_data",
}


def __getattr__(name: str) -> Any:
    if name not in _WHEN_USED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(_WHEN_USED[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
