"""Models of ``transformers``: what is found, held to every bar."""

from __future__ import annotations

from architectures.held import Bars
from architectures.table import TRANSFORMERS


class TestTransformers(Bars):
    architectures = TRANSFORMERS
