"""What the tests of this folder need beyond torch, or a skip: the extra ``integrations``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

PRETRAINED = Path(__file__).resolve().parents[2] / "checkpoints" / "pretrained"
D = PRETRAINED / "digits_update_tele.safetensors"

_libraries: list[torch.library.Library] = []


def _declare_operators_of_torchvision() -> None:
    """Name two operators that PyPI's torchvision, built for CUDA, misses with a CPU build of torch.

    No model calls them, but torchvision, and all that imports it, would not be imported.
    """
    if torch.version.cuda is None and not _libraries:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        _libraries.append(library)


def needed(name: str) -> Any:
    """The package, or a skip of the whole module where it is not installed."""
    if importlib.util.find_spec("torchvision") is not None:
        _declare_operators_of_torchvision()
    return pytest.importorskip(name, reason=f"{name} is not installed")


def net() -> nn.Module:
    """Always the same, with hidden units that may be scaled."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    """Eight of four rows, to be fitted by a net."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 4, 6, generator=generator)
    return [*zip(x, x[..., :3].sin(), strict=True)]


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(model(x).float(), y)


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Bit for bit."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
