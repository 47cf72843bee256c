"""Permutations of hidden units by how they correlate on data.

    max over P of  sum over units i of corr(x_i of a, (P y)_i of b)

Hidden units are read where the finder says that their space lives: at the inputs of the modules
that read it, else at the outputs of those that make it. Units whose sign is free count by the
modulus of their correlation, heads whose frame is free by the sum of the canonical correlations of
their outputs. One assignment for each permutation, over all places where it is read.

References:
    Ainsworth, Hayase and Srinivasa, Git Re-Basin (arXiv 2209.04836), activation matching; Li et
    al., Convergent learning (arXiv 1511.07543).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from metaopt.landscape.between.align_layout import UNITWISE, Carried, Layout
from metaopt.landscape.between.align_sides import Log
from metaopt.landscape.between.align_turns import is_signed
from metaopt.landscape.between.matching import assigned
from metaopt.landscape.between.refresh import called
from metaopt.landscape.data import Data, pairs_of, tensors_of, with_tensors
from metaopt.landscape.samples import plain_attention
from metaopt.symmetry.elements import Relabelling, Signs
from metaopt.symmetry.groups import Slot, Symmetry

RIDGE = 1e-6
"""The share of the largest variance below which a direction of a head counts as constant."""


@dataclass
class _Place:
    """Where the units of a permutation are read, with sums over the data.

    Attributes:
        plan: the permutation.
        slot: the slot that says how units lie along the axis of features.
        is_input: whether they are read at the module's inputs, else at its outputs.
        features: the length of that axis.
        carried: what the permutation carries there, if anything.
        sums: n, x, y, x x^T, y y^T, x y^T; of blocks, or of units alone.
    """

    plan: Layout
    slot: Slot
    is_input: bool
    features: int
    carried: Carried | None
    sums: dict[str, Tensor] = field(default_factory=dict)

    @property
    def symmetry(self) -> Symmetry:
        """The symmetry whose parts are the rows."""
        return self.plan.symmetry if self.carried is None else self.carried.symmetry

    @property
    def has_frames(self) -> bool:
        """Whether parts are blocks, of which only the space that they span counts."""
        return self.carried is not None and self.symmetry.group not in UNITWISE

    def rows(self, value: Tensor, first: bool) -> Tensor | None:
        """Features as rows [blocks, k, observations]; None if the value does not have them."""
        axis = 1 if first else value.dim() - 1
        if value.dim() < 2 or value.shape[axis] != self.features:
            return None
        flat = value.detach().movedim(axis, 0).flatten(1).float()
        along = replace(self.slot, axis=0)
        return along.columns(flat, self.symmetry.blocks, self.symmetry.size)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count values of a and of b."""
        flat = [v.flatten(0, 1) for v in (x, y)]
        new = {"n": torch.tensor(float(flat[0].shape[1])), "xy": flat[0] @ flat[1].mT}
        for name, v, rows in zip("xy", (x, y), flat, strict=True):
            new[name] = rows.sum(1)
            new[name * 2] = v @ v.mT if self.has_frames else rows.square().sum(1)
        for name, value in new.items():
            wide = value.double().cpu()
            self.sums[name] = self.sums[name] + wide if name in self.sums else wide

    def gains(self) -> tuple[Tensor, Tensor]:
        """How alike all pairs of units are, [blocks, k, k], and the correlations of parts."""
        s = self.sums
        n, x, y = s["n"], s["x"] / s["n"], s["y"] / s["n"]
        xy = s["xy"] / n - x[:, None] * y[None]
        if self.has_frames:
            blocks, size = self.symmetry.blocks, self.symmetry.size
            roots = []
            for mean, squares in ((x, s["xx"]), (y, s["yy"])):
                own = mean.reshape(blocks, size)
                roots.append(_whitening(squares / n - own[:, :, None] * own[:, None]))
            apart = xy.reshape(blocks, size, blocks, size).transpose(1, 2)
            white = roots[0][:, None] @ apart @ roots[1][None]
            alike = correlations = torch.linalg.svdvals(white).sum(-1)
        else:
            sd = [
                (s[name * 2] / n - m.square()).clamp(min=0).sqrt()
                for name, m in (("x", x), ("y", y))
            ]
            scale = sd[0][:, None] * sd[1][None]
            correlations = torch.where(scale > 0, xy / scale.clamp(min=1e-300), 0.0)
            signed = self.carried is not None and is_signed(self.symmetry)
            alike = correlations.abs() if signed else correlations
        if self.carried is None:
            blocks, size = self.symmetry.blocks, self.symmetry.size
            apart = alike.reshape(blocks, size, blocks, size)
            return torch.stack([apart[i, :, i] for i in range(blocks)]), correlations
        parts = self.carried.parts
        total = sum(
            alike[parts[:, :, None, i], parts[:, None, :, i]] for i in range(parts.shape[2])
        )
        assert isinstance(total, Tensor)
        return total, correlations


