"""Rules for pairs in the basis of their gradients, networks and data, for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import metaopt
from metaopt.base.config import check
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.rules.learned.eigen import EigenUpdateLSTM
from metaopt.rules.learned.eigen_means import Memory
from metaopt.symmetry.maps import GroupElement
from metaopt.symmetry.pairs import LinearPairs
from metaopt.teleport.pair_engine import PairMove


def data(seed: int, width: int = 5, rows: int = 6) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double()


def content(update: str = "eigen_lstm", teleport: str = "pair_basis_lstm", **options: str) -> dict:
    moving = {"teleport": {"kind": teleport, "hidden": 4, "scale": 50.0}} if teleport else {}
    return {
        "name": "basis",
        "dtype": "float64",
        "task": {"family": "metaopt.tasks.factorised:Sensing", "options": {"size": 6, "rank": 2}},
        "rules": {"update": {"kind": update, "hidden": 4, "scale": 50.0} | options} | moving,
        "meta": {"hide": {"loss": 0.5}},
    } | ({"teleporter": {"action": "linear_pairs"}} if teleport else {})


def rule(**options: str) -> metaopt.LearnedRule:
    """An untrained one in float64, with loud heads."""
    config = check(TrainConfig, content(**{"pairs": "moved"} | options), "basis")
    return metaopt.LearnedRule(meta_optimizer(config), config)


def updates(largest: int = 1024, directions: tuple[str, ...] = ("adam",)) -> EigenUpdateLSTM:
    own = (4, 1.0, directions, None, 0.01, largest, [0.5, 0.9], Memory(5.0), True, 0, "u")
    return EigenUpdateLSTM(*own).double()


def factorised(between: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, between), nn.Linear(between, 7, bias=False)).double()


def linear(net: nn.Module) -> list[nn.Linear]:
    """Its linear layers, in order."""
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)]


def similarities(pairs: LinearPairs, seed: int, sized: bool = True) -> PairMove:
    """A random rotation for each pair, times a number of its own for those that are alone."""
    drawn, elements = torch.Generator().manual_seed(seed), []
    for width, alone in zip(pairs.widths, pairs.alone, strict=True):
        X = torch.randn(1, width.count, width.size, width.size, generator=drawn).double()
        Q = torch.linalg.qr(X)[0]
        log_c = torch.randn(width.count, generator=drawn).double().index_select(0, width.first)
        c = (log_c * alone * sized).exp()[None, :, None, None]
        elements.append(GroupElement(c * Q.mT, Q / c))
    return PairMove(pairs, tuple(elements))
