"""Products of curvature matrices of the mean loss with vectors, by two backward passes.

    Hessian        H v = d <grad L, v> / dw
    Gauss-Newton   G v = sum over batches n/N J^T L J v,  J = df/dw,  L = d^2 loss / df^2

J v is a derivative of J^T u in u, so that no operation has to know forward differentiation. Vectors
are rows in float64; products are taken in the dtype of the parameters, and added up in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metaopt.landscape.samples import Samples, plain_attention

ENTRIES = 2**22
"""Entries of vectors that go through the model at a time."""
MOST = 128
"""Vectors that go through the model at a time."""

Product = Callable[[Tensor], Tensor]
"""V [m, P] -> M V [m, P], row by row."""
Tensors = Sequence[Tensor]


class Products(ABC):
    """V -> M V for a symmetric matrix M [P, P] over all entries of some parameters.

    Args:
        samples: model, loss and data; the parameters are read anew by each call.
        paths: the parameters, whose entries follow each other in this order.

    Attributes:
        size: P, the number of entries.
    """

    def __init__(self, samples: Samples, paths: Sequence[str]) -> None:
        self._samples, self._paths = samples, list(paths)
        self.size = sum(value.numel() for value in samples.values(paths).values())
        self._vectorises = True

    @abstractmethod
    def _of_batch(
        self, values: dict[str, Tensor], inputs: Any, targets: Tensor, share: float
    ) -> Callable[[Tensors, bool], Tensors]:
        """What multiplies vectors, shaped like the values, by the batch's part of M.

        Args:
            values: the parameters, which require gradients.
            inputs: what the model is called with.
            targets: the targets.
            share: n / N.
        """

    def __call__(self, rows: Tensor) -> Tensor:
        """M V, [m, P], for rows V [m, P], float64."""
        total = torch.zeros_like(rows)
        most = max(1, min(MOST, ENTRIES // max(1, self.size)))
        for inputs, targets in self._samples.batches():
            values = {
                path: value.requires_grad_()
                for path, value in self._samples.values(self._paths).items()
            }
            with torch.enable_grad(), plain_attention():
                share = len(targets) / self._samples.count
                multiply = self._of_batch(values, inputs, targets, share)
                for start in range(0, len(rows), most):
                    part = slice(start, start + most)
                    total[part] += self._several(multiply, rows[part], values)
        return total

    def gradient(self) -> Tensor:
        """grad L as a row [P], float64, in the order of the products."""
        found = self._samples.mean_gradient(self._paths)
        return torch.cat([found[path].flatten().double() for path in self._paths])

    def _several(
        self,
        multiply: Callable[[Tensors, bool], Tensors],
        rows: Tensor,
        values: Mapping[str, Tensor],
    ) -> Tensor:
        """All rows at once, or one after the other where the operations cannot be vectorised."""
        if self._vectorises and len(rows) > 1:
            try:
                return _flat(multiply(_shaped(rows, values), True), len(rows))
            except RuntimeError:
                # If the rows are not at fault, the error comes again below.
                self._vectorises = False
        each = [multiply([part[0] for part in _shaped(row[None], values)], False) for row in rows]
        return torch.cat([_flat(parts, 1) for parts in each])


class HessianProducts(Products):
    """V -> H V, H the Hessian of the mean loss."""

    def _of_batch(
        self, values: dict[str, Tensor], inputs: Any, targets: Tensor, share: float
    ) -> Callable[[Tensors, bool], Tensors]:
        weights = list(values.values())
        loss = share * self._samples.loss(self._samples.outputs(values, inputs), targets)
        gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        return lambda vectors, several: _vjp(gradients, weights, vectors, several)


class GaussNewtonProducts(Products):
    """V -> G V, G the Gauss-Newton matrix: the loss to second order in the model's outputs.

    Raises:
        ValueError: when it is called, if the outputs hold no tensors, or the loss is linear in
            them, so that G = 0.
    """

    def _of_batch(
        self, values: dict[str, Tensor], inputs: Any, targets: Tensor, share: float
    ) -> Callable[[Tensors, bool], Tensors]:
        weights = list(values.values())
        outputs, free, loss = self._cut(values, inputs, targets)
        slopes = torch.autograd.grad(share * loss, free, create_graph=True, allow_unused=True)
        if not any(slope is not None and slope.requires_grad for slope in slopes):
            raise ValueError(
                "the loss is linear in the model's outputs, so that its Gauss-Newton matrix is 0: "
                "matrix='hessian' has no need of them"
            )
        # J^T u, of which only the derivative in u is read.
        dual = [torch.zeros_like(output, requires_grad=True) for output in outputs]
        pulled = torch.autograd.grad(outputs, weights, dual, create_graph=True, allow_unused=True)

        def multiply(vectors: Tensors, several: bool) -> Tensors:
            forward = _vjp(pulled, dual, vectors, several)
            return _vjp(outputs, weights, _vjp(slopes, free, forward, several), several)

        return multiply

    def _cut(
        self, values: dict[str, Tensor], inputs: Any, targets: Tensor
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The tensors of the outputs, copies of them cut off the model, and the copies' loss."""
        found = self._samples.outputs(values, inputs)
        leaves, structure = tree_flatten(found)
        places = [
            i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad
        ]
        if not places:
            raise ValueError(
                f"the Gauss-Newton matrix needs outputs that are tensors, or tuples, lists or "
                f"mappings of them, and that depend on the weights, found "
                f"{type(found).__name__}: matrix='hessian' has no need of them"
            )
        free = [leaves[i].detach().requires_grad_() for i in places]
        cut = list(leaves)
        for i, one in zip(places, free, strict=True):
            cut[i] = one
        loss = self._samples.loss(tree_unflatten(cut, structure), targets)
        return [leaves[i] for i in places], free, loss


def _vjp(
    outputs: Sequence[Tensor | None], inputs: Tensors, vectors: Tensors, several: bool
) -> Tensors:
    """sum_o (d output_o / d input)^T vector_o of each input; with ``several``, of rows of vectors.

    Outputs that depend on nothing, or are None, count as constants.
    """
    chosen = [
        (output, vector)
        for output, vector in zip(outputs, vectors, strict=True)
        if output is not None and output.requires_grad
    ]
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if chosen:
        found = torch.autograd.grad(
            [output for output, _ in chosen],
            inputs,
            [vector for _, vector in chosen],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=several,
        )
    lead = vectors[0].shape[:1] if several else ()
    return [
        one.new_zeros(*lead, *one.shape) if value is None else value
        for one, value in zip(inputs, found, strict=True)
    ]


def _shaped(rows: Tensor, values: Mapping[str, Tensor]) -> list[Tensor]:
    """Rows [m, P] as tensors [m, *shape], each in the dtype of its parameter."""
    parts = rows.split([value.numel() for value in values.values()], dim=1)
    return [
        part.reshape(len(rows), *value.shape).to(value.dtype)
        for part, value in zip(parts, values.values(), strict=True)
    ]


def _flat(tensors: Tensors, count: int) -> Tensor:
    """Tensors of ``count`` rows side by side, [count, P], float64."""
    return torch.cat([tensor.reshape(count, -1).double() for tensor in tensors], dim=1)
