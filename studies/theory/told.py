"""What every part says: claims of exact numbers, and rows of tables."""

from __future__ import annotations

from studies.noether.claims import Claim


def exact(
    what: str, value: float, relation: str, predicted: float, tolerance: float = 0.0
) -> Claim:
    """A claim of a number that has no error but rounding.

    Args:
        what: was measured.
        value: what it is.
        relation: ``=``, ``<`` or ``>``, of the value to the prediction.
        predicted: the prediction.
        tolerance: the share of the prediction that may be missed.
    """
    value = float(value)
    return Claim(what, value, value, value, relation, float(predicted), tolerance)
