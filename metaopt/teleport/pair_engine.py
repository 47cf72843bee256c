"""Group elements on linear pairs of any network: exact on any data.

    A -> g A,   B -> B g^-1,   g = exp(T) F^-1        T [k, k], another one for each pair

F is the frame that a pair is in, exp(T) the one that it is moved to: both count from the weights
that training began with. So a pair is never farther from there than the limit on the norm of T
allows, whatever a rule says over any number of steps. Or a rule says g itself, without T. Gradients
and running means of them move by the inverse transpose; so do products of gradients that rules keep
for the side of the group (``symmetry.pairs``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaopt.base.loss_statistics import SMALL_LOSS
from metaopt.base.network import Weights
from metaopt.symmetry.actions import InexactActionError
from metaopt.symmetry.limits import NormLimit
from metaopt.symmetry.maps import ElementMap, GroupElement
from metaopt.symmetry.pairs import MAKES, LinearPairs, turned
from metaopt.tasks.base import Ground, Observation, Problem
from metaopt.teleport.base import (
    Elements,
    Generators,
    Need,
    Scaled,
    State,
    TeleportTrace,
    log_ratio,
)


@dataclass(frozen=True)
class PairMove:
    """One element for each linear pair, and how it moves what rules keep.

    Attributes:
        pairs: the pairs.
        elements: for each width g and g^-1, both [B, pairs, k, k]; None where pairs stay.
        frames: exp(T) and exp(-T), likewise; none where a rule said g.
    """

    pairs: LinearPairs
    elements: Elements
    frames: tuple[GroupElement, ...] = ()

    def weights(self, weights: Weights) -> Weights:
        """Weights, each [B, out, rest], at g . w."""
        rights = [e and torch.stack([e.g.mT, e.g_inv], dim=1) for e in self.elements]
        return self.pairs.multiplied(weights, rights)

    def gradients(self, gradients: Weights) -> Weights:
        """Gradients, each [B, out, rest], at g . w."""
        rights = [e and torch.stack([e.g_inv, e.g.mT], dim=1) for e in self.elements]
        return self.pairs.multiplied(gradients, rights)

    def rows_of_gradients(self, rows: Tensor, weights: Weights) -> Tensor:
        """What is linear in gradients, [B, any, P], at g . w.

        Args:
            rows: all entries in a row, ``any`` times.
            weights: fix the shapes.
        """
        return self._rows(rows, weights, PairMove.gradients)

    def rows_of_weights(self, rows: Tensor, weights: Weights) -> Tensor:
        """What is linear in weights, [B, any, P], at g . w.

        Args:
            rows: see ``rows_of_gradients``.
            weights: fix the shapes.
        """
        return self._rows(rows, weights, PairMove.weights)

    def _rows(
        self, rows: Tensor, weights: Weights, moved: Callable[[PairMove, Weights], Weights]
    ) -> Tensor:
        many = rows.shape[1]
        parts = rows.split([w[0].numel() for w in weights], dim=2)
        flat = tuple(part.reshape(-1, *w.shape[1:]) for part, w in zip(parts, weights, strict=True))
        each = (
            e and GroupElement(*(x.repeat_interleave(many, 0) for x in e)) for e in self.elements
        )
        found = moved(PairMove(self.pairs, tuple(each)), flat)
        return torch.cat([one.reshape(len(rows), many, -1) for one in found], dim=2)

    def squares_of_gradients(self, tensors: int) -> Tensor:
        """What elements that are rotations times c multiply squares of gradients by, [B, 1, L].

            c^-2 on the side that makes,   c^2 on that which reads,   1 elsewhere

        Args:
            tensors: L, the number of weights.
        """
        first = next(element.g for element in self.elements if element is not None)
        found = first.new_ones(first.shape[0], 1, tensors)
        for width, element in zip(self.pairs.widths, self.elements, strict=True):
            if element is None:
                continue
            squares = element.g.square().sum(dim=(-2, -1)) / width.size
            for face in width.faces:
                own = squares[:, face.pairs[:: face.blocks], None].mT
                at = torch.tensor(face.tensors, device=found.device)
                found = found.index_copy(2, at, 1 / own if face.side == MAKES else own)
        return found

    def products(self, width: int, products: Tensor) -> Tensor:
        """Sums of outer products of rows of gradients, [B, 2, pairs, k, k], at g . w.

            G_A G_A^T -> g^-T (G_A G_A^T) g^-1,      G_B^T G_B -> g (G_B^T G_B) g^T

        Args:
            width: the number of the width.
            products: those of its pairs, or means of them.
        """
        element = self.elements[width]
        return products if element is None else turned(products, element.g_inv, element.g.mT)


@dataclass(frozen=True)
class PairReport:
    """What one teleport of linear pairs did.

    Attributes:
        move: the elements.
        norm: the Frobenius norm of the generators of all pairs together, [B]; of g - I, which is
            theirs to first order, where a rule said g.
        before: the weights before the teleport, each [B, out, rest].
        after: those after it, before any update.
        passed: None, since the engine makes no forward pass.
    """

    together: ClassVar[int] = 1

    move: PairMove
    norm: Tensor
    before: Weights
    after: Weights
    passed: None = None

    def moved(self, rule: Scaled, state: State) -> State:
        """The state of a rule at g . w."""
        return rule.turned(state, self.move, self.before)

    @classmethod
    def traced(
        cls, reports: Sequence[PairReport], problem: Problem, after: Sequence[Observation]
    ) -> TeleportTrace:
        """The trace of one step; costs two more evaluations of the loss.

        The elements are exact up to rounding; the drift is the relative change of the loss.
        """
        (report,) = reports
        with torch.no_grad():
            before, moved = (problem.seen_loss(w) for w in (report.before, report.after))
            return TeleportTrace(
                norm=report.norm[None],
                drift=((moved - before).abs() / before.clamp(min=SMALL_LOSS))[None],
                refused=torch.zeros_like(moved, dtype=torch.bool)[None],
                log_ratio=log_ratio(before, moved)[None],
            )


class PairEngine:
    """A -> g A, B -> B g^-1 on every linear pair.

    Args:
        to_element: the map from a generator to a group element.
        limit: the limit on the norm of the generator of each pair.
    """

    needs: ClassVar[Need] = Need.PAIRS
    reads_data = False

    def __init__(self, to_element: ElementMap, limit: NormLimit) -> None:
        self.to_element = to_element
        self.limit = limit

    def check(self, ground: Ground, weights: Weights) -> None:
        """Raise ``InexactActionError`` if no linear pairs are known."""
        if ground.pairs is None:
            raise InexactActionError(
                "teleports of linear pairs need to know them: a family of your own lists them as "
                "symmetries = metaopt.symmetries(its network)"
            )

    def teleport(
        self,
        weights: Weights,
        generators: Generators,
        ground: Ground,
        frames: Sequence[GroupElement] | None = None,
    ) -> tuple[Weights, PairReport]:
        """w -> g . w, with a report.

        Args:
            weights: w, each [B, out, rest].
            generators: for each width T [B, pairs, k, k], of any norm.
            ground: what is known of the network; it must know the linear pairs.
            frames: F and F^-1 of each width, [B, pairs, k, k]; I by default.
        """
        elements, new, squares = [], [], []
        for i, T in enumerate(generators):
            limited = self.limit(T.flatten(0, 1))
            frame = GroupElement(*(x.view_as(T) for x in self.to_element(limited)))
            new.append(frame)
            g, g_inv = frame
            if frames is not None:
                g, g_inv = g @ frames[i].g_inv, frames[i].g @ g_inv
            elements.append(GroupElement(g, g_inv))
            squares.append(limited.detach().square().view_as(T).sum(dim=(1, 2, 3)))
        return self._moved(weights, elements, tuple(new), squares, ground)

    def move(
        self, weights: Weights, elements: Elements, ground: Ground
    ) -> tuple[Weights, PairReport]:
        """w -> g . w of elements that a rule says itself, with a report.

        Args:
            weights: w, each [B, out, rest].
            elements: g and g^-1 of each width, [B, pairs, k, k]; None where pairs stay.
            ground: what is known of the network; it must know the linear pairs.
        """
        squares = [weights[0].new_zeros(weights[0].shape[0])]
        for g, _ in filter(None, elements):
            eye = torch.eye(g.shape[-1], dtype=g.dtype, device=g.device)
            squares.append((g.detach() - eye).square().sum(dim=(1, 2, 3)))
        return self._moved(weights, elements, (), squares, ground)

    def _moved(
        self,
        weights: Weights,
        elements: Sequence[GroupElement | None],
        frames: tuple[GroupElement, ...],
        squares: Sequence[Tensor],
        ground: Ground,
    ) -> tuple[Weights, PairReport]:
        assert ground.pairs is not None
        # One step of Newton's method: g^-1 is then the inverse to rounding, at any norm of T.
        exact = tuple(
            e and GroupElement(e.g, 2 * e.g_inv - e.g_inv @ e.g @ e.g_inv) for e in elements
        )
        move = PairMove(ground.pairs, exact, frames)
        norm = torch.stack([*squares]).sum(0).sqrt()
        moved = move.weights(weights)
        return moved, PairReport(move, norm, weights, moved)
