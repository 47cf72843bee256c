"""``align(a, b)``: b moved along its own symmetries so that it comes close to a."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from metaopt.base.streams import Stream, generator
from metaopt.landscape.between.align_activations import orders_by_activations
from metaopt.landscape.between.align_report import AlignReport, told
from metaopt.landscape.between.align_search import Search, Start, chosen
from metaopt.landscape.between.align_sides import Log, Sides
from metaopt.landscape.between.calls import called, device_of, evaluating, on_device
from metaopt.landscape.between.structure import plain_models
from metaopt.landscape.between.tensors import tensors_of_model
from metaopt.landscape.data import Data, pairs_of, tensors_of
from metaopt.symmetry.discovery.find import symmetries as find_symmetries
from metaopt.symmetry.groups import Symmetry

By = Literal["weights", "activations", "orbit"]
Found = tuple[float, Log]
EQUAL = 64
"""In units of rounding, the share of the distance before below which no other start is tried."""
STARTS: tuple[Start, ...] = ("ends", "here", "random")


@torch.no_grad()
def align(
    a: nn.Module,
    b: nn.Module,
    by: By = "weights",
    *,
    data: Data | None = None,
    symmetries: Iterable[Symmetry] | None = None,
    restarts: int = 2,
    seed: int = 0,
) -> tuple[nn.Module, AlignReport]:
    """Move a copy of b along its symmetries so that it comes close to a; its outputs stay.

        min over g of  |w_a - g . w_b|,    sums over parameters; buffers move along

    Permutations of units, of residual streams and of heads are found by linear assignment, one at a
    time with all others held; what they carry (signs, frames of heads) is chosen for each pair of
    units. Scales and frames are compared at the least norm on the orbit (``metaopt.balance``),
    where rotations and signs are all that is left of them, and then b goes to a's own scales and
    frames. There continuous groups go on in closed form as long as the distance falls. Each
    symmetry uses the largest group that it allows; streams in front of gains turn while the gains
    are 1.

    - "weights": permutations by inner products of weights. The distance never rises.
    - "orbit": the same, and then permutations, scales and frames take turns in a's own scales until
      the distance stops falling. With one hidden layer that is the least distance there is.
    - "activations": permutations by correlations of hidden units on ``data``, all else by weights.
      The distance is not its aim, and may rise; units that are constant on the data have no
      correlations, so that nothing tells them apart.

    Besides the moved copy of b, at most one more copy of the parameters is held at a time; groups
    of matrices (heads, factorised layers) take float64 copies of their own weights for a moment.

    Args:
        a: the model that stays.
        b: another of the same structure; it stays too, its copy moves.
        by: "weights", "activations" or "orbit".
        data: a pair (inputs, targets), or an iterable of such pairs (see ``metaopt.noise``); the
            first inputs are the example on which symmetries are found and tried, and the drift of
            the outputs is taken on all.
        symmetries: those to move along, as ``metaopt.symmetries(a, permutations=True)`` lists
            them; None: all that are found of the model without dropout.
        restarts: how many starts are tried, of which the best counts: from the layers next to
            inputs and outputs inwards, then b as it is, then random permutations of it.
        seed: of the random orders, at least 0.

    Returns:
        b moved, a new module in b's modes, and what was done (``AlignReport``).

    Raises:
        ValueError: if the models differ in structure (the first difference is named), or an
            argument is none of these.

    References:
        Ainsworth et al., Git Re-Basin (arXiv 2209.04836); Entezari et al., arXiv 2110.06296.
    """
    if by not in get_args(By):
        raise ValueError(f"by must be one of {', '.join(get_args(By))}, found {by!r}")
    if by == "activations" and data is None:
        raise ValueError("by='activations' compares hidden units on data: data must be given")
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1, found {restarts}")
    a, b = plain_models([a, b])
    moved = deepcopy(b)
    if symmetries is None:
        example = None if data is None else next(iter(pairs_of(data)))[0]
        with torch.enable_grad(), _without_dropout(moved):
            symmetries = find_symmetries(moved, example, permutations=True)
    sides = Sides(tensors_of_model(a), tensors_of_model(moved), dict(a.named_parameters()))
    before = sides.distance()
    own = chosen(sides, symmetries)
    search = Search(sides, tensors_of_model(b), own, generator(Stream.ALIGNING, seed))
    best: Found = (before, [])
    if by == "activations":
        assert data is not None
        first, unread = orders_by_activations(a, moved, own.plans, data)
        # Correlations are the aim here, so that the distance may rise.
        best = search.run(unread, "ends", False, first)
    else:
        equal = EQUAL * max(torch.finfo(sides.b[path].dtype).eps for path in sides.counted) * before
        for start in range(restarts):
            where = STARTS[min(start, len(STARTS) - 1)]
            best = _nearer(best, search.run(own.plans, where, by == "orbit"))
            if best[0] <= equal:
                break
        if best[0] >= before:
            best = _nearer(best, search.direct())
    search.reset()
    sides.replay(best[1])
    assumes = tuple(dict.fromkeys(one.assumes for one in own.all if one.assumes))
    report = AlignReport(
        by=by,
        before=before,
        after=sides.distance(),
        moved=told(best[1], own.plans, [*own.others, *own.blurred]),
        sweeps=search.sweeps,
        drift=None if data is None else _drift(b, moved, data),
        assumes=assumes,
        left=own.left,
        steps=tuple(best[1]),
    )
    return moved, report


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """A model without dropout, whose masks would stay where they are if units changed places."""
    names: dict[nn.Module, str] = {
        module: "p" for module in model.modules() if isinstance(module, _DropoutNd)
    }
    names |= {m: "dropout" for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    kept = {module: getattr(module, name) for module, name in names.items()}
    try:
        for module, name in names.items():
            setattr(module, name, 0.0)
        yield
    finally:
        for module, share in kept.items():
            setattr(module, names[module], share)


def _nearer(one: Found, other: Found) -> Found:
    return other if other[0] < one[0] else one


def _drift(b: nn.Module, moved: nn.Module, data: Data) -> float:
    """|f(b moved) - f(b)| / |f(b)| over all outputs of a float type."""
    off, size = 0.0, 0.0
    device = device_of(b)
    with evaluating(b), evaluating(moved):
        for inputs, _ in pairs_of(data):
            inputs = on_device(inputs, device)
            for x, y in zip(*(tensors_of(called(m, inputs)) for m in (b, moved)), strict=True):
                if x.is_floating_point():
                    off += float((x - y).double().square().sum())
                    size += float(x.double().square().sum())
    return (off / size) ** 0.5 if size else off**0.5
