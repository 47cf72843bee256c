"""Odd forwards: of what is found, nothing moves an output unless it was announced.

``METAOPT_ALL=1`` tries all of the models; otherwise about 200 are tried.
"""

from __future__ import annotations

import os
from functools import cache

import odd_forwards_attention
import odd_forwards_ends
import odd_forwards_flow
import odd_forwards_functions
import odd_forwards_hidden
import odd_forwards_layers
import odd_forwards_more
import odd_forwards_returns
import odd_forwards_state
import odd_forwards_tied
import odd_forwards_weights
import pytest
from odd_forwards import ODD
from odd_trials import trial, without_list

FILES = (
    odd_forwards_attention,
    odd_forwards_ends,
    odd_forwards_flow,
    odd_forwards_functions,
    odd_forwards_hidden,
    odd_forwards_layers,
    odd_forwards_more,
    odd_forwards_returns,
    odd_forwards_state,
    odd_forwards_tied,
    odd_forwards_weights,
)
"""Importing these files has registered their models."""

FAULTS: dict[str, tuple[str, ...]] = {
    "error of an own __getattr__": ("OwnGetattr",),
}
"""What the finder does wrong today -> models that show it."""
WRONG = {name: why for why, names in FAULTS.items() for name in names}

STEP = 1 if os.environ.get("METAOPT_ALL") else 3
LONG = [name for name, odd in ODD.items() if odd.example[0].ndim == 3]
"""Models on positions: attention, which takes longer, and streams."""
CHOSEN = [*[name for name in ODD if name not in LONG][::STEP], *LONG[:: 2 * STEP - 1]]
SHARE = 0.55
"""Of so many models something is found; of many odd ones nothing is true."""


@cache
def tried(name: str) -> tuple[int, list[str]]:
    """How many symmetries a model has on its example, and what went wrong."""
    found, wrong = trial(ODD[name])
    return len(found), wrong


@pytest.mark.parametrize("name", CHOSEN)
def test_no_output_moves_unannounced(name: str, request: pytest.FixtureRequest) -> None:
    if name in WRONG:
        request.applymarker(pytest.mark.xfail(reason=WRONG[name], strict=True))
    _, wrong = tried(name)
    assert wrong == []


@pytest.mark.parametrize("name", [name for name in CHOSEN[::4] if name not in WRONG])
def test_teleport_without_a_list_changes_nothing(name: str) -> None:
    assert without_list(ODD[name]) == []


def test_of_most_models_something_is_found() -> None:
    found = [name for name in CHOSEN if tried(name)[0]]
    assert len(found) > SHARE * len(CHOSEN)


def test_there_are_many() -> None:
    assert len(ODD) >= 200