def _whitening(covariance: Tensor) -> Tensor:
    """C^-1/2, 0 along directions without variance."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > RIDGE * values[..., -1:].clamp(min=1e-300)
    root = torch.where(kept, values.clamp(min=1e-300).rsqrt(), 0.0)
    return (vectors * root[..., None, :]) @ vectors.mT


def orders_by_activations(
    a: nn.Module, b: nn.Module, plans: Sequence[Layout], data: Data
) -> tuple[Log, list[Layout]]:
    """Permutations and signs by correlations on data, and the permutations that are read nowhere.

    Args:
        a: the model that stays.
        b: the other.
        plans: the permutations.
        data: pairs (inputs, targets); targets are not used.
    """
    places = [place for plan in plans if plan.symmetry.blocks == 1 for place in _places(plan, a)]
    with evaluating(a), evaluating(b), plain_attention(), torch.no_grad():
        device = next((p.device for p in a.parameters()), torch.device("cpu"))
        for inputs, _ in pairs_of(data):
            inputs = with_tensors(inputs, (x.to(device) for x in tensors_of(inputs)))
            seen = _read(a, places, inputs)
            others = _read(b, places, inputs)
            for i, place in enumerate(places):
                for x, y in zip(seen[i], others[i], strict=True):
                    place.add(x, y)
    log: Log = []
    unread: list[Layout] = []
    for plan in plans:
        reading = [place for place in places if place.plan is plan and place.sums]
        if not reading:
            unread.append(plan)
            continue
        found = [place.gains() for place in reading]
        order = assigned(torch.stack([gains for gains, _ in found]).sum(0))
        log.append((plan.symmetry, Relabelling(order)))
        for place, (_, correlations) in zip(reading, found, strict=True):
            if not any(one is place.symmetry for one, _ in log):
                log += _signs(place, order, correlations)
    return log, unread


def _signs(place: _Place, order: Tensor, correlations: Tensor) -> Log:
    """Signs of units whose correlation is negative in the order that was found."""
    if place.carried is None or place.has_frames or not is_signed(place.symmetry):
        return []
    parts = place.carried.parts
    source = parts.gather(1, order[:, :, None].expand(parts.shape))
    own = torch.ones(place.symmetry.blocks * place.symmetry.size, dtype=torch.float64)
    own[parts.flatten()] = torch.where(
        correlations[parts.flatten(), source.flatten()] < 0, -1.0, 1.0
    ).double()
    return [(place.symmetry, Signs(own.reshape(place.symmetry.blocks, -1)))]


def _places(plan: Layout, model: nn.Module) -> list[_Place]:
    """Where the units of a permutation can be read: at inputs, or if there are none at outputs."""
    for slots, is_input in ((plan.symmetry.outgoing, True), (plan.symmetry.incoming, False)):
        found = []
        for slot in slots:
            tensor = getattr(model.get_submodule(slot.module), slot.name)
            is_plain = slot.rows is None and slot.groups == 1 and slot.module != ""
            if is_plain and isinstance(tensor, nn.Parameter) and (is_input or tensor.dim() > 1):
                carried = _carried(plan, slot)
                at = slot if carried is None else _slot_of(carried.symmetry, slot)
                found.append(_Place(plan, at, is_input, tensor.shape[slot.axis], carried))
        if found:
            return found
    return []


def _carried(plan: Layout, slot: Slot) -> Carried | None:
    """What a permutation carries along the axis of a slot, all of it."""
    for one in plan.carried:
        own = [s for s in one.symmetry.slots if (s.path, s.axis) == (slot.path, slot.axis)]
        wanted = _slot_length(plan.symmetry, slot)
        if len(own) == 1 and _slot_length(one.symmetry, own[0]) == wanted:
            return one
    return None


def _slot_of(symmetry: Symmetry, slot: Slot) -> Slot:
    return next(s for s in symmetry.slots if (s.path, s.axis) == (slot.path, slot.axis))


def _slot_length(symmetry: Symmetry, slot: Slot) -> int:
    return slot.length(symmetry.blocks, symmetry.size)


def _read(model: nn.Module, places: Sequence[_Place], inputs: Any) -> dict[int, list[Tensor]]:
    """The rows at each place, by its number, call by call."""
    found: dict[int, list[Tensor]] = defaultdict(list)

    def reader(i: int, place: _Place, module: nn.Module) -> Callable[..., None]:
        first = isinstance(module, _ConvNd | _NormBase | nn.GroupNorm)

        def read(module: nn.Module, given: Any, named: Any, outputs: Any = None) -> None:
            value = next(tensors_of((given, named) if place.is_input else outputs), None)
            rows = None if value is None else place.rows(value, first)
            if rows is not None:
                found[i].append(rows)

        return read

    with ExitStack() as stack:
        for i, place in enumerate(places):
            module = model.get_submodule(place.slot.module)
            read = reader(i, place, module)
            if place.is_input:
                handle = module.register_forward_pre_hook(read, with_kwargs=True)
            else:
                handle = module.register_forward_hook(read, with_kwargs=True)
            stack.callback(handle.remove)
        called(model, inputs)
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode, and then in the modes that its modules were in."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
