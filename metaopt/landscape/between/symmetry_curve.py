"""``symmetry_curve(model, symmetry, g)``: the curve of constant loss from w to g.w.

w(t) = g(t).w,   g(t) = exp(t log Q) exp(t log P),   g = Q P,   L(w(t)) = L(w)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaopt.landscape.between.group_paths import GroupPath, path_to
from metaopt.landscape.between.weight_curve import WeightCurve
from metaopt.landscape.samples import Loss
from metaopt.landscape.subgroup import found_symmetry
from metaopt.symmetry.discovery.find import plain
from metaopt.symmetry.elements import Element
from metaopt.symmetry.groups import Symmetry
from metaopt.symmetry.modules import require, tensor_at, touches_of
from metaopt.symmetry.touch import Touch
from metaopt.symmetry.touch import weights as moved


class SymmetryCurve(WeightCurve):
    """What ``metaopt.symmetry_curve`` returns: w(t) = g(t).w for t from 0 to 1.

    Args:
        template: the model; its weights are copied.
        paths: symmetries, each with its path in its group.
        loss: (outputs, targets) -> a scalar, the mean over the samples, or None.
        weight_decay: wd of the penalty (wd/2) |w(t)|^2.
    """

    def __init__(
        self,
        template: nn.Module,
        paths: Sequence[tuple[Symmetry, GroupPath]],
        loss: Loss | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(template, loss, weight_decay)
        self.paths = list(paths)
        self._parameters = {p: w.detach().clone() for p, w in template.named_parameters()}
        self._buffers = {p: b.detach().clone() for p, b in template.named_buffers()}
        named = [*template.named_parameters(), *template.named_buffers()]
        first = {id(tensor): path for path, tensor in named}
        slots = {slot.path for symmetry, _ in self.paths for slot in symmetry.slots}
        # A slot may name a shared tensor otherwise than the model's list of parameters does.
        self._name = {path: first[id(tensor_at(template, path))] for path in slots}

    def weights(self, t: float) -> dict[str, Tensor]:
        """The parameters at t, by path; at t = 0 those of the model, bit for bit.

        Raises:
            ValueError: if t is not from 0 to 1.
        """
        return self._moved(self._parameters, t)

    def buffers(self, t: float) -> dict[str, Tensor]:
        """The buffers at t, by path; a symmetry moves them too where it has to.

        Raises:
            ValueError: if t is not from 0 to 1.
        """
        return self._moved(self._buffers, t)

    @torch.no_grad()
    def _moved(self, tensors: dict[str, Tensor], t: float) -> dict[str, Tensor]:
        if not 0 <= t <= 1:
            raise ValueError(f"t must be from 0 to 1, found {t}")
        elements = [(symmetry, path.at(t)) for symmetry, path in self.paths] if t else []
        found: dict[str, list[Touch]] = {}
        for slot, steps in touches_of(elements).items():
            found.setdefault(self._name[slot], []).extend(steps)
        return {
            path: moved(tensor, found[path]) if path in found else tensor.clone()
            for path, tensor in tensors.items()
        }

    def __repr__(self) -> str:
        names = ", ".join(f"{one.short_name} ({one.group})" for one, _ in self.paths)
        return f"SymmetryCurve({names})"


def symmetry_curve(
    model: nn.Module,
    symmetry: Symmetry | str | Sequence[Symmetry | str],
    g: Tensor | Element | Sequence[Tensor | Element],
    *,
    loss: Loss | None = None,
    weight_decay: float = 0.0,
) -> SymmetryCurve:
    """The curve from a model's weights w to g.w along which the outputs stay the same.

        w(t) = g(t).w,   g(t) = exp(t log Q) exp(t log P),   g = Q P,   P = (g^T g)^{1/2}

    The polar form is taken since log g need not be real where g is. A block of a symmetry, as the
    head of attention, has an element and a path of its own. Elements with a negative determinant
    have no path to the identity, and neither have permutations and sign flips: they are refused.

    Args:
        model: any module. Its weights are copied, it does not change.
        symmetry: one of ``metaopt.symmetries(model)``, or its name; or several, which then move
            together, in order.
        g: the element. For general linear and orthogonal groups, and for a scale and rotation, a
            matrix for each block, [blocks, size, size]; for positive scaling the factors by which
            units grow, [blocks, size], above 0. The first axis may be missing if there is one
            block. Or an element of ``metaopt.symmetry.elements``. With several symmetries, one for
            each.
        loss: the loss, for ``evaluate`` and ``plane``; None: it is given there.
        weight_decay: wd of the penalty (wd/2) |w(t)|^2 that ``evaluate`` reports, which changes
            along the curve.

    Returns:
        A curve with ``model(t)``, ``weights(t)``, ``evaluate(data)`` and ``plane(data)``; w(1) is
        g.w.

    Raises:
        ValueError: if the model has no such symmetry; no path joins g to the identity, with the
            reason; or g has another shape, is singular, or is not in the group.

    References:
        Zhao et al., arXiv 2505.23681, for the curve exp(t log g).w.
    """
    inner = plain(model)
    several = [symmetry] if isinstance(symmetry, Symmetry | str) else list(symmetry)
    elements = [g] if isinstance(g, Tensor | Element) else list(g)
    if len(several) != len(elements):
        raise ValueError(f"found {len(several)} symmetries and {len(elements)} elements g")
    paths = []
    for one, element in zip(several, elements, strict=True):
        if isinstance(one, str):
            one = found_symmetry(inner, one)
        for slot in one.slots:
            require(inner, one, slot)
        paths.append((one, path_to(one, element)))
    return SymmetryCurve(inner, paths, loss, weight_decay)
