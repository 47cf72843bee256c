"""The charges of all symmetries of a ledger as one vector, so that a step costs few operations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metaopt.optim.ledger_forms import Cell, Forms, Part, Sums
from metaopt.symmetry.conserved import QUADRATIC
from metaopt.symmetry.groups import Group, Symmetry

Tensors = dict[str, Tensor]
"""Path of a parameter -> a tensor of its shape; or name of a symmetry -> its charge."""


class Flat:
    """Charges of all symmetries as one vector of cells: quadratic ones, then translations.

    Args:
        symmetries: by name.
        parameters: all that they move, by path.
        part: parameters of a symmetry with equal settings are one cell.
    """

    def __init__(
        self,
        symmetries: Mapping[str, Symmetry],
        parameters: Mapping[str, nn.Parameter],
        part: Part,
    ) -> None:
        self.symmetries = dict(symmetries)
        self.parameters = dict(parameters)
        like = {path: parameter.detach() for path, parameter in parameters.items()}
        self.device = next(iter(like.values())).device
        quadratic = {n: s for n, s in symmetries.items() if s.group in QUADRATIC}
        linear = {n: s for n, s in symmetries.items() if s.group is Group.TRANSLATION}
        self.forms = Forms(quadratic, like, part, self.device)
        self.sums = Sums(linear, like, self.device)
        self.several = len(self.forms.cells) > len(quadratic)
        """Whether some symmetry has more than one cell."""
        self._layout: dict[str, tuple[int, tuple[int, ...]]] = {}
        to: list[Tensor] = []
        self._size = 0
        for cell in self.cells:
            length = cell.stop - cell.start
            start, shape = self._layout.get(cell.name, (self._size, cell.shape))
            if cell.name in self._layout and cell.name in linear:
                shape = (shape[0] + length,)
            # A translation's slots follow each other; other cells of a symmetry lie on the first.
            at = self._size if cell.name in linear else start
            self._size = max(self._size, at + length)
            self._layout[cell.name] = start, shape
            to.append(at + torch.arange(length))
        self._to = torch.cat(to).to(self.device)

    @property
    def size(self) -> int:
        """How many entries all cells have."""
        return self.forms.size + self.sums.size

    @property
    def cells(self) -> list[Cell]:
        """All cells; those of translations start after the last quadratic one."""
        return [*self.forms.cells, *self.sums.cells]

    def wide(self) -> Tensors:
        """The weights in float64."""
        return {path: p.detach().double() for path, p in self.parameters.items()}

    def working(self, tensors: Mapping[str, Tensor | None]) -> Tensors:
        """Dense tensors of at least float32, without what is missing."""
        return {path: _working(one) for path, one in tensors.items() if one is not None}

    def charges(self, weights: Tensors) -> Tensor:
        """<w, w>, or the sums of a translation, of every cell."""
        return torch.cat([self.forms.products([weights], weights)[0], self.sums.of(weights)])

    def scales(self, tensors: Tensors) -> Tensor:
        """What charges are compared with: |w_in|^2 + |w_out|^2 of a unit, or of a linear block.

        For a translation the sum of |w|, where each entry counts at least as an average one of all
        tensors: the bias of attention's keys, say, may be 0 and has no gradient.
        """
        squares = self.forms.products([tensors], tensors, absolute=True)[0]
        parts = []
        for cell in self.forms.cells:
            part = squares[cell.start : cell.stop].view(cell.shape)
            if len(cell.shape) == 3:
                trace = part.diagonal(dim1=1, dim2=2).sum(1)
                part = trace[:, None, None].expand(cell.shape)
            parts.append(part.flatten())
        total = torch.stack([x.double().square().sum().to(self.device) for x in tensors.values()])
        count = sum(x.numel() for x in tensors.values())
        typical = (total.sum() / count).sqrt()
        ones = {path: torch.ones_like(x) for path, x in tensors.items()}
        sizes = {path: x.abs() for path, x in tensors.items()}
        return torch.cat([*parts, self.sums.of(sizes) + typical * self.sums.of(ones)])

    def identities(self, weights: Tensors, gradients: Tensors) -> tuple[Tensor, Tensor]:
        """<w, g> of each charge, which is 0, and |w| |g|, with which it is compared."""
        found = [self.forms.products([weights], gradients)[0], self.sums.of(gradients)]
        of_weights, of_gradients = self.scales(weights), self.scales(gradients)
        of_weights[self.forms.size :] = of_gradients[self.forms.size :]
        sizes = (self.total(of_weights) * self.total(of_gradients)).sqrt()
        return self.total(torch.cat(found)), sizes

    def total(self, cells: Tensor) -> Tensor:
        """Entries of cells [entries], added up to those of charges."""
        if not self.several:
            return cells
        return cells.new_zeros(self._size).index_add_(0, self._to, cells)

    def by_name(self, charges: Tensor) -> Tensors:
        """Entries of charges, as they are shaped, on the CPU."""
        flat = charges.cpu()
        return {
            name: flat[start : start + torch.Size(shape).numel()].view(shape)
            for name, (start, shape) in self._layout.items()
        }


def _working(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
