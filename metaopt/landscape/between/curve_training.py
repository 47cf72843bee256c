"""The bends of a curve under SGD with momentum.

    l(t) = L(w(t)) + (wd/2) |w(t)|^2,    dl/dp_i = c_i(t) (grad L(w(t)) + wd w(t))
    m_i <- momentum m_i + dl/dp_i,       p_i <- p_i - lr m_i

One backward pass, that of the model alone, serves all bends. Nothing is copied in a step: the
parameters that the model is called with are views of one vector w for each dtype, which is written
anew, and the model's gradients are added to m_i as they come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt.landscape.between.control_points import ControlPoints, Part
from metaopt.landscape.between.layout import Layout, Share
from metaopt.landscape.samples import Loss

FLAT_UNTIL, FALLEN_AT, LAST = 0.5, 0.9, 0.01
"""The rate is constant to 50 % of the steps, then falls in a line to 1 % at 90 %."""


def rate(step: int, steps: int) -> float:
    """The learning rate at a step, from 0, as a share of the first."""
    fallen = (step / steps - FLAT_UNTIL) / (FALLEN_AT - FLAT_UNTIL)
    return 1 - (1 - LAST) * min(max(fallen, 0.0), 1.0)


class _Written:
    """The parameters of a part at w(t), and the momentum of its bends."""

    def __init__(self, part: Part, bend_rows: Sequence[int]) -> None:
        self.part = part
        self.vector = torch.empty_like(part.points[0])
        self.views = part.views(self.vector)
        is_kept = part.dtype == self.vector.dtype
        self.leaves = [
            (view.detach() if is_kept else view.to(part.dtype)).requires_grad_(part.is_trained)
            for view in self.views
        ]
        self.is_kept = is_kept
        rows = bend_rows if part.is_trained else ()
        self.momentum = {row: torch.zeros_like(self.vector) for row in rows}
        self.momentum_views = {row: part.views(m) for row, m in self.momentum.items()}

    def write(self, shares: Sequence[Share]) -> None:
        self.part.write(shares, self.vector)
        if not self.is_kept:
            torch._foreach_copy_([leaf.detach() for leaf in self.leaves], self.views)

    def move(
        self,
        shares: Sequence[Share],
        gradients: Sequence[Tensor | None],
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        coefficients = dict(shares)
        found = [(i, g) for i, g in enumerate(gradients) if g is not None]
        for row, m in self.momentum.items():
            m.mul_(momentum)
            c = coefficients.get(row, 0.0)
            if c and found:
                views = self.momentum_views[row]
                targets = [views[i] for i, _ in found]
                torch._foreach_add_(targets, [g.to(m.dtype) for _, g in found], alpha=c)
            if c and weight_decay:
                m.add_(self.vector, alpha=c * weight_decay)
            self.part.points[row].add_(m, alpha=-lr)


class CurveTraining:
    """Steps on the bends of a curve.

    Args:
        template: the model, which is called with other parameters and buffers, and never changed.
        points: the control points, whose bends are moved in place.
        layout: how they make the curve.
        loss: (outputs, targets) -> a scalar.
        momentum: of SGD.
        weight_decay: wd.
    """

    def __init__(
        self,
        template: nn.Module,
        points: ControlPoints,
        layout: Layout,
        loss: Loss,
        momentum: float,
        weight_decay: float,
    ) -> None:
        self._template, self._layout, self._loss = template, layout, loss
        self._momentum, self._weight_decay = momentum, weight_decay
        self._written = [_Written(part, layout.bend_rows) for part in points.parts]
        self._trained = [one for one in self._written if one.part.is_trained]
        self.buffers = {path: one.detach().clone() for path, one in template.named_buffers()}
        leaves = dict(points.constants)
        for one in self._written:
            leaves |= dict(zip(one.part.paths, one.leaves, strict=True))
        self._called_with = _with_ties(template, leaves | self.buffers)

    def gradient(self, u: float, inputs: Any, targets: Tensor) -> tuple[Tensor, list, list[Share]]:
        """The loss at w(t), without the penalty, and its gradients by the parameters.

        Args:
            u: a number from 0 to 1, which says where (see ``Layout.drawn``).
            inputs: what the model is called with.
            targets: what the loss is called with.

        Returns:
            The loss; for each trained part the gradients in the order of its paths, None where the
            loss does not depend on a parameter; the control points with their coefficients.
        """
        shares = self._layout.drawn(u)
        with torch.no_grad():
            for one in self._written:
                one.write(shares)
        with torch.enable_grad():
            loss = self._loss(self._outputs(inputs), targets)
            leaves = [leaf for one in self._trained for leaf in one.leaves]
            found = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
        return loss.detach(), [[next(found) for _ in one.leaves] for one in self._trained], shares

    def step(self, u: float, inputs: Any, targets: Tensor, lr: float) -> Tensor:
        """One step of SGD; arguments as of ``gradient``.

        Returns:
            The loss at w(t), without the penalty, before the step.
        """
        loss, gradients, shares = self.gradient(u, inputs, targets)
        with torch.no_grad():
            for one, found in zip(self._trained, gradients, strict=True):
                one.move(shares, found, lr, self._momentum, self._weight_decay)
        return loss

    def state(self) -> dict[str, Any]:
        """What changes in training: bends, momenta, buffers."""
        return {
            "points": [{r: one.part.points[r] for r in one.momentum} for one in self._written],
            "momentum": [one.momentum for one in self._written],
            "buffers": self.buffers,
        }

    @torch.no_grad()
    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        pairs = zip(self._written, state["points"], state["momentum"], strict=True)
        for one, points, momentum in pairs:
            for row, m in one.momentum.items():
                one.part.points[row].copy_(points[row])
                m.copy_(momentum[row])
        for path, buffer in self.buffers.items():
            buffer.copy_(state["buffers"][path])

    def _outputs(self, inputs: Any) -> Any:
        keywords = dict(inputs) if isinstance(inputs, Mapping) else {}
        arguments: tuple = () if keywords else (inputs,)
        if isinstance(inputs, tuple | list):
            arguments = tuple(inputs)
        # Ties are written out once, since looking for them at each call takes time.
        return functional_call(
            self._template, self._called_with, arguments, keywords, tie_weights=False
        )


def _with_ties(template: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values by all paths that a tensor of the model has."""
    named = [
        *template.named_parameters(remove_duplicate=False),
        *template.named_buffers(remove_duplicate=False),
    ]
    first = {id(tensor): path for path, tensor in reversed(named) if path in values}
    return {path: values[first[id(tensor)]] for path, tensor in named}
