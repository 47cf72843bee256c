"""Affine maps whose weight gradients are summed over a window, not step by step.

    z_t = sum_k W_k x_k,t + b,     dM/dW_k = sum_t dz_t x_k,t^T,     dM/db = sum_t dz_t

Autograd would form each term of these sums as a matrix of its own and add it to the others. Here
the backward pass of each use hands (dz_t, x_k,t) to ``Sums``, which lines up small ones until one
matrix product is worth it, and adds large ones in place. The sums enter autograd at one node, which
all uses in a window share and which therefore runs after the last of them.

Arrays are [features, rows] or [blocks, features, rows], see ``lstm``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from metaopt.rules.learned.precision import Full, Precision

ENOUGH_ROWS = 640
"""Rows from which a matrix product gains no more speed by taking further ones with it."""

Memory = dict[tuple[Any, ...], Tensor]
"""Tensors to be overwritten again and again: what was just in use is in the caches of a CPU."""


def memory_for(shape: tuple[int, ...], like: Tensor, memory: Memory) -> Tensor:
    """The tensor of that shape in ``memory``, made like ``like`` where there is none."""
    found = memory.get(shape)
    if found is None:
        found = memory[shape] = like.new_empty(shape)
    return found


def _at_once(x: Tensor) -> bool:
    """Whether the use with x [.., features, r] is multiplied alone."""
    return x.dim() == 3 or x.shape[1] >= ENOUGH_ROWS


class Sums:
    """sum_t dz_t x_k,t^T for each k, and sum_t dz_t, of one window.

    Attributes:
        in_groups: whether a use with many blocks may come as several, a group of blocks each.
    """

    in_groups: ClassVar[bool] = True

    def __init__(self, precision: Precision, memory: Memory) -> None:
        self._by = precision
        self._memory = memory
        # Line k holds columns of dz (k = 0) or of x_k until they are multiplied.
        self._lines: list[Tensor] = []
        self._dtype: torch.dtype | None = None
        self._pass = -1
        self._clear()

    def _clear(self) -> None:
        self._columns = 0
        self._products: tuple[Tensor, ...] = ()
        self._bias: Tensor | None = None

    def begin(self, x: Tensor) -> None:
        """Make room for a use with inputs like x [.., in, r]."""
        # A backward pass that stopped short of the parameters leaves its terms behind.
        current = torch._C._current_graph_task_id()
        if current != self._pass:
            self._clear()
            self._pass = current
            self._dtype = x.dtype
        if not _at_once(x) and self._columns + x.shape[-1] > ENOUGH_ROWS:
            self._multiply_waiting()

    def place(self, out: int, x: Tensor) -> Tensor:
        """Where to write dz [.., out, r] of the use with inputs like x [.., in, r]."""
        self.begin(x)
        rows = x.shape[-1]
        if _at_once(x) or self._by.dtype(x) != x.dtype:
            return memory_for((*x.shape[:-2], out, rows), x, self._memory)
        return self._slot(0, out, x)

    def _slot(self, k: int, features: int, like: Tensor) -> Tensor:
        """The next columns of line k: [features, r] of [features, ENOUGH_ROWS]."""
        if k == len(self._lines):
            dtype = self._by.dtype(like)
            self._lines.append(like.new_empty(features, ENOUGH_ROWS, dtype=dtype))
        return self._lines[k][:, self._columns : self._columns + like.shape[1]]

    def add(self, dz: Tensor, inputs: Sequence[Tensor]) -> None:
        """One use, after ``begin`` or ``place``: dz [.., out, r] and inputs [.., in_k, r]."""
        if _at_once(dz):
            self._multiply(dz, inputs)
            return
        for k, x in enumerate((dz, *inputs)):
            slot = self._slot(k, x.shape[0], x)
            # dz may stand there already.
            if slot.data_ptr() != x.data_ptr():
                slot.copy_(x)
        self._columns += dz.shape[1]

    def _multiply_waiting(self) -> None:
        if self._columns:
            dz, *inputs = (line[:, : self._columns] for line in self._lines)
            self._columns = 0
            self._multiply(dz, inputs)

    def _multiply(self, dz: Tensor, inputs: Sequence[Tensor]) -> None:
        is_batch = dz.dim() == 3
        # A sum of bfloat16 is taken in float32 where it is asked for in float32.
        bias = dz.sum((0, 2) if is_batch else 1, dtype=self._dtype)
        if self._bias is None:
            self._bias = bias
            self._products = tuple(self._by.outer(dz, x) for x in inputs)
            return
        self._bias += bias
        for product, x in zip(self._products, inputs, strict=True):
            if is_batch and product.shape[0] > dz.shape[0]:
                # The last group of a batch has fewer blocks; they go to the first sums.
                product = product[: dz.shape[0]]
            self._by.add_outer_(product, dz, x)

    def take(self) -> tuple[Tensor, ...]:
        """The sums for W_1, W_2, .. and b, or nothing where nothing was added; forgets them."""
        self._multiply_waiting()
        if self._bias is None:
            return ()
        products = (p.sum(0) if p.dim() == 3 else p for p in self._products)
        sums = (*products, self._bias)
        self._clear()
        return sums


class Terms(Sums):
    """The terms themselves, for who sums them elsewhere; nothing for the parameters.

    Attributes:
        found: (dz, x_1, x_2, ..) of each use, in the order of the backward pass.
    """

    in_groups = False

    def __init__(self, precision: Precision, memory: Memory) -> None:
        super().__init__(precision, memory)
        self.found: list[tuple[Tensor, ...]] = []

    def place(self, out: int, x: Tensor) -> Tensor:
        """Memory of its own for each use."""
        return x.new_empty(*x.shape[:-2], out, x.shape[-1])

    def add(self, dz: Tensor, inputs: Sequence[Tensor]) -> None:
        """See ``Sums.add``."""
        self.found.append((dz, *inputs))

    def take(self) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()


class _Entry(torch.autograd.Function):
    """(W_1, W_2, .., b) as they are; backward returns the sums of the window."""

    @staticmethod
    def forward(ctx: Any, sums: Sums, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.sums = sums
        ctx.count = len(parameters)
        ctx.set_materialize_grads(False)
        return tuple(parameter.view_as(parameter) for parameter in parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *(ctx.sums.take() or (None,) * ctx.count))


class Affine:
    """z = sum_k W_k x_k + b within one window.

    Args:
        parameters: W_1 [out, in_1], W_2 [out, in_2], .., b [out].
        precision: the precision of the products.
        memory: shared by the maps of the window.
        kind: of ``sums``.

    Attributes:
        parameters: the same, as the uses in the window have to name them to autograd.
        sums: collects the terms of the backward passes.
    """

    def __init__(
        self,
        parameters: tuple[Tensor, ...],
        precision: Precision,
        memory: Memory,
        kind: type[Sums] = Sums,
    ) -> None:
        self.sums = kind(precision, memory)
        self._by = precision
        plain: Sequence[Tensor] = parameters
        if torch.is_grad_enabled():
            parameters = _Entry.apply(self.sums, *parameters)
            plain = [parameter.detach() for parameter in parameters]
        self.parameters = parameters
        self._memory = memory
        self._weights = [precision.operand(W) for W in plain[:-1]]
        self._column = plain[-1][:, None]
        self._out = self._column.shape[0]

    def in_passing(self, *inputs: Tensor) -> Tensor:
        """z in memory that any other call may overwrite; without a graph, as all here."""
        x = inputs[0]
        shape = (*x.shape[:-2], self._out, x.shape[-1])
        return self(*inputs, out=memory_for(shape, x, self._memory))

    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        """z [.., out, r] of inputs [.., in_k, r]."""
        z = self._column
        for W, x in zip(self._weights, inputs, strict=True):
            z = self._by.plus(z, _for_each_block(W, x), x, out)
        return z

    def pull_back(self, k: int, dz: Tensor, out: Tensor) -> Tensor:
        """W_k^T dz, [.., in_k, r]."""
        return self._by.times(_for_each_block(self._weights[k].mT, dz), dz, out)


def _for_each_block(W: Tensor, x: Tensor) -> Tensor:
    """W [a, b] as often as x has blocks."""
    return W.expand(x.shape[0], -1, -1) if x.dim() == 3 else W


@dataclass(frozen=True)
class _Window:
    """The affine maps used in a window, by the module that they belong to."""

    sums: type[Sums] = Sums
    maps: dict[nn.Module, tuple[Affine, ...]] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)


_window: ContextVar[_Window | None] = ContextVar("window", default=None)


@contextmanager
def one_window(sums: type[Sums] = Sums) -> Iterator[None]:
    """All uses of an affine map within the context share one sum for its gradients.

    Args:
        sums: what collects the terms.
    """
    token = _window.set(_Window(sums))
    try:
        yield
    finally:
        _window.reset(token)


class AffineModule(nn.Module, ABC):
    """A module made of affine maps.

    Attributes:
        precision: the precision of the products.
    """

    precision: Precision = Full()

    @abstractmethod
    def parameters_of_maps(self) -> Iterable[tuple[Tensor, ...]]:
        """W_1, W_2, .. and b of each map."""

    def maps(self) -> tuple[Affine, ...]:
        """The affine maps in the present window; outside of one, for this use alone."""
        window = _window.get() or _Window()
        found = window.maps.get(self)
        if found is None:
            of_maps = self.parameters_of_maps()
            found = tuple(
                Affine(of_map, self.precision, window.memory, window.sums) for of_map in of_maps
            )
            window.maps[self] = found
        return found
