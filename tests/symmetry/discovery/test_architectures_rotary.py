"""Rotary models of ``transformers``, and adapters of ``peft``: held to every bar."""

from __future__ import annotations

from architectures.held import Bars
from architectures.table import ROTARY_AND_ADAPTERS


class TestRotaryAndAdapters(Bars):
    architectures = ROTARY_AND_ADAPTERS
