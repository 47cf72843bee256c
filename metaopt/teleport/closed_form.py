"""The squared norm of the gradient on an orbit, as a function of generators alone.

    |G(T)|^2 = |g^-T G_in|^2 + |G_out g^T|^2,   scalings: sum_ij e^{2 a_i(T)} S_ij e^{2 b_j(T)}

G are the gradients at T = 0. Where nothing but scaling acts on a tensor, sums S of squared entries
are all that is needed: over the axes along which nothing acts they are taken beforehand, and the
factors e^a, e^b are vectors. Other tensors are moved as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metaopt.symmetry.groups import Group, Slot
from metaopt.symmetry.motion import GroupMotion, Motion, Tensors, moved_gradients


class SquaredNorm:
    """T -> |G(T)|^2, differentiable.

    Args:
        motions: exact ones, applied in order.
        weights: w, float64; read only if some motion is no ``GroupMotion``.
        gradients: G at w by path, float64.
    """

    def __init__(self, motions: Sequence[Motion], weights: Tensors, gradients: Tensors) -> None:
        groups = [motion for motion in motions if isinstance(motion, GroupMotion)]
        self._weights: Tensors = {}
        self._motions: Sequence[Motion] = motions
        self._squares: dict[str, Tensor] = {}
        self._axes: dict[str, list[int]] = {}
        self._moved: dict[str, Tensor] = dict(gradients)
        self._factors: set[str] = set()
        self._fixed: Tensor | float = 0.0
        if len(groups) == len(motions):
            self._shorten(groups)
        else:
            self._weights = weights

    def __call__(self, *generators: Tensor) -> Tensor:
        """|G(T)|^2, a scalar.

        Args:
            generators: one for each motion.
        """
        moved = moved_gradients(self._motions, self._weights, self._moved, generators)
        total: Tensor | float = self._fixed
        for path, G in moved.items():
            if path not in self._factors:
                total = total + G.square().sum().cpu()
        for path, S in self._squares.items():
            for axis in reversed(self._axes[path]):
                S = S @ moved[_name(path, axis)].square()
            total = total + S.cpu()
        return torch.as_tensor(total)

    def _shorten(self, groups: Sequence[GroupMotion]) -> None:
        """Sums of squares and vectors of factors in the place of what is only scaled."""
        axes: dict[str, set[int]] = {}
        mixed: set[str] = set()
        for motion in groups:
            for slot in motion.symmetry.slots:
                axes.setdefault(slot.path, set()).add(slot.axis)
                is_plain = motion.symmetry.group is Group.SCALING
                if not is_plain or slot.rows is not None or slot.groups > 1:
                    mixed.add(slot.path)
        gradients, self._moved = self._moved, {}
        for path, G in gradients.items():
            if path not in axes:
                self._fixed = self._fixed + G.square().sum().cpu()
            elif path in mixed:
                self._moved[path] = G
            else:
                own = sorted(axes[path])
                others = [axis for axis in range(G.dim()) if axis not in own]
                self._squares[path] = G.square().sum(others) if others else G.square()
                self._axes[path] = own
                vectors = {_name(path, axis): G.new_ones(G.shape[axis]) for axis in own}
                self._moved |= vectors
                self._factors |= vectors.keys()
        self._motions = [self._renamed(motion) for motion in groups]

    def _renamed(self, motion: GroupMotion) -> GroupMotion:
        """The same motion of vectors of factors in the place of the tensors."""

        def of(slots: Sequence[Slot]) -> tuple[Slot, ...]:
            return tuple(
                replace(slot, module="", name=_name(slot.path, slot.axis), axis=0)
                if slot.path in self._axes
                else slot
                for slot in slots
            )

        symmetry = motion.symmetry
        return GroupMotion(
            replace(symmetry, incoming=of(symmetry.incoming), outgoing=of(symmetry.outgoing))
        )


def _name(path: str, axis: int) -> str:
    return f"{path}, axis {axis}"
