"""The teleport engine: group actions, generator -> element, norm limits, drift, guard."""

from metaopt.symmetry.actions import (
    Action,
    InexactActionError,
    LayerPair,
    Linear,
    Orthogonal,
    Permutation,
    Scaling,
    ThroughData,
)
from metaopt.symmetry.elements import (
    Cayley,
    ElementMap,
    Exponential,
    FirstOrder,
    GroupElement,
    permutation,
)
from metaopt.symmetry.generators import (
    BoundedNorm,
    CappedNorm,
    FixedNorm,
    NormLimit,
    frobenius_norm,
)
from metaopt.symmetry.guard import Generators, Guard, Guarded, Refuse, Shrink, Unguarded, drift
from metaopt.symmetry.teleport import TeleportData, TeleportEngine, TeleportReport
from metaopt.symmetry.units import UnitData, UnitEngine, UnitReport

__all__ = [
    "Action",
    "BoundedNorm",
    "CappedNorm",
    "Cayley",
    "ElementMap",
    "Exponential",
    "FirstOrder",
    "FixedNorm",
    "Generators",
    "GroupElement",
    "Guard",
    "Guarded",
    "InexactActionError",
    "LayerPair",
    "Linear",
    "NormLimit",
    "Orthogonal",
    "Permutation",
    "Refuse",
    "Scaling",
    "Shrink",
    "TeleportData",
    "TeleportEngine",
    "TeleportReport",
    "ThroughData",
    "Unguarded",
    "UnitData",
    "UnitEngine",
    "UnitReport",
    "drift",
    "frobenius_norm",
    "permutation",
]
