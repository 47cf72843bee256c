"""Models of ``transformers``: what is found, held to every bar."""

from __future__ import annotations

import pytest
import torch
from architectures import held
from architectures.base import Architecture
from architectures.table import TRANSFORMERS

every = held.each(TRANSFORMERS)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@every
def test_what_is_found(architecture: Architecture) -> None:
    held.what_is_found(architecture)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_outputs_stay(architecture: Architecture, dtype: torch.dtype) -> None:
    held.outputs_stay(architecture, dtype)


@every
def test_gradients_move(architecture: Architecture) -> None:
    held.gradients_move(architecture)


@every
def test_tensors_move(architecture: Architecture) -> None:
    held.tensors_move(architecture)


@every
def test_charges_vanish(architecture: Architecture) -> None:
    held.charges_vanish(architecture)


@every
def test_halves_change(architecture: Architecture) -> None:
    held.halves_change(architecture)
