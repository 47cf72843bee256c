"""What networks a rule was meta-trained on, measured on tasks: kinds of layers, sizes, batches.

Checkpoints carry it (``training``, under ``TRAINED_ON``), so that whoever loads a rule sees whether
networks like theirs were among them; ``metaopt show`` prints it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from metaopt.base.network import Weights
from metaopt.tasks.base import TaskFamily
from metaopt.tasks.own import Family
from metaopt.tasks.own_batch import LossFamily

TRAINED_ON = "trained_on"
"""The field of a checkpoint's ``training`` that holds what ``trained_on`` returns."""
NO_MODULE = "formulas without modules"
_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "attention": (nn.MultiheadAttention,),
    "batch norm": (_BatchNorm,),
    "convolution": (_ConvNd,),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "group norm": (nn.GroupNorm,),
    "layer norm": (nn.LayerNorm, nn.RMSNorm),
    "linear": (nn.Linear,),
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
}
_NAMED = {
    "attention": "attention",
    "lowrank": "low-rank pair",
    "recurrent": "recurrent",
    "residual": "residual",
}
"""What the name of a module's class says of it -> the kind."""


def trained_on(drawn: Iterable[tuple[TaskFamily[Any], Weights]]) -> dict[str, Any]:
    """Kinds of layers, and the smallest and largest sizes, over all task families.

    Args:
        drawn: each task family, and the initial weights of tasks of it, each [B, out, rest].

    Returns:
        Plain data: ``kinds``, sorted names; ``parameters``, the fewest and most entries of a
        network; ``matrices``, [out, rest] of the smallest and largest matrix, None where all are
        vectors; ``batches``, the sizes of mini-batches, with None where a step sees all data.
    """
    kinds: set[str] = set()
    counts: list[int] = []
    batches: set[int | None] = set()
    matrices: list[tuple[int, int, int]] = []
    for family, weights in drawn:
        own = family.own if isinstance(family, LossFamily) else None
        kinds |= {"linear"} if own is None else set(_kinds(own)) or {NO_MODULE}
        batches.add(None if own is None else own.batch)
        counts.append(sum(W[0].numel() for W in weights))
        matrices += [(W[0].numel(), *W.shape[1:]) for W in weights if min(W.shape[1:]) > 1]
    ordered = sorted(matrices)
    return {
        "kinds": sorted(kinds),
        "parameters": [min(counts), max(counts)],
        "matrices": [list(one[1:]) for one in (ordered[0], ordered[-1])] if ordered else None,
        "batches": sorted(batches, key=lambda size: (size is None, size or 0)),
    }


def _kinds(own: Family) -> Iterator[str]:
    """The kinds of layers in the networks that a family, or one inside it, has as attributes."""
    for value in vars(own).values():
        if isinstance(value, Family):
            yield from _kinds(value)
        elif isinstance(value, nn.Module):
            for module in value.modules():
                yield from _kinds_of(module)


def _kinds_of(module: nn.Module) -> Iterator[str]:
    if not any(p.requires_grad for p in module.parameters()):
        return
    name = type(module).__name__.lower()
    found = {kind for part, kind in _NAMED.items() if part in name}
    found |= {kind for kind, classes in _KINDS.items() if isinstance(module, classes)}
    if not found and any(p.requires_grad for p in module.parameters(recurse=False)):
        found = {f"parameters of {type(module).__name__}"}
    yield from found
