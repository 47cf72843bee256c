"""What every symmetry of every architecture is held to, one function a bar."""

from __future__ import annotations

import contextlib
import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import metaopt
from architectures.base import NON_ZERO, Architecture, Call, Inputs, Refused, Row
from metaopt.symmetry.groups import Slot, Symmetry

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-11}
"""Largest relative change of an output."""
DIAGONAL = {"positive scaling", NON_ZERO, "sign flips"}
CONTINUOUS = {"general linear", "orthogonal", "scale and rotation", "positive scaling"}
LARGER = {"general linear", "orthogonal"}
"""What has the permutations of its units."""
NORM = 0.5
SIZES = ({"batch": 3, "length": 7, "seed": 5}, {"batch": 2, "length": 5, "seed": 6})
"""Of inputs that are not the example's."""


@contextlib.contextmanager
def inside(architecture: Architecture, dtype: torch.dtype) -> Iterator[None]:
    """In float64 also where a model's own code asks for float32, which would round."""
    if not architecture.doubled or dtype is not torch.float64:
        yield
        return
    with (
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(Tensor, "float", Tensor.double),
    ):
        yield


def floating(nested: Any) -> list[Tensor]:
    """The tensors of numbers in what a model gives, caches left out."""
    if isinstance(nested, dict):
        nested = {key: value for key, value in nested.items() if key != "past_key_values"}
        nested = list(nested.values())
    leaves = pytree.tree_leaves(nested)
    nests = [floating(leaf) for leaf in leaves if isinstance(leaf, dict)]
    tensors = [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
    return [*tensors, *(x for nest in nests for x in nest)]


def outputs(
    architecture: Architecture,
    model: nn.Module,
    call: Call,
    training: bool,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> list[Tensor]:
    """What the model gives, from fixed random numbers, in float64; its statistics stay."""
    dtype = next(model.parameters()).dtype
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model = copy.deepcopy(model)
    model.train(training)
    with torch.no_grad(), torch.random.fork_rng(), inside(architecture, dtype):
        torch.manual_seed(0)
        return [x.double() for x in floating(call(model, Inputs(dtype, **sizes)))]


def largest_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """max ||x - y|| / ||x||."""
    assert len(before) == len(after) > 0
    changes = [float((x - y).norm() / x.norm()) for x, y in zip(before, after, strict=True)]
    assert all(change == change for change in changes)
    return max(changes)


def outputs_stay(
    architecture: Architecture, dtype: torch.dtype, found: Sequence[Symmetry]
) -> dict[str, float]:
    """(a) "call, mode" -> the largest relative change after elements of all symmetries together.

    Every call makes its inputs, and its cache, anew, with other sizes than the example.
    """
    model = architecture.model(dtype)
    moved = copy.deepcopy(model)
    metaopt.teleport(moved, norm=NORM, seed=3, symmetries=metaopt.Symmetries(found))
    still = [s for s in found if str(s.group) != "permutation"]
    unpermuted = copy.deepcopy(model)
    metaopt.teleport(unpermuted, norm=NORM, seed=3, symmetries=metaopt.Symmetries(still))
    changes = {}
    for i, (name, call) in enumerate(architecture.calls.items()):
        for training in (False, True):
            # Masks of dropout are drawn by place: a permutation keeps the distribution alone.
            other = unpermuted if training and architecture.random else moved
            for sizes in SIZES if i == 0 else SIZES[:1]:
                before = outputs(architecture, model, call, training, sizes)
                after = outputs(architecture, other, call, training, sizes)
                key = f"{name}, {'training' if training else 'evaluation'}, {sizes}"
                changes[key] = largest_change(before, after)
    return changes


def random_loss(architecture: Architecture, model: nn.Module, seed: int) -> Tensor:
    """A fixed random linear function of all outputs of the first call, on one mini-batch."""
    dtype = next(model.parameters()).dtype
    call = next(iter(architecture.calls.values()))
    draws = torch.Generator().manual_seed(100 + seed)
    torch.manual_seed(0)
    with inside(architecture, dtype):
        given = floating(call(model, Inputs(dtype, seed=seed, batch=3)))
        weights = [torch.randn(x.shape, generator=draws, dtype=torch.float64) for x in given]
        parts = [(x * w.to(x.dtype)).sum() for x, w in zip(given, weights, strict=True)]
        return torch.stack([part.double() for part in parts]).sum()


def gradients(architecture: Architecture, model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Path -> gradient of ``random_loss``; all paths of a tensor, zeros where there is none."""
    model.zero_grad()
    with torch.random.fork_rng(), inside(architecture, next(model.parameters()).dtype):
        random_loss(architecture, model, seed).backward()
    named = model.named_parameters(remove_duplicate=False)
    return {
        path: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for path, p in named
        if p.requires_grad
    }


def gradients_move(architecture: Architecture, found: Sequence[Symmetry]) -> dict[str, float]:
    """(b) path -> how far the moved gradient is from the one computed at the new weights."""
    model = architecture.model(torch.float64).eval()
    listed = metaopt.Symmetries(found)
    gradients(architecture, model, seed=7)
    metaopt.teleport(model, norm=NORM, seed=3, symmetries=listed)
    carried = {path: p.grad for path, p in model.named_parameters() if p.grad is not None}
    carried = {path: gradient.clone() for path, gradient in carried.items()}
    anew = gradients(architecture, model, seed=7)
    blurred = {path for symmetry in found for path in symmetry.blurs}
    whole = torch.stack([gradient.norm() for gradient in anew.values()]).norm()
    return {
        path: float((carried[path] - anew[path]).norm() / (anew[path].norm() + 1e-3 * whole))
        for path in carried.keys() - blurred
    }


def finite_differences(architecture: Architecture, found: Sequence[Symmetry]) -> float:
    """(b) relative error of the slope along a random direction, after the teleport."""
    model = architecture.model(torch.float64).eval()
    metaopt.teleport(model, norm=NORM, seed=3, symmetries=metaopt.Symmetries(found))
    exact = gradients(architecture, model, seed=7)
    draws = torch.Generator().manual_seed(8)
    own = {path: p for path, p in model.named_parameters() if p.requires_grad}
    along = {
        path: torch.randn(p.shape, generator=draws, dtype=torch.float64)
        * p.detach().std(correction=0)
        for path, p in own.items()
    }
    slope = sum(float((exact[path] * along[path]).sum()) for path in own)
    size = sum(float((exact[path] * along[path]).square().sum()) for path in own) ** 0.5
    step, ends = 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for path, p in own.items():
                p.add_(along[path], alpha=sign * step)
            with torch.random.fork_rng():
                ends.append(float(random_loss(architecture, model, seed=7)))
    return abs((ends[0] - ends[1]) / (2 * step) - slope) / size


def tensors_move(architecture: Architecture, found: Sequence[Symmetry]) -> dict[str, float]:
    """(c) path -> ||w' - w|| / ||w|| of every tensor that a continuous symmetry moves."""
    model = architecture.model(torch.float64)
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    moving = [s for s in found if str(s.group) in CONTINUOUS]
    metaopt.teleport(model, norm=NORM, seed=3, symmetries=metaopt.Symmetries(moving))
    after = model.state_dict()
    return {
        path: float((after[path] - before[path]).norm() / before[path].norm())
        for path in {slot.path for symmetry in moving for slot in symmetry.slots}
    }


def stretch(slot: Slot, tensor: Tensor, symmetry: Symmetry) -> Tensor:
    """The entries on which a slot acts, [copies, blocks, size, any]."""
    taken: list[Tensor] = []

    def take(x: Tensor) -> Tensor:
        taken.append(x.clone())
        return taken[0]

    slot.apply(tensor, symmetry.blocks, symmetry.size, take)
    return taken[0]


def charge(symmetry: Symmetry, weights: dict[str, Tensor], G: dict[str, Tensor]) -> float:
    """(d) what must vanish on every mini-batch, relative to the sum of ||W|| ||G||.

        sum_in W G^T - sum_out G W^T,  [size, size] for each block

    All of it for the general linear group, its antisymmetric part for the orthogonal one, what
    lies along the unit matrix and along J for pairs, the diagonal for scaling. Of a translation
    the sum of G over the units. A slot that moves by a power counts so often.
    """
    group = str(symmetry.group)
    if group == "translation":
        whole = torch.stack([g.norm() for g in G.values()]).norm()
        sums = [stretch(slot, G[slot.path], symmetry).sum((0, 2)) for slot in symmetry.slots]
        return max(float(total.norm() / whole) for total in sums)
    difference = torch.zeros(symmetry.blocks, symmetry.size, symmetry.size, dtype=torch.float64)
    scale = torch.zeros(())
    for slots, sign in ((symmetry.incoming, 1), (symmetry.outgoing, -1)):
        for slot in slots:
            if slot.path not in G:  # a buffer: nothing is learned along it
                continue
            W, own = (stretch(slot, x[slot.path], symmetry) for x in (weights, G))
            term = torch.einsum("cbia,cbja->bij", W, own)
            term = slot.power * (term if sign > 0 else term.mT)
            difference = difference + sign * term
            scale = scale + W.norm() * own.norm()
    left = {
        "general linear": lambda: difference,
        "orthogonal": lambda: difference - difference.mT,
        "scale and rotation": lambda: torch.stack(
            [
                difference.diagonal(0, 1, 2).sum(-1),
                difference[:, 0, -1] - difference[:, -1, 0],
            ]
        ),
        "positive scaling": lambda: difference.diagonal(0, 1, 2),
    }[group]()
    return float(left.norm() / scale)


def charges(architecture: Architecture, found: Sequence[Symmetry]) -> dict[str, float]:
    """(d) symmetry -> its ``charge``, the largest over three mini-batches, in training mode."""
    model = architecture.model(torch.float64).train()
    weights = {
        path: x.detach().clone() for path, x in model.named_parameters(remove_duplicate=False)
    }
    learned = [s for s in found if str(s.group) in {*CONTINUOUS, "translation"}]
    result: dict[str, float] = {}
    for seed in (11, 12, 13):
        G = gradients(architecture, model, seed)
        for symmetry in learned:
            key = f"{symmetry.group}: {symmetry.name}"
            result[key] = max(result.get(key, 0.0), charge(symmetry, weights, G))
    return result


def half_changes(architecture: Architecture, found: Sequence[Symmetry]) -> dict[str, float]:
    """(e) symmetry -> the change of the outputs if only what moves by g moves."""
    call = next(iter(architecture.calls.values()))
    model = architecture.model(torch.float64)
    before = outputs(architecture, model, call, training=False)
    changes = {}
    for symmetry in found:
        if not symmetry.outgoing or str(symmetry.group) in {"translation", "permutation"}:
            continue
        moved = copy.deepcopy(model)
        half = replace(symmetry, outgoing=())
        metaopt.teleport(moved, norm=NORM, seed=3, symmetries=metaopt.Symmetries([half]))
        after = outputs(architecture, moved, call, training=False)
        changes[f"{symmetry.group}: {symmetry.name}"] = largest_change(before, after)
    return changes


Key = tuple[str, frozenset[str]]


def wanted(rows: Sequence[Row]) -> Counter[tuple[Key, str]]:
    """What rows ask for: ((group, paths), "size x blocks") -> how often."""
    counted: Counter[tuple[Key, str]] = Counter()
    for row in rows:
        for paths in row.paths():
            _count(counted, row.group, paths, row.size, row.blocks)
    return counted


def listed(found: Sequence[Symmetry]) -> Counter[tuple[Key, str]]:
    """The same of what was found."""
    counted: Counter[tuple[Key, str]] = Counter()
    for symmetry in found:
        group = str(symmetry.group)
        if group == "positive scaling" and "sign flips" in map(str, symmetry.allows):
            group = NON_ZERO
        paths = frozenset(slot.path for slot in symmetry.slots)
        _count(counted, group, paths, symmetry.size, symmetry.blocks)
    return counted


def _count(
    counted: Counter[tuple[Key, str]], group: str, paths: frozenset[str], size: int, blocks: int
) -> None:
    """Add one: how it is cut into symmetries does not matter."""
    if group == "translation":
        for path in paths:
            counted[(group, frozenset({path})), ""] = 1
    elif group in DIAGONAL:
        counted[(group, paths), "units"] += size * blocks
    elif group == "permutation":
        # Blocks may share an order, or have one each: it is a discrete group either way.
        counted[(group, paths), str(size)] = 1
    else:
        counted[(group, paths), str(size)] += blocks


def differences(rows: Sequence[Row], found: Sequence[Symmetry]) -> str:
    """What is missing and what is too much, in lines; "" if nothing."""
    needed, have = wanted([row for row in rows if row.needed]), listed(found)
    # Permutations within a larger group need no line of their own, and may have one.
    larger = {paths for row in rows if row.group in LARGER for paths in row.paths()}
    lines = []
    for title, some, others in (("missing", needed, have), ("too much", have, wanted(rows))):
        for (key, size), count in some.items():
            is_within = key[0] == "permutation" and key[1] in larger
            if others.get((key, size)) != count and not is_within:
                paths = " ".join(sorted(key[1]))
                lines.append(f"{title}: {key[0]} {size} x {count}: {paths}")
    return "\n".join(lines)


def unexplained(refused: Sequence[Refused], found: metaopt.Symmetries) -> list[Refused]:
    """What should have been refused with its reason, and was not."""
    return [
        row
        for row in refused
        if not any(
            re.match(row.module, entry.module) and re.search(row.reason, entry.reason)
            for entry in found.skipped
        )
    ]
