"""A search under a profiler finds what it always does, and the profiler goes on."""

from __future__ import annotations

import cProfile
import pstats
import sys
from types import FrameType
from typing import Any

import torch
from torch import nn

import metaopt


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def test_under_cprofile() -> None:
    profile = cProfile.Profile()
    profile.enable()
    try:
        found = metaopt.symmetries(network())
        torch.linalg.norm(torch.ones(3))
    finally:
        profile.disable()
    assert [s.name for s in found] == [s.name for s in metaopt.symmetries(network())]
    assert found
    # What ran after the search is among what was profiled.
    assert any("norm" in name for *_, name in pstats.Stats(profile).stats)  # type: ignore[attr-defined]


def test_under_a_function() -> None:
    seen = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        seen.append(event)

    sys.setprofile(note)
    try:
        found = metaopt.symmetries(network())
        assert sys.getprofile() is note
    finally:
        sys.setprofile(None)
    assert found
    assert seen
