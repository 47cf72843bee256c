"""The tests of all bars, which three files hold for architectures of their own."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from _pytest.mark import ParameterSet

from architectures import bars
from architectures.base import Architecture
from architectures.table import searched
from metaopt.symmetry.groups import Symmetry

# Nothing is fetched: models are made from their configurations.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


USUAL = {"BERT", "GPT-2", "T5, logits alone", "Llama, trained", "Qwen2, trained", "LoRA on Llama"}
"""Those of libraries that every run of the tests tries; METAOPT_ALL=1 tries all of them."""


def _shown(architectures: Sequence[Architecture]) -> list[ParameterSet]:
    """Those that this run of the tests tries; what cannot be imported is skipped."""
    if not os.environ.get("METAOPT_ALL"):
        architectures = [a for a in architectures if not a.needs or a.name in USUAL]
    return [
        pytest.param(
            architecture,
            id=architecture.name,
            marks=pytest.mark.skipif(
                bool(architecture.needs) and importlib.util.find_spec(architecture.needs) is None,
                reason=f"{architecture.needs} is not installed",
            ),
        )
        for architecture in architectures
    ]


def _found(architecture: Architecture) -> list[Symmetry]:
    return list(searched(architecture))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
class Bars:
    """All bars, for each of some architectures: tests of them are a class with these alone."""

    architectures: ClassVar[Sequence[Architecture]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        metafunc.parametrize("architecture", _shown(self.architectures))

    def test_what_is_found(self, architecture: Architecture) -> None:
        """All that the table has, nothing else, and what is left alone with its reason."""
        found = searched(architecture)
        differences = bars.differences(architecture.found, found)
        assert not differences, f"{architecture.name}\n{differences}"
        # A module that makes what is permuted is not left alone; without permutations it says why.
        continuous = searched(architecture, permutations=False)
        unexplained = bars.unexplained(architecture.refused, continuous)
        assert not unexplained, f"{unexplained}\n" + "\n".join(map(str, continuous.skipped))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    def test_outputs_stay(self, architecture: Architecture, dtype: torch.dtype) -> None:
        """After elements of all symmetries together."""
        changes = bars.outputs_stay(architecture, dtype, _found(architecture))
        assert {key: x for key, x in changes.items() if x > bars.BOUNDS[dtype]} == {}

    def test_gradients_move(self, architecture: Architecture) -> None:
        """By the inverse transpose, and the new ones are slopes."""
        found = _found(architecture)
        errors = bars.gradients_move(architecture, found)
        assert {path: x for path, x in errors.items() if x > 1e-9} == {}
        # Where nothing moves there is nothing to know (the gradients of DoRA are no slopes).
        if found:
            assert bars.finite_differences(architecture, found) < 1e-5

    def test_tensors_move(self, architecture: Architecture) -> None:
        """By more than one per cent."""
        changes = bars.tensors_move(architecture, _found(architecture))
        assert {path: x for path, x in changes.items() if x < 0.01} == {}

    def test_charges_vanish(self, architecture: Architecture) -> None:
        """On every mini-batch."""
        left = bars.charges(architecture, _found(architecture))
        assert {name: x for name, x in left.items() if x > 1e-10} == {}

    def test_halves_change(self, architecture: Architecture) -> None:
        """What moves by g alone is no symmetry."""
        changes = bars.half_changes(architecture, _found(architecture))
        assert {name: x for name, x in changes.items() if x < 1e-6} == {}
