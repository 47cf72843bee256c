"""Affine maps whose weight gradients are summed over a window, not step by step.

    z_t = sum_k W_k x_k,t + b,     dM/dW_k = sum_t dz_t x_k,t^T,     dM/db = sum_t dz_t

Autograd would form each term of these sums as a matrix of its own and add it to the others. Here
the backward pass of each use hands (dz_t, x_k,t) to ``Sums``, which lines up small ones until one
matrix product is worth it, and adds large ones in place. The sums enter autograd at one node, which
all uses in a window share and which therefore runs after the last of them.

Arrays are [features, rows] or [blocks, features, rows], see ``lstm``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ENOUGH_ROWS = 640
"""Rows from which a matrix product gains no more speed by taking further ones with it."""

Memory = dict[tuple[Any, ...], Tensor]
"""Tensors to be overwritten again and again: what was just in use is in the caches of a CPU."""


def memory_for(shape: tuple[int, ...], like: Tensor, memory: Memory, name: str = "") -> Tensor:
    """The tensor of that shape and name in ``memory``, made like ``like`` where there is none."""
    key = (name, *shape)
    found = memory.get(key)
    if found is None:
        found = memory[key] = like.new_empty(shape)
    return found


class Sums:
    """sum_t dz_t x_k,t^T for each k, and sum_t dz_t, of one window."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        # Columns of other uses wait in these until they are multiplied: theirs alone.
        self._lined_up: Memory = {}
        self._pass = -1
        self._clear()

    def _clear(self) -> None:
        self._columns = 0
        self._waiting: tuple[Tensor, ...] = ()
        self._products: tuple[Tensor, ...] = ()
        self._bias: Tensor | None = None

    def place(self, out: int, x: Tensor) -> Tensor:
        """Where to write dz [.., out, r] of the use with inputs like x [.., in, r]."""
        # A backward pass that stopped short of the parameters leaves its terms behind.
        current = torch._C._current_graph_task_id()
        if current != self._pass:
            self._clear()
            self._pass = current
        rows = x.shape[-1]
        if x.dim() == 3 or rows >= ENOUGH_ROWS:
            return memory_for((*x.shape[:-2], out, rows), x, self._memory)
        return self._slot(0, out, x)

    def _slot(self, k: int, features: int, like: Tensor) -> Tensor:
        """The next columns of line k: [features, r] of [features, ENOUGH_ROWS]."""
        rows = like.shape[1]
        width = ENOUGH_ROWS - ENOUGH_ROWS % rows
        line = memory_for((features, width), like, self._lined_up, str(k))
        return line[:, self._columns : self._columns + rows]

    def add(self, dz: Tensor, inputs: Sequence[Tensor]) -> None:
        """One use: dz from ``place``, filled, and inputs [.., in_k, r]."""
        rows = dz.shape[-1]
        if dz.dim() == 3 or rows >= ENOUGH_ROWS:
            self._multiply(dz, inputs)
            return
        for k, x in enumerate(inputs, start=1):
            self._slot(k, x.shape[0], x).copy_(x)
        self._columns += rows
        self._waiting = (dz, *inputs)
        if self._columns + rows > ENOUGH_ROWS:
            self._multiply_waiting()

    def _multiply_waiting(self) -> None:
        if self._columns:
            rows = self._waiting[0].shape[1]
            width = ENOUGH_ROWS - ENOUGH_ROWS % rows
            dz, *inputs = (
                self._lined_up[(str(k), part.shape[0], width)][:, : self._columns]
                for k, part in enumerate(self._waiting)
            )
            self._columns = 0
            self._multiply(dz, inputs)

    def _multiply(self, dz: Tensor, inputs: Sequence[Tensor]) -> None:
        is_batch = dz.dim() == 3
        bias = dz.sum((0, 2) if is_batch else 1)
        if self._bias is None:
            self._bias = bias
            self._products = tuple(torch.matmul(dz, x.mT) for x in inputs)
            return
        self._bias += bias
        for product, x in zip(self._products, inputs, strict=True):
            if is_batch:
                # The last group of a batch can have fewer blocks; they go to the first sums.
                blocks = dz.shape[0]
                part = product if product.shape[0] == blocks else product[:blocks]
                part.baddbmm_(dz, x.mT)
            else:
                product.addmm_(dz, x.T)

    def take(self) -> tuple[Tensor, ...]:
        """The sums for W_1, W_2, .. and b, or nothing where nothing was added; forgets them."""
        self._multiply_waiting()
        if self._bias is None:
            return ()
        products = (p.sum(0) if p.dim() == 3 else p for p in self._products)
        sums = (*products, self._bias)
        self._clear()
        return sums


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
        memory: shared by the maps of the window.

    Attributes:
        parameters: the same, as the uses in the window have to name them to autograd.
        sums: where the backward passes of the uses put their terms.
    """

    def __init__(self, parameters: tuple[Tensor, ...], memory: Memory) -> None:
        self.sums = Sums(memory)
        if torch.is_grad_enabled():
            parameters = _Entry.apply(self.sums, *parameters)
        self.parameters = parameters
        self._memory = memory
        self._weights = [W.detach() for W in parameters[:-1]]
        self._transposed = [W.mT for W in self._weights]
        self._column = parameters[-1].detach()[:, None]
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
            if x.dim() == 3:
                z = torch.baddbmm(z, W.expand(x.shape[0], -1, -1), x, out=out)
            else:
                z = torch.addmm(z, W, x, out=out)
        return z

    def pull_back(self, k: int, dz: Tensor, out: Tensor) -> Tensor:
        """W_k^T dz, [.., in_k, r]."""
        W_T = self._transposed[k]
        if dz.dim() == 3:
            return torch.bmm(W_T.expand(dz.shape[0], -1, -1), dz, out=out)
        return torch.mm(W_T, dz, out=out)


@dataclass(frozen=True)
class _Window:
    """The affine maps used in a window, by the module that they belong to."""

    maps: dict[nn.Module, tuple[Affine, ...]] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)


_window: ContextVar[_Window | None] = ContextVar("window", default=None)


@contextmanager
def one_window() -> Iterator[None]:
    """All uses of an affine map within the context share one sum for its gradients."""
    token = _window.set(_Window())
    try:
        yield
    finally:
        _window.reset(token)


def bound(
    owner: nn.Module, parameters: Callable[[], Iterable[tuple[Tensor, ...]]]
) -> tuple[Affine, ...]:
    """The affine maps of ``owner`` in the present window; outside of one, for this use alone.

    Args:
        owner: whose they are.
        parameters: gives W_1, W_2, .. and b of each of its maps.
    """
    window = _window.get() or _Window()
    maps = window.maps.get(owner)
    if maps is None:
        maps = tuple(Affine(of_map, window.memory) for of_map in parameters())
        window.maps[owner] = maps
    return maps
